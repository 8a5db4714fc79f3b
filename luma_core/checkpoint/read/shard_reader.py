"""Reading shards tensor by tensor, or some elements of one.

A shard's header follows from the manifest byte for byte, so a reader compares instead of parsing:
no header is trusted, and none is allocated by its own claim.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from luma_core.checkpoint.format.compression import Delta, StoredChunk, decode_chunks
from luma_core.checkpoint.format.dtypes import torch_dtype
from luma_core.checkpoint.format.manifest import FileEntry, TensorEntry
from luma_core.checkpoint.format.shard import MAX_HEADER_BYTES, header_bytes
from luma_core.checkpoint.staging.memory import new_tensor
from luma_core.checkpoint.storage.store import Store
from luma_core.direct import Bytes
from luma_core.errors import CorruptCheckpointError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


class ShardReader:
    """Reads tensors of one shard; checks its header first.

    Args:
        store: where it lies.
        file: its entry in the manifest.
        entries: its tensors, by offset.
        chunk_bytes: raw bytes per chunk.
        generation: of the checkpoint.
        delta: returns what a chunk, by its number in its tensor, is a difference to.

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
        delta: Callable[[TensorEntry, int], Delta | None],
    ) -> None:
        self._store = store
        self._chunk_bytes = chunk_bytes
        self._delta = delta
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
        covered = new_tensor((count,), dtype)
        self._decode(entry, chunks, covered.view(torch.uint8).numpy(), dtype.itemsize)
        return covered[start - first : max(start, stop) - first]

    def read_into(self, entry: TensorEntry, start: int, out: Bytes) -> None:
        """Read elements from ``start`` on into ``out``, 1-D bytes of as many as are wanted.

        Raises:
            CorruptCheckpointError: their bytes are not those that were written.
        """
        dtype = torch_dtype(entry.dtype)
        assert dtype is not None
        per_chunk = self._chunk_bytes // dtype.itemsize
        stop = start + out.nbytes // dtype.itemsize
        if start % per_chunk == 0 and (stop % per_chunk == 0 or stop == math.prod(entry.shape)):
            chunks = range(start // per_chunk, -(-stop // per_chunk))
            self._decode(entry, chunks, out, dtype.itemsize)
        else:
            out[:] = self.read_elements(entry, start, stop).view(torch.uint8).numpy()

    def _decode(self, entry: TensorEntry, chunks: range, out: Bytes, itemsize: int) -> None:
        decode_chunks(
            self._stored_chunks(entry, chunks, out),
            len(chunks),
            chunk_bytes=self._chunk_bytes,
            itemsize=itemsize,
            where=f"{self._where}: tensor {entry.name!r}",
        )

    def _stored_chunks(
        self, entry: TensorEntry, chunks: range, out: Bytes
    ) -> Iterator[StoredChunk]:
        start = self._data_start + entry.offset
        start += sum(chunk.stored_bytes for chunk in entry.chunks[: chunks.start])
        for place, chunk in enumerate(entry.chunks[chunks.start : chunks.stop]):
            stop = start + chunk.stored_bytes
            read = partial(read_exactly, self._store, self._name, start, stop)
            piece = out[place * self._chunk_bytes : (place + 1) * self._chunk_bytes]
            yield StoredChunk(read, chunk, piece, self._delta(entry, chunks.start + place))
            start = stop


def read_exactly(store: Store, name: str, start: int, stop: int) -> bytes:
    """Return the bytes ``[start, stop)`` of a file.

    Raises:
        CorruptCheckpointError: the file is missing or ends before.
    """
    with report_missing(store, name):
        data = store.read_range(name, start, stop)
    check_length(store, name, start + len(data), stop)
    return data


@contextlib.contextmanager
def report_missing(store: Store, name: str) -> Iterator[None]:
    """Turn a file's absence into a `CorruptCheckpointError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{store.url}/{name}: the file is missing.") from error


def check_length(store: Store, name: str, found_bytes: int, needed_bytes: int) -> None:
    """Refuse a file that ends too early.

    Raises:
        CorruptCheckpointError: ``found_bytes``, where it ended, are not ``needed_bytes``.
    """
    if found_bytes != needed_bytes:
        raise CorruptCheckpointError(
            f"{store.url}/{name}: the file ends at byte {found_bytes}, "
            f"expected at least {needed_bytes}."
        )
