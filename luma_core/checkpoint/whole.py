"""Reading a whole shard once: its bytes are hashed on their way into tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luma_core.checkpoint.compression import (
    MAX_WAITING_BYTES,
    Bytes,
    Chunk,
    Delta,
    decode_chunk,
    in_order,
)
from luma_core.checkpoint.dtypes import torch_dtype
from luma_core.checkpoint.manifest import TensorEntry
from luma_core.checkpoint.memory import new_tensor
from luma_core.checkpoint.shard_reader import read_exactly, read_exactly_into
from luma_core.checkpoint.store import Store

_SPAN_BYTES = 4 << 20
_READERS = 2


@dataclass
class _Span:
    """Neighbouring bytes of a shard that are read at once.

    Attributes:
        start: of the first byte in the file.
        stored_bytes: its length.
        parts: chunks inside, in order, each with its tensor's entry, its number there and where its
            raw bytes go.
        ended: tensors whose last chunk is inside, with their entries.
    """

    start: int
    stored_bytes: int = 0
    parts: list[tuple[TensorEntry, int, Chunk, Bytes]] = field(default_factory=list)
    ended: list[tuple[TensorEntry, Tensor]] = field(default_factory=list)


def _spans(entries: Sequence[TensorEntry], start: int, chunk_bytes: int) -> Iterator[_Span]:
    span = _Span(start)
    for entry in entries:
        dtype = torch_dtype(entry.dtype)
        assert dtype is not None
        tensor = new_tensor(entry.shape, dtype)
        memory: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
        for place, chunk in enumerate(entry.chunks):
            if span.parts and span.stored_bytes + chunk.stored_bytes > _SPAN_BYTES:
                yield span
                span = _Span(span.start + span.stored_bytes)
            out = memory[place * chunk_bytes : (place + 1) * chunk_bytes]
            span.parts.append((entry, place, chunk, out))
            span.stored_bytes += chunk.stored_bytes
        span.ended.append((entry, tensor))
    yield span


def read_shard(
    store: Store,
    name: str,
    entries: Sequence[TensorEntry],
    *,
    header: bytes,
    chunk_bytes: int,
    tick: Callable[[int], None],
    ended: Callable[[TensorEntry, Tensor], None],
    delta: Callable[[TensorEntry, int], Delta | None],
) -> str:
    """Read all tensors of a shard and return the SHA-256 of the file in hex.

    Raw chunks are read into their tensors; their bytes may be trusted only if that SHA-256 is
    right. Compressed ones are also checked by their CRC-32, before they are decompressed.

    Args:
        store: where it lies.
        name: of the file.
        entries: its tensors, by offset.
        header: the file's head, known to be what the manifest implies.
        chunk_bytes: raw bytes per chunk.
        tick: called with numbers of bytes read.
        ended: called with each tensor, on the CPU, once its bytes are read.
        delta: returns what a chunk, by its number in its tensor, is a difference to.

    Raises:
        CorruptCheckpointError: the file is missing or ends early, or a chunk cannot be decoded.
    """
    where = f"{store.url}/{name}"

    def fetch(span: _Span) -> tuple[_Span, bytes | memoryview]:
        stop = span.start + span.stored_bytes
        if len(span.parts) == 1 and span.parts[0][2].raw:
            out = span.parts[0][3]
            read_exactly_into(store, name, span.start, out.data)
            return span, out.data
        data = read_exactly(store, name, span.start, stop) if span.parts else b""
        at = 0
        for entry, place, chunk, out in span.parts:
            piece = memoryview(data)[at : at + chunk.stored_bytes]
            dtype = torch_dtype(entry.dtype)
            assert dtype is not None
            told = f"{where}: tensor {entry.name!r}"
            decode_chunk(piece, chunk, out, dtype.itemsize, told, delta(entry, place))
            at += chunk.stored_bytes
        return span, data

    digest = hashlib.sha256(header)
    tick(len(header))
    readers = max(min(_READERS, MAX_WAITING_BYTES // chunk_bytes), 1)
    with ThreadPoolExecutor(readers) as pool:
        spans = _spans(entries, len(header), chunk_bytes)
        for span, data in in_order(pool, fetch, spans, waiting=readers):
            digest.update(data)
            tick(span.stored_bytes)
            for entry, tensor in span.ended:
                ended(entry, tensor)
    return digest.hexdigest()
