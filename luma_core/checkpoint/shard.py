"""Shards: safetensors files written from start to end, and read back tensor by tensor.

A shard's header follows from the manifest byte for byte, so a reader compares instead of parsing:
no header is trusted, and none is allocated by its own claim.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from luma_core.checkpoint.budget import Budget
from luma_core.checkpoint.compression import (
    Bytes,
    Chunk,
    ChunkEncoder,
    Compression,
    StoredChunk,
    decode_chunks,
)
from luma_core.checkpoint.dtypes import dtype_name, tensor_bytes, torch_dtype
from luma_core.checkpoint.manifest import FileEntry, TensorEntry
from luma_core.checkpoint.names import ShardKind
from luma_core.checkpoint.store import ObjectWriter, Store
from luma_core.errors import CorruptCheckpointError, StateMismatchError

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
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return tensor_bytes(self.dtype, self.shape)

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


def plan_shards(
    tensors: Iterable[PlannedTensor], max_shard_bytes: int
) -> list[list[PlannedTensor]]:
    """Distribute tensors over shards in their order; one larger than the bound has its own."""
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
    ) -> None:
        self._store = store
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
            chunks = (Chunk(tensor.nbytes, 0, True),)
            entries.append(_entry(file, tensor, offset, chunks))
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
            left = tensor.nbytes
            pieces = raw_chunks(tensor.checked(), self._chunk_bytes)
            for data, chunk in encoder.encode(pieces, tensor.dtype.itemsize):
                sink.write(data)
                chunks.append(chunk)
                covered = min(left, self._chunk_bytes)
                left -= covered
                self._tick(covered)
            entries.append(_entry(file, tensor, offset, tuple(chunks)))
            offset += entries[-1].stored_bytes
        return entries


class _Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> object: ...


class _HashingSink:
    """Measures what passes through to a writer; hashes large pieces while they are written."""

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


def _entry(file: str, tensor: PlannedTensor, offset: int, chunks: tuple[Chunk, ...]) -> TensorEntry:
    stored = dtype_name(tensor.dtype)
    assert stored is not None
    return TensorEntry(tensor.name, file, stored, tensor.shape, offset, chunks)


def written_by_us(store: Store, name: str) -> bool:
    """Whether a file bears the mark of our shards, so that it is ours to remove."""
    head = store.read_range(name, 0, 8 + 64)
    return f'"{_GENERATION_KEY}"'.encode() in head


class ShardReader:
    """Reads tensors of one shard; checks its header first.

    Args:
        store: where it lies.
        file: its entry in the manifest.
        entries: its tensors, by offset.
        chunk_bytes: raw bytes per chunk.
        generation: of the checkpoint.

    Attributes:
        header: the file's head, as found and as the manifest implies.
    """

    def __init__(
        self,
        store: Store,
        file: FileEntry,
        entries: Sequence[TensorEntry],
        *,
        chunk_bytes: int,
        generation: int,
    ) -> None:
        self._store = store
        self._chunk_bytes = chunk_bytes
        self._where = f"{store.url}/{file.name}"
        self._name = file.name
        self.header = header_bytes(entries, generation)
        self._data_start = self._check_header(file, self.header, entries)

    def _check_header(
        self, file: FileEntry, expected: bytes, entries: Sequence[TensorEntry]
    ) -> int:
        end = len(expected) + sum(entry.stored_bytes for entry in entries)
        if end != file.bytes or len(expected) - 8 > MAX_HEADER_BYTES:
            raise CorruptCheckpointError(
                f"{self._where}: the manifest says {file.bytes} bytes, but its tensors and header "
                f"take {end}."
            )
        found = read_exactly(self._store, file.name, 0, len(expected))
        if found[:8] != expected[:8]:
            raise CorruptCheckpointError(
                f"{self._where}: the header claims {int.from_bytes(found[:8], 'little')} bytes, "
                f"expected {len(expected) - 8}."
            )
        if found != expected:
            raise CorruptCheckpointError(
                f"{self._where}: the header disagrees with the manifest about the tensors inside."
            )
        return len(expected)

    def read(self, entry: TensorEntry) -> Tensor:
        """Return one tensor on the CPU, its checksums checked.

        Raises:
            CorruptCheckpointError: its bytes are not those that were written.
        """
        return self.read_elements(entry, 0, math.prod(entry.shape)).view(entry.shape)

    def read_elements(self, entry: TensorEntry, start: int, stop: int) -> Tensor:
        """Return the elements ``[start, stop)`` of a tensor in C order, 1-D on the CPU.

        Only the chunks that hold them are read, and their checksums checked.

        Raises:
            CorruptCheckpointError: their bytes are not those that were written.
        """
        dtype = torch_dtype(entry.dtype)
        assert dtype is not None
        per_chunk = self._chunk_bytes // dtype.itemsize
        chunks = range(start // per_chunk, -(-stop // per_chunk) if stop > start else 0)
        first = chunks.start * per_chunk
        count = max(min(chunks.stop * per_chunk, math.prod(entry.shape)) - first, 0)
        covered = torch.empty(count, dtype=dtype)
        decode_chunks(
            self._stored_chunks(entry, chunks, covered.view(torch.uint8).numpy()),
            len(chunks),
            chunk_bytes=self._chunk_bytes,
            itemsize=dtype.itemsize,
            where=f"{self._where}: tensor {entry.name!r}",
        )
        return covered[start - first : max(start, stop) - first]

    def _stored_chunks(
        self, entry: TensorEntry, chunks: range, out: Bytes
    ) -> Iterator[StoredChunk]:
        start = self._data_start + entry.offset
        start += sum(chunk.stored_bytes for chunk in entry.chunks[: chunks.start])
        for place, chunk in enumerate(entry.chunks[chunks.start : chunks.stop]):
            stop = start + chunk.stored_bytes
            read = partial(read_exactly, self._store, self._name, start, stop)
            piece = out[place * self._chunk_bytes : (place + 1) * self._chunk_bytes]
            yield StoredChunk(read, chunk, piece)
            start = stop


def read_exactly(store: Store, name: str, start: int, stop: int) -> bytes:
    """Return the bytes ``[start, stop)`` of a file.

    Raises:
        CorruptCheckpointError: the file is missing or ends before.
    """
    try:
        data = store.read_range(name, start, stop)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{store.url}/{name}: the file is missing.") from error
    _check_length(store, name, start + len(data), stop)
    return data


def read_exactly_into(store: Store, name: str, start: int, out: memoryview) -> None:
    """Fill ``out`` with the bytes from ``start`` on.

    Raises:
        CorruptCheckpointError: the file is missing or ends before.
    """
    try:
        count = store.read_into(name, start, out)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{store.url}/{name}: the file is missing.") from error
    _check_length(store, name, start + count, start + len(out))


def _check_length(store: Store, name: str, found_bytes: int, needed_bytes: int) -> None:
    if found_bytes != needed_bytes:
        raise CorruptCheckpointError(
            f"{store.url}/{name}: the file ends at byte {found_bytes}, "
            f"expected at least {needed_bytes}."
        )
