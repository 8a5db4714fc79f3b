"""Shards: safetensors files, written from start to end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from luma_core import mapped
from luma_core.checkpoint.format.compression import Chunk, ChunkEncoder, Compression
from luma_core.checkpoint.format.delta import Encoded, ReadBase, encode_against
from luma_core.checkpoint.format.dtypes import dtype_name, tensor_bytes
from luma_core.checkpoint.format.manifest import Box, FileEntry, TensorEntry, TensorPlace
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.names import ShardKind
from luma_core.checkpoint.storage.store import ObjectWriter, Store
from luma_core.direct import Bytes
from luma_core.errors import StateMismatchError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

MAX_HEADER_BYTES = 100_000_000
"""Readers of safetensors refuse longer headers."""

_COPY_BYTES = 1 << 20
_GENERATION_KEY = "luma_generation"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        name: its stored name.
        dtype: its dtype.
        shape: its shape.
        load: returns it when its turn comes, on any device.
        first_row: where it begins in dimension 0 of the tensor that it is a piece of; None where
            it is whole.
        box: the part of the parameter whose field it is, where the moment is stored in parts.
        pieces: yields its bytes, piece by piece of at most so many, instead of ``load``.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    first_row: int | None = None
    box: Box | None = None
    pieces: Callable[[int], Iterator[Bytes]] | None = None

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return tensor_bytes(self.dtype, self.shape)

    @property
    def place(self) -> TensorPlace:
        """What it has in common with its counterpart in a delta base, beside dtype and shape."""
        return self.name, self.first_row or 0, self.box

    def checked(self) -> Tensor:
        """Return the tensor.

        Raises:
            StateMismatchError: it is not of the dtype and shape that were announced.
        """
        tensor = self.load()
        if tensor.dtype != self.dtype or tuple(tensor.shape) != self.shape:
            raise StateMismatchError(
                f"{self.name!r} is {tensor.dtype} of shape {list(tensor.shape)}; "
                f"it must be {self.dtype} of shape {list(self.shape)}."
            )
        return tensor

    def chunks(self, chunk_bytes: int) -> Iterator[Bytes]:
        """Yield its bytes in pieces, the CPU's; raises what `checked` does."""
        if self.pieces is not None:
            return self.pieces(chunk_bytes)
        return raw_chunks(self.checked(), chunk_bytes)


