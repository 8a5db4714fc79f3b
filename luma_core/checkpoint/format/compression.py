"""Lossless compression of tensors in chunks that can be read and checked one by one.

A chunk covers a fixed number of raw bytes. Its elements' bytes are split into planes (all lowest
bytes, then the next, ...), because the high bytes of codes and floats repeat and the low ones do
not; the planes form one zstd frame with checksum. A chunk that does not shrink is kept as it is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeVar

import zstandard
from isal.isal_zlib import crc32

from luma_core.checkpoint.format.zigzag import add_difference, difference
from luma_core.direct import Bytes
from luma_core.errors import CorruptCheckpointError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
else:
    np = import_later("numpy", globals())

Compression = Literal["none", "zstd"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "zstd")

CHUNK_BYTES = 4 << 20
"""Raw bytes of a chunk (the last of a tensor may be shorter)."""

MAX_CHUNK_BYTES = 64 << 20
"""A manifest that asks for larger chunks than this is refused: they bound a reader's memory."""

ZSTD_LEVEL = 1
"""Higher levels bought nothing on LUMA's codes: ``benchmarks/compression.py`` prints the table."""

WORKERS = 4

MAX_WAITING_BYTES = 32 << 20
"""Bound on the raw bytes of chunks that are decoded at the same time; one is always taken."""


A = TypeVar("A")
T = TypeVar("T")

_thread = threading.local()


class Delta(NamedTuple):
    """How a chunk that is stored as a difference becomes itself again.

    Attributes:
        fill: writes the base's bytes, as many as the chunk covers, into 1-D memory.
        crc32: CRC-32 of the chunk's raw bytes.
    """

    fill: Callable[[Bytes], None]
    crc32: int


class Chunk(NamedTuple):
    """How one chunk is stored.

    Attributes:
        stored_bytes: its size in the file.
        crc32: CRC-32 of its stored bytes.
        raw: whether the stored bytes are the tensor's own.
    """

    stored_bytes: int
    crc32: int
    raw: bool


def encode_chunk(
    raw: Bytes, itemsize: int, compression: Compression
) -> tuple[bytes | memoryview, Chunk]:
    """Return a chunk's stored bytes, which may be ``raw``'s own memory, and their description.

    Args:
        raw: 1-D bytes of whole elements.
        itemsize: bytes of one element.
        compression: how to store them.
    """
    if compression == "zstd":
        frame = _compressed_planes(raw, itemsize)
        if len(frame) < raw.nbytes:
            return frame, Chunk(len(frame), crc32(frame), False)
    return raw.data, Chunk(raw.nbytes, crc32(raw.data), True)


def encode_difference(raw: Bytes, base: Bytes, itemsize: int) -> tuple[bytes, Chunk]:
    """Return a chunk's stored bytes as a difference to ``base``, and their description.

    Args:
        raw: 1-D bytes of whole elements.
        base: the base's, as many.
        itemsize: bytes of one element.
    """
    frame = _compressed_planes(difference(raw, base, itemsize), itemsize)
    return frame, Chunk(len(frame), crc32(frame), False)


def _compressed_planes(raw: Bytes, itemsize: int) -> bytes:
    planes = np.ascontiguousarray(raw.reshape(-1, itemsize).T)
    return _compressor().compress(planes.data)


