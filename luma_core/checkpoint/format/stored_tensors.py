"""Stored tensors of the state: whole, in pieces, or in parts, as several processes wrote them.

A piece is a run of rows of a field. A part is a field of a part of the parameter, a box, that is
coded like a tensor of its own, since its blocks are not blocks of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from luma_core.checkpoint.format.manifest import Box, TensorEntry


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


StoredName = tuple[str, Box | None]
"""Name of a stored tensor, and its box where it is a field of a part."""


def stored_tensors(entries: Iterable[TensorEntry]) -> dict[StoredName, StoredTensor]:
    """Return tensors by name and box, their pieces by first row."""
    found: dict[StoredName, list[TensorEntry]] = {}
    for entry in entries:
        found.setdefault((entry.name, entry.box), []).append(entry)
    return {
        name: StoredTensor(tuple(sorted(some, key=lambda entry: entry.first_row or 0)))
        for name, some in found.items()
    }


def boxes_of_moments(entries: Iterable[TensorEntry]) -> dict[tuple[str, str], list[Box]]:
    """Return the boxes of all moments that are stored in parts, by parameter and moment."""
    found: dict[tuple[str, str], dict[Box, None]] = {}
    for entry in entries:
        if entry.box is not None:
            parameter, _, key = entry.name.rpartition("/")
            found.setdefault((parameter, key.partition(".")[0]), {})[entry.box] = None
    return {moment: sorted(boxes) for moment, boxes in found.items()}


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the shape of a part."""
    return tuple(stop - start for start, stop in box)


def is_grid(shape: tuple[int, ...], boxes: Collection[Box]) -> bool:
    """Return whether boxes, none of them empty or twice, make up a tensor of ``shape``.

    They do as the cells of a grid: in each dimension their ranges follow each other from the first
    index to the last, and no cell is missing.
    """
    if any(len(box) != len(shape) for box in boxes):
        return False
    cells = 1
    for dimension, size in enumerate(shape):
        ranges = sorted({box[dimension] for box in boxes})
        ends = [(0, 0), *ranges, (size, size)]
        if not all(start < stop for start, stop in ranges):
            return False
        if any(before[1] != after[0] for before, after in pairwise(ends)):
            return False
        cells *= len(ranges)
    return len(boxes) == cells
