"""Chunks come back as they were, and hostile ones are refused before they are unpacked."""

import zlib
from functools import partial

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from luma_core.checkpoint.format.compression import (
    WORKERS,
    Chunk,
    ChunkEncoder,
    StoredChunk,
    decode_chunk,
    decode_chunks,
    encode_chunk,
)
from luma_core.errors import CorruptCheckpointError


@settings(deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 700),
    st.integers(1, 256),
    st.sampled_from(["none", "zstd"]),
    st.integers(0, 2**32 - 1),
)
def test_chunks_round_trip(itemsize, count, levels, compression, seed):
    raw = np.random.default_rng(seed).integers(0, levels, count * itemsize).astype(np.uint8)
    data, chunk = encode_chunk(raw, itemsize, compression)
    assert len(data) == chunk.stored_bytes <= raw.nbytes
    out = np.full_like(raw, 7)
    decode_chunk(data, chunk, out, itemsize, "here")
    assert np.array_equal(out, raw)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_encoder_keeps_the_order(compression):
    raws = [np.full(1000 * (20 - i), i, np.uint8) for i in range(20)]
    with ChunkEncoder(compression) as encoder:
        results = list(encoder.encode(iter(raws), 1))
    for raw, (data, chunk) in zip(raws, results, strict=True):
        out = np.empty_like(raw)
        decode_chunk(data, chunk, out, 1, "here")
        assert np.array_equal(out, raw)


@pytest.mark.parametrize("count", [1, 30])
def test_chunks_of_a_tensor_are_decoded_side_by_side_and_few_at_a_time(count):
    raw = np.random.default_rng(0).integers(0, 3, 64 * count).astype(np.uint8)
    out = np.full_like(raw, 7)
    waiting = 0

    def read():
        nonlocal waiting
        for start in range(0, raw.size, 64):
            data, chunk = encode_chunk(raw[start : start + 64], 2, "zstd")
            done = np.count_nonzero((out.reshape(-1, 64) != 7).all(axis=1))
            waiting = max(waiting, start // 64 + 1 - done)
            yield StoredChunk(partial(bytes, data), chunk, out[start : start + 64])

    decode_chunks(read(), count, chunk_bytes=64, itemsize=2, where="here")
    assert np.array_equal(out, raw)
    assert waiting <= WORKERS + 2


def test_one_bad_chunk_among_many_is_refused():
    data, chunk = encode_chunk(np.zeros(64, np.uint8), 1, "zstd")
    bad = Chunk(chunk.stored_bytes, chunk.crc32 ^ 1, False)
    described = [bad if i == 7 else chunk for i in range(9)]
    read = partial(bytes, data)
    chunks = [StoredChunk(read, each, np.empty(64, np.uint8)) for each in described]
    with pytest.raises(CorruptCheckpointError, match=r"here: .*CRC-32"):
        decode_chunks(iter(chunks), len(chunks), chunk_bytes=64, itemsize=1, where="here")


def _frame(data, **options):
    frame = zstandard.ZstdCompressor(**{"write_checksum": True, **options}).compress(data)
    return frame, Chunk(len(frame), zlib.crc32(frame), False)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_frame(bytes(1 << 30)), "declares 1073741824 bytes and a checksum, expected 64"),
        (_frame(bytes(63)), "declares 63 bytes"),
        (_frame(bytes(64), write_checksum=False), "and no checksum"),
        (_frame(bytes(64), write_content_size=False), "declares"),
        ((b"junk", Chunk(4, zlib.crc32(b"junk"), False)), "zstd cannot read"),
        ((bytes(63), Chunk(63, zlib.crc32(bytes(63)), True)), "stores 63 bytes, expected 64"),
        ((bytes(64), Chunk(64, 1, True)), "CRC-32"),
        ((bytes(64), Chunk(65, zlib.crc32(bytes(64)), True)), "CRC-32"),
    ],
)
def test_chunks_that_are_not_as_described_are_refused(made, said):
    data, chunk = made
    with pytest.raises(CorruptCheckpointError, match=f"here: .*{said}"):
        decode_chunk(data, chunk, np.empty(64, np.uint8), 1, "here")


def test_bytes_after_a_frame_are_refused():
    frame, _ = _frame(bytes(64))
    data = frame + b"more"
    chunk = Chunk(len(data), zlib.crc32(data), False)
    with pytest.raises(CorruptCheckpointError):
        decode_chunk(data, chunk, np.empty(64, np.uint8), 1, "here")


def test_a_frame_with_a_wrong_checksum_is_refused():
    frame, _ = _frame(bytes(range(64)))
    data = frame[:-1] + bytes([frame[-1] ^ 1])
    chunk = Chunk(len(data), zlib.crc32(data), False)
    with pytest.raises(CorruptCheckpointError, match="zstd cannot read"):
        decode_chunk(data, chunk, np.empty(64, np.uint8), 1, "here")