def decode_chunk(
    data: bytes | memoryview,
    chunk: Chunk,
    out: Bytes,
    itemsize: int,
    where: str,
    delta: Delta | None = None,
) -> None:
    """Write a chunk's raw bytes into ``out``.

    Args:
        data: the stored bytes.
        chunk: their description.
        out: 1-D bytes, as many as the chunk covers.
        itemsize: bytes of one element.
        where: what is being read, for messages.
        delta: what is added, where the stored bytes are a difference.

    Raises:
        CorruptCheckpointError: the data do not match their description.
    """
    if len(data) != chunk.stored_bytes or crc32(data) != chunk.crc32:
        raise CorruptCheckpointError(f"{where}: a chunk's CRC-32 differs from the manifest's.")
    if chunk.raw:
        if len(data) != out.nbytes:
            raise CorruptCheckpointError(
                f"{where}: a chunk stores {len(data)} bytes, expected {out.nbytes}."
            )
        out[:] = np.frombuffer(data, np.uint8)
        return
    planes = np.frombuffer(_decompress(data, out.nbytes, where), np.uint8)
    if delta is None:
        out.reshape(-1, itemsize)[:] = planes.reshape(itemsize, -1).T
        return
    coded: Bytes = np.array(planes.reshape(itemsize, -1).T, order="C").reshape(-1)
    del planes
    delta.fill(out)
    add_difference(coded, out, itemsize)
    if crc32(out.data) != delta.crc32:
        raise CorruptCheckpointError(
            f"{where}: base and difference together have another CRC-32 than the manifest's.",
            hint="Verify the checkpoint and its base with `luma verify`.",
        )


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's compressor: its context is costly to make and not shareable."""
    made: zstandard.ZstdCompressor | None = getattr(_thread, "compressor", None)
    if made is None:
        made = zstandard.ZstdCompressor(
            level=ZSTD_LEVEL, write_checksum=True, write_content_size=True
        )
        _thread.compressor = made
    return made


def _decompress(frame: bytes | memoryview, raw_bytes: int, where: str) -> bytes:
    try:
        parameters = zstandard.get_frame_parameters(frame)
        # The library trusts the size that the frame declares, and allocates it.
        if parameters.content_size != raw_bytes or not parameters.has_checksum:
            raise CorruptCheckpointError(
                f"{where}: a zstd frame declares {parameters.content_size} bytes and "
                f"{'a' if parameters.has_checksum else 'no'} checksum, expected {raw_bytes} "
                "bytes and a checksum."
            )
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptCheckpointError(f"{where}: zstd cannot read a chunk: {error}.") from error
    if len(data) != raw_bytes:
        raise CorruptCheckpointError(
            f"{where}: a chunk holds {len(data)} bytes, expected {raw_bytes}."
        )
    return data


class StoredChunk(NamedTuple):
    """A chunk that is to be read and decoded.

    Attributes:
        read: returns its stored bytes.
        chunk: their description.
        out: where its raw bytes go, 1-D.
        delta: what is added, where it is a difference.
    """

    read: Callable[[], bytes]
    chunk: Chunk
    out: Bytes
    delta: Delta | None = None


def decode_chunks(
    chunks: Iterable[StoredChunk], count: int, *, chunk_bytes: int, itemsize: int, where: str
) -> None:
    """Read and decode chunks on several threads; few are in memory at a time.

    Args:
        chunks: what is wanted.
        count: how many there are.
        chunk_bytes: raw bytes of the longest.
        itemsize: bytes of one element.
        where: what is being read, for messages.

    Raises:
        CorruptCheckpointError: a chunk's data do not match its description.
    """

    def decode(item: StoredChunk) -> None:
        decode_chunk(item.read(), item.chunk, item.out, itemsize, where, item.delta)

    workers = min(WORKERS, count, MAX_WAITING_BYTES // chunk_bytes)
    if workers < 2:
        for item in chunks:
            decode(item)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in in_order(pool, decode, chunks, waiting=workers):
            pass


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[A], T], items: Iterable[A], *, waiting: int
) -> Iterator[T]:
    """Yield the results of ``work`` in the order of ``items``, at most ``waiting`` ahead."""
    begun: deque[Future[T]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > waiting:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class ChunkEncoder:
    """Encodes chunks on several threads (zstd releases the GIL) and returns them in order.

    Args:
        compression: how they are stored.
        workers: number of threads.
    """

    def __init__(self, compression: Compression, *, workers: int = WORKERS) -> None:
        self._compression = compression
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers) if compression == "zstd" else None

    def encode(
        self, chunks: Iterable[Bytes], itemsize: int
    ) -> Iterator[tuple[bytes | memoryview, Chunk]]:
        """Yield stored bytes and description of each chunk; few are in memory at a time."""
        yield from self.each(lambda raw: encode_chunk(raw, itemsize, self._compression), chunks)

    def each(self, work: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        """Yield the results of ``work`` in the order of ``items``, done on the same threads."""
        if self._pool is None:
            yield from map(work, items)
            return
        yield from in_order(self._pool, work, items, waiting=self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
