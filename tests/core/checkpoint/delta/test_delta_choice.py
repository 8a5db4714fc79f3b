"""Which chunks become differences, and how often each is compressed for that."""

import numpy as np
import pytest

from luma_core.checkpoint.format import delta
from luma_core.checkpoint.format.compression import ChunkEncoder

CHUNK_BYTES = 1 << 14


def chunks(*scales):
    """Chunks of random codes and what they are differences to: less of it, the larger the scale."""
    rng = np.random.default_rng(0)
    base = [rng.integers(0, 1 << 14, CHUNK_BYTES // 2, dtype=np.uint16) for _ in scales]
    new = [
        old + rng.integers(0, scale, old.size, dtype=np.uint16)
        for old, scale in zip(base, scales, strict=True)
    ]
    return [values.view(np.uint8) for values in new], np.concatenate(base).view(np.uint8)


@pytest.mark.parametrize(
    ("scales", "differ", "as_they_are"),
    [
        ((4, 4, 4, 4), "dddd", 1),
        ((4, 4, 1 << 15, 4), "dd-d", 2),
        ((1 << 15, 4, 4), "---", 3),
        ((4,), "d", 1),
    ],
)
def test_the_first_chunk_tells_what_to_expect(monkeypatch, scales, differ, as_they_are):
    raw, base = chunks(*scales)
    compressed = []
    encode = delta.encode_chunk

    def counted(*arguments):
        compressed.append(arguments)
        return encode(*arguments)

    def read(start, out):
        out[:] = base[2 * start :][: out.nbytes]

    monkeypatch.setattr(delta, "encode_chunk", counted)
    monkeypatch.setattr("luma_core.checkpoint.format.compression.encode_chunk", counted)
    with ChunkEncoder("zstd", workers=2) as encoder:
        found = list(delta.encode_against(encoder, raw, 2, read, CHUNK_BYTES))
    assert "".join("-" if chunk.crc32 is None else "d" for chunk in found) == differ
    assert len(compressed) == as_they_are
