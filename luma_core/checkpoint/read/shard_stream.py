"""The shard stream: a shard is read once, and its bytes are hashed on their way into tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from luma_core.checkpoint.format.compression import MAX_WAITING_BYTES, Chunk, Delta, decode_chunk
from luma_core.checkpoint.format.dtypes import tensor_bytes, torch_dtype
from luma_core.checkpoint.format.manifest import TensorEntry
from luma_core.checkpoint.read.read_ahead import SPAN_BYTES, read_ahead
from luma_core.checkpoint.read.shard_reader import check_length, report_missing
from luma_core.checkpoint.staging.memory import new_tensor
from luma_core.checkpoint.storage.store import Store
from luma_core.direct import PAGE_BYTES, Bytes
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())
    np = import_later("numpy", globals())

_READERS = 2


class Room(Protocol):
    """Where the bytes of a stored tensor go, which may be a file."""

    def part(self, first: int, size_bytes: int) -> Bytes:
        """Return memory for bytes from ``first`` on, to be filled by one thread."""
        ...

    def filled(self, first: int, data: Bytes) -> None:
        """Take what `part` returned, now that it is filled."""
        ...


class Target(NamedTuple):
    """What takes tensors that are read.

    Attributes:
        put: called with each tensor, on the CPU, once its bytes are read.
        room: returns where a tensor's bytes go; ``None`` for new memory, which ``put`` gets then.
    """

    put: Callable[[TensorEntry, Tensor], None]
    room: Callable[[TensorEntry], Room | None] = lambda _: None


class _NewTensor:
    """Room in new memory."""

    def __init__(self, entry: TensorEntry) -> None:
        self.tensor = new_tensor(entry.shape, _dtype(entry))
        self._memory: Bytes = self.tensor.reshape(-1).view(torch.uint8).numpy()

    def part(self, first: int, size_bytes: int) -> Bytes:
        return self._memory[first : first + size_bytes]

    def filled(self, first: int, data: Bytes) -> None:
        """Do nothing: it is in place."""


class _ChunkRead(NamedTuple):
    """A chunk inside a span, or some bytes of one that is raw.

    Attributes:
        entry: of its tensor.
        room: of its tensor.
        first: its first raw byte there.
        size_bytes: its raw bytes.
        place: its number there.
        chunk: its description; None where these are bytes of the tensor.
    """

    entry: TensorEntry
    room: Room
    first: int
    size_bytes: int
    place: int
    chunk: Chunk | None

    @property
    def stored_bytes(self) -> int:
        """Its length in the file."""
        return self.size_bytes if self.chunk is None else self.chunk.stored_bytes


@dataclass
class _Span:
    """Neighbouring bytes of a shard that are read at once.

    Attributes:
        start: of the first byte in the file.
        stop: behind the last.
        chunks: those inside, or bytes of them, in order.
        ended: tensors whose last chunk is inside, with their entries.
    """

    start: int
    stop: int
    chunks: list[_ChunkRead] = field(default_factory=list)
    ended: list[tuple[TensorEntry, Tensor]] = field(default_factory=list)

    def room_bytes(self) -> int:
        """Return how many bytes of a raw chunk fit.

        A span of them ends at a multiple of its greatest length, where reading is fast.
        """
        left = SPAN_BYTES - self.stop % SPAN_BYTES
        return left if self.stop + left <= self.start + SPAN_BYTES else 0

    def has_room(self, chunk: Chunk) -> bool:
        """Whether a chunk that cannot be divided fits, with the whole pages around the span."""
        size = self.stop - self.start + chunk.stored_bytes
        return not self.chunks or size <= SPAN_BYTES - 2 * PAGE_BYTES

    def add(self, read: _ChunkRead) -> None:
        self.chunks.append(read)
        self.stop += read.stored_bytes


def _spans(
    entries: Sequence[TensorEntry], start: int, chunk_bytes: int, target: Target
) -> Iterator[_Span]:
    span = _Span(start, start)
    for entry in entries:
        room = target.room(entry) or _NewTensor(entry)
        for read in _chunk_reads(entry, room, chunk_bytes):
            if read.chunk is not None and not span.has_room(read.chunk):
                yield span
                span = _Span(span.stop, span.stop)
            while read.chunk is None and read.size_bytes > (fits := span.room_bytes()):
                if fits:
                    span.add(read._replace(size_bytes=fits))
                yield span
                span = _Span(span.stop, span.stop)
                read = read._replace(first=read.first + fits, size_bytes=read.size_bytes - fits)
            span.add(read)
        if isinstance(room, _NewTensor):
            span.ended.append((entry, room.tensor))
    yield span


def _chunk_reads(entry: TensorEntry, room: Room, chunk_bytes: int) -> Iterator[_ChunkRead]:
    """Yield a tensor's chunks."""
    left = tensor_bytes(_dtype(entry), entry.shape)
    for place, chunk in enumerate(entry.chunks):
        size = min(left, chunk_bytes)
        left -= size
        yield _ChunkRead(
            entry, room, place * chunk_bytes, size, place, None if chunk.raw else chunk
        )


def read_shard(
    store: Store,
    name: str,
    entries: Sequence[TensorEntry],
    *,
    header: bytes,
    chunk_bytes: int,
    tick: Callable[[int], None],
    target: Target,
    delta: Callable[[TensorEntry, int], Delta | None],
) -> str:
    """Read all tensors of a shard and return the SHA-256 of the file in hex.

    Bytes of raw chunks may be trusted only if that SHA-256 is right. Compressed ones are also
    checked by their CRC-32, before they are decompressed.

    Args:
        store: where it lies.
        name: of the file.
        entries: its tensors, by offset.
        header: the file's head, known to be what the manifest implies.
        chunk_bytes: raw bytes per chunk.
        tick: called with numbers of bytes read.
        target: takes the tensors.
        delta: returns the delta base of a chunk, by its number in its tensor.

    Raises:
        CorruptCheckpointError: the file is missing or ends early, or a chunk cannot be decoded.
    """
    where = f"{store.url}/{name}"

    def use(span: _Span, data: memoryview) -> None:
        check_length(store, name, span.start + len(data), span.stop)
        for read in span.chunks:
            piece, data = data[: read.stored_bytes], data[read.stored_bytes :]
            out = read.room.part(read.first, read.size_bytes)
            if read.chunk is None:
                np.copyto(out, np.frombuffer(piece, np.uint8))
            else:
                told = f"{where}: tensor {read.entry.name!r}"
                itemsize = _dtype(read.entry).itemsize
                change = delta(read.entry, read.place)
                decode_chunk(piece, read.chunk, out, itemsize, told, change)
            read.room.filled(read.first, out)

    digest = hashlib.sha256(header)
    tick(len(header))
    spans = _spans(entries, len(header), chunk_bytes, target)
    readers = max(min(_READERS, MAX_WAITING_BYTES // chunk_bytes), 1)
    with report_missing(store, name), store.reader(name) as reader:
        for span, data in read_ahead(reader, spans, threads=readers, use=use):
            digest.update(data)
            tick(len(data))
            for entry, tensor in span.ended:
                target.put(entry, tensor)
    return digest.hexdigest()


def _dtype(entry: TensorEntry) -> torch.dtype:
    dtype = torch_dtype(entry.dtype)
    assert dtype is not None
    return dtype
