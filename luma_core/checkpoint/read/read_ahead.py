"""Reading an object whole, span after span, ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from luma_core.checkpoint.format.compression import in_order
from luma_core.checkpoint.storage.store import ObjectReader
from luma_core.direct import Bytes, page_span, transfer_memory

SPAN_BYTES = 4 << 20
"""Bytes of a span that begins at a multiple of it; a disk is fast with requests of that size."""


class Span(Protocol):
    """Neighbouring bytes of an object, ``[start, stop)``."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...


S = TypeVar("S", bound=Span)


def read_ahead(
    reader: ObjectReader,
    spans: Iterable[S],
    *,
    threads: int,
    use: Callable[[S, memoryview], None],
) -> Iterator[tuple[S, memoryview]]:
    """Yield spans, in order, with their bytes, which are there until the next is asked for.

    At most ``threads + 1`` spans are in memory.

    Args:
        reader: of the object; bytes are fewer than a span has where the object ends before.
        spans: to be read.
        threads: that read.
        use: called with each span and its bytes by the thread that read it, in any order.
    """
    free: deque[Bytes] = deque()

    def memory(size_bytes: int) -> Bytes:
        try:
            found = free.pop()
        except IndexError:
            return transfer_memory(max(size_bytes, SPAN_BYTES))
        return found if len(found) >= size_bytes else transfer_memory(size_bytes)

    def fetch(span: S) -> tuple[S, memoryview, Bytes]:
        first, last = page_span(span.start, span.stop)
        taken = memory(last - first)
        found = reader.read(span.start, span.stop, taken)
        use(span, found)
        return span, found, taken

    with ThreadPoolExecutor(threads, "luma-read") as pool:
        for span, found, taken in in_order(pool, fetch, spans, waiting=threads):
            yield span, found
            free.append(taken)
