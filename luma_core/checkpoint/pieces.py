"""Stored tensors of the state: whole, or in pieces that several processes wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from luma_core.checkpoint.manifest import TensorEntry


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the state.

    Attributes:
        entries: its pieces, runs of its rows, in order; one where it is stored whole.
    """

    entries: tuple[TensorEntry, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor, if it has no gaps."""
        last = self.entries[-1]
        if last.first_row is None:
            return last.shape
        return last.first_row + last.shape[0], *last.shape[1:]

    def problem(self, dtype: str, shape: tuple[int, ...]) -> str:
        """Return why the pieces are not a tensor of ``dtype`` and ``shape``; empty if they are."""
        if len({entry.dtype for entry in self.entries} | {dtype}) > 1:
            return f"{self.entries[0].dtype}"
        if len(self.entries) == 1 and self.entries[0].first_row is None:
            return "" if self.shape == shape else f"of shape {list(self.shape)}"
        end = 0
        for entry in self.entries:
            if entry.first_row != end or not entry.shape or entry.shape[1:] != shape[1:]:
                return f"a piece of shape {list(entry.shape)} from row {entry.first_row}"
            end += entry.shape[0]
        return "" if self.shape == shape else f"pieces of {end} rows"

    def spans(self, start: int, stop: int) -> Iterator[tuple[TensorEntry, int, int]]:
        """Yield what elements of which pieces are the elements ``[start, stop)`` of the tensor.

        There is one at least, even where there are no elements.
        """
        found = False
        for entry in self.entries:
            first = (entry.first_row or 0) * math.prod(entry.shape[1:])
            begin, end = max(start, first), min(stop, first + math.prod(entry.shape))
            if begin < end:
                found = True
                yield entry, begin - first, end - first
        if not found:
            yield self.entries[0], 0, 0


def stored_tensors(entries: Iterable[TensorEntry]) -> dict[str, StoredTensor]:
    """Return tensors by name, their pieces by first row."""
    found: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        found.setdefault(entry.name, []).append(entry)
    return {
        name: StoredTensor(tuple(sorted(some, key=lambda entry: entry.first_row or 0)))
        for name, some in found.items()
    }