def plan_shards(
    tensors: Iterable[PlannedTensor], max_shard_bytes: int
) -> list[list[PlannedTensor]]:
    """Distribute tensors over shards in order; a tensor above the bound gets its own shard."""
    shards: list[list[PlannedTensor]] = []
    room = -1
    for tensor in tensors:
        if tensor.nbytes > room or not shards:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def header_bytes(entries: Sequence[TensorEntry], generation: int) -> bytes:
    """Return the head of a shard: the 8 length bytes and the JSON, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _GENERATION_KEY: str(generation)}}
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype if entry.raw else "U8",
            "shape": list(entry.shape) if entry.raw else [entry.stored_bytes],
            "data_offsets": [entry.offset, entry.offset + entry.stored_bytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_chunks(tensor: Tensor, chunk_bytes: int) -> Iterator[Bytes]:
    """Yield the bytes of a tensor in pieces, brought to the CPU one by one."""
    from_file = mapped.pieces(tensor, chunk_bytes)
    if from_file is not None:
        yield from from_file
        return
    flat = tensor.detach().reshape(-1)
    step = chunk_bytes // flat.element_size()
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].contiguous().view(torch.uint8).cpu().numpy()


class ShardWriter:
    """Writes shards of one checkpoint.

    Args:
        store: where to.
        compression: how their tensors are stored.
        chunk_bytes: raw bytes per chunk.
        generation: of the checkpoint.
        budget: how much memory one shard may take.
        tick: called with the number of raw bytes done, chunk by chunk.
        base: returns what reads a tensor's counterpart in the base; None where there is none.
    """

    def __init__(
        self,
        store: Store,
        *,
        compression: Compression,
        chunk_bytes: int,
        generation: int,
        budget: Budget,
        tick: Callable[[int], None],
        base: Callable[[PlannedTensor], ReadBase | None] | None = None,
    ) -> None:
        self._store = store
        self._base = base
        self._compression = compression
        self._chunk_bytes = chunk_bytes
        self._generation = generation
        self._budget = budget
        self._tick = tick

    def write(
        self, name: str, kind: ShardKind, tensors: Sequence[PlannedTensor]
    ) -> tuple[FileEntry, list[TensorEntry]]:
        """Write one shard and return what the manifest says of it.

        The header precedes the tensors' bytes but gives their stored sizes, so a compressed body
        waits in a scratch file until they are known.

        Raises:
            StateMismatchError: a tensor is not of the dtype and shape that were announced.
        """
        encoding = ChunkEncoder(self._compression, workers=self._budget.workers)
        with encoding as encoder, self._store.write(name) as out, _HashingSink(out) as sink:
            if self._compression == "none":
                sink.write(header_bytes(self._raw_entries(name, tensors), self._generation))
                entries = self._write_body(sink, encoder, name, tensors)
            else:
                with self._store.scratch(self._budget.scratch_bytes) as body:
                    entries = self._write_body(body, encoder, name, tensors)
                    sink.write(header_bytes(entries, self._generation))
                    body.seek(0)
                    while piece := body.read(_COPY_BYTES):
                        sink.write(piece)
            out.commit()
        return FileEntry(name, sink.size, sink.sha256.hexdigest(), kind), entries

    def _raw_entries(self, file: str, tensors: Sequence[PlannedTensor]) -> list[TensorEntry]:
        """Return entries good enough for a header: uncompressed sizes need no data."""
        entries = []
        offset = 0
        for tensor in tensors:
            entries.append(_entry(file, tensor, offset, [Chunk(tensor.nbytes, 0, True)], []))
            offset += tensor.nbytes
        return entries

    def _write_body(
        self,
        sink: _Sink,
        encoder: ChunkEncoder,
        file: str,
        tensors: Sequence[PlannedTensor],
    ) -> list[TensorEntry]:
        entries = []
        offset = 0
        for tensor in tensors:
            chunks = []
            deltas = []
            left = tensor.nbytes
            for data, chunk, delta in self._encoded(encoder, tensor):
                sink.write(data)
                chunks.append(chunk)
                deltas.append(delta)
                covered = min(left, self._chunk_bytes)
                left -= covered
                self._tick(covered)
            entries.append(_entry(file, tensor, offset, chunks, deltas))
            offset += entries[-1].stored_bytes
        return entries

    def _encoded(self, encoder: ChunkEncoder, tensor: PlannedTensor) -> Iterator[Encoded]:
        pieces = tensor.chunks(self._chunk_bytes)
        read = self._base(tensor) if self._base is not None else None
        if read is not None:
            return encode_against(encoder, pieces, tensor.dtype.itemsize, read, self._chunk_bytes)
        encoded = encoder.encode(pieces, tensor.dtype.itemsize)
        return (Encoded(data, chunk, None) for data, chunk in encoded)


class _Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> object: ...


class _HashingSink:
    """Measures what passes through to a writer; hashes large pieces while they are written.

    When `write` returns, the data are used no more: they may be state that a step is to change.
    """

    def __init__(self, out: ObjectWriter) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(1)
        self.sha256 = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()

    def write(self, data: bytes | memoryview, /) -> None:
        self.size += len(data)
        if len(data) < _COPY_BYTES:
            self.sha256.update(data)
            self._out.write(data)
            return
        hashed = self._pool.submit(self.sha256.update, data)
        try:
            self._out.write(data)
        finally:
            hashed.result()


def _entry(
    file: str,
    tensor: PlannedTensor,
    offset: int,
    chunks: Sequence[Chunk],
    deltas: Sequence[int | None],
) -> TensorEntry:
    stored = dtype_name(tensor.dtype)
    assert stored is not None
    some = tuple(deltas) if any(delta is not None for delta in deltas) else ()
    return TensorEntry(
        name=tensor.name,
        file=file,
        dtype=stored,
        shape=tensor.shape,
        offset=offset,
        chunks=tuple(chunks),
        deltas=some,
        first_row=tensor.first_row,
        box=tensor.box,
    )


def written_by_us(store: Store, name: str) -> bool:
    """Whether a file bears the mark of our shards, so that it is ours to remove."""
    head = store.read_range(name, 0, 8 + 64)
    return f'"{_GENERATION_KEY}"'.encode() in head
