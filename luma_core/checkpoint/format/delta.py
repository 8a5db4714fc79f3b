"""Storing chunks as differences to a base, where that is smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from isal.isal_zlib import crc32

from luma_core.checkpoint.format.compression import (
    Chunk,
    ChunkEncoder,
    encode_chunk,
    encode_difference,
)
from luma_core.direct import Bytes
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
else:
    np = import_later("numpy", globals())

WORTH = 0.95
"""Differences are stored if they take at most this share of the bytes of the whole."""

ReadBase = Callable[[int, Bytes], None]
"""Reads elements of a tensor of the base, from one on, into 1-D bytes of as many as are wanted."""


class Encoded(NamedTuple):
    """A chunk as it is stored.

    Attributes:
        data: the stored bytes.
        chunk: their description.
        crc32: CRC-32 of the raw bytes where a difference is stored, else None.
    """

    data: bytes | memoryview
    chunk: Chunk
    crc32: int | None


def encode_against(
    encoder: ChunkEncoder,
    chunks: Iterable[Bytes],
    itemsize: int,
    read: ReadBase,
    chunk_bytes: int,
) -> Iterator[Encoded]:
    """Yield each chunk of a tensor as a difference where that takes fewer bytes, else as it is.

    Where that does not pay for the first chunk, it is not tried for the others, and no more of the
    base is read. Where it does, how well the first chunk itself was compressed tells what to expect
    of the others: they are compressed as they are only if the difference is not worth it by that.

    Args:
        encoder: on whose threads.
        chunks: raw bytes, in order.
        itemsize: bytes of one element.
        read: reads the base's elements.
        chunk_bytes: raw bytes of all chunks but the last.
    """

    def as_it_is(raw: Bytes) -> Encoded:
        return Encoded(*encode_chunk(raw, itemsize, "zstd"), None)

    def as_difference(place: int, raw: Bytes) -> Encoded:
        base = np.empty_like(raw)
        read(place * (chunk_bytes // itemsize), base)
        return Encoded(*encode_difference(raw, base, itemsize), crc32(raw.data))

    def smaller(item: tuple[int, Bytes]) -> Encoded:
        place, raw = item
        difference = as_difference(place, raw)
        if difference.chunk.stored_bytes <= WORTH * expected * raw.nbytes:
            return difference
        return _smaller(difference, as_it_is(raw))

    numbered = enumerate(chunks)
    for place, raw in numbered:
        whole = as_it_is(raw)
        expected = whole.chunk.stored_bytes / raw.nbytes
        encoded = _smaller(as_difference(place, raw), whole)
        yield encoded
        if encoded.crc32 is not None:
            yield from encoder.each(smaller, numbered)
            return
        for data, chunk in encoder.encode((raw for _, raw in numbered), itemsize):
            yield Encoded(data, chunk, None)


def _smaller(difference: Encoded, whole: Encoded) -> Encoded:
    worth = difference.chunk.stored_bytes <= WORTH * whole.chunk.stored_bytes
    return difference if worth else whole
