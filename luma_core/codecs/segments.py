"""How one parameter is cut into Hessian blocks, and the sums, means and spreading that needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

from luma_core.codecs.blocks import TILE_ELEMENTS, BlockGrid, Tile
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

Runs = tuple[tuple[int, int], ...]
"""``(count, size)``: so many segments of so many positions, one run after the other."""

Shape = tuple[int, ...]

Fold = Callable[["Tensor", Shape], "Tensor"]
"""Folds some dimensions of a tensor, to float64."""


def _square(part: Tensor) -> Tensor:
    return part.square()


def _absolute(part: Tensor) -> Tensor:
    return part.abs()


def _sum(part: Tensor, dims: Shape) -> Tensor:
    return part.sum(dims, dtype=torch.float64)


@dataclass(frozen=True)
class Partition:
    """The Hessian blocks (segments) of a tensor seen as ``[outer, reduce, length, inner]``.

    A segment is ``size`` neighbouring positions of ``length`` with all of ``reduce`` and ``inner``,
    for one index of ``outer``. Segments are numbered along ``length`` first, then along ``outer``,
    on the whole tensor's coordinates, so cutting the tensor into shards changes none.

    Attributes:
        outer: indices that share nothing, such as experts.
        reduce: indices before ``length`` that a segment spans, such as the inputs of transposed
            layers.
        length: positions that ``runs`` cut into segments, such as output rows.
        inner: elements behind one position.
        runs: ``(count, size)`` pairs that cover ``length``.

    Raises:
        ConfigurationError: a number is negative, or the runs do not cover ``length``.
    """

    outer: int
    reduce: int
    length: int
    inner: int
    runs: Runs

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(tuple(run) for run in self.runs))
        sizes = (self.outer, self.reduce, self.length, self.inner)
        pairs_ok = all(len(run) == 2 for run in self.runs)
        numbers = [*sizes, *(n for run in self.runs for n in run)]
        if not pairs_ok or any(type(n) is not int or n < 0 for n in numbers):
            raise ConfigurationError(f"{self!r} must consist of integers of 0 or more.")
        covered = sum(count * size for count, size in self.runs)
        if covered != self.length or any(size == 0 for _, size in self.runs):
            raise ConfigurationError(
                f"runs={list(self.runs)} cover {covered} positions in segments of at least 1; "
                f"they must cover length={self.length}."
            )

    @classmethod
    def rows(cls, shape: Shape, *, size: int = 1) -> Self:
        """Return one segment for ``size`` neighbouring indices of dimension 0.

        Raises:
            ConfigurationError: ``size`` does not divide that dimension.
        """
        length = shape[0] if shape else 1
        return cls(1, 1, length, math.prod(shape[1:]), ((length // size, size),))

    @classmethod
    def columns(cls, shape: Shape, *, size: int = 1) -> Self:
        """Return one segment for ``size`` neighbouring indices of the last dimension."""
        length = shape[-1] if shape else 1
        return cls(1, math.prod(shape[:-1]), length, 1, ((length // size, size),))

    @classmethod
    def vectors(cls, shape: Shape) -> Self:
        """Return one segment for each vector along the last dimension."""
        count = math.prod(shape[:-1])
        return cls(1, 1, count, shape[-1] if shape else 1, ((count, 1),))

    @classmethod
    def elements(cls, shape: Shape) -> Self:
        """Return one segment for each element."""
        count = math.prod(shape)
        return cls(1, 1, count, 1, ((count, 1),))

    @classmethod
    def whole(cls, shape: Shape) -> Self:
        """Return one segment for the whole tensor."""
        return cls(1, 1, 1, math.prod(shape), ((1, 1),))

    @classmethod
    def from_dict(cls, config: object) -> Self:
        """Build a partition from what `to_dict` returned.

        Raises:
            ConfigurationError: a key is missing or unknown, or a value cannot work.
        """
        keys = set(cls.__dataclass_fields__)
        if not isinstance(config, Mapping) or set(config) != keys:
            raise ConfigurationError(
                f"partition={config!r} must be an object with {', '.join(sorted(keys))}."
            )
        try:
            return cls(**config)
        except TypeError as error:
            raise ConfigurationError(f"partition={config!r}: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the partition as plain JSON values."""
        return {**asdict(self), "runs": [list(run) for run in self.runs]}

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return self.outer * self.reduce * self.length * self.inner

    @property
    def segments_per_outer(self) -> int:
        """Segments of one index of ``outer``."""
        return sum(count for count, _ in self.runs)

    @property
    def segments(self) -> int:
        """Number of segments."""
        return self.outer * self.segments_per_outer

    @property
    def elementwise(self) -> bool:
        """Whether every element is a segment of its own."""
        return self.segments == self.numel

    @property
    def positions_are_segments(self) -> bool:
        """Whether every segment is one position of ``length``."""
        return self.segments_per_outer == self.length

    def segment_elements(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the number of elements of each segment, float64 ``[segments]``."""
        per_position = self.reduce * self.inner
        parts = [
            torch.full((count,), float(size * per_position), dtype=torch.float64, device=device)
            for count, size in self.runs
        ]
        return torch.cat(parts).repeat(self.outer) if parts else torch.zeros(0, device=device)

    def spread(self, values: Tensor, start: int, stop: int) -> Tensor:
        """Return the value of the segment of each element of a range of the flattened tensor.

        Args:
            values: ``[segments]``, of any dtype.
            start: index of the first element.
            stop: index behind the last.

        Returns:
            ``[stop - start]``, of the same dtype.
        """
        if stop <= start:
            return values[:0]
        first, last = start // self.inner, -(-stop // self.inner)
        of_units = self._of_units(values, first, last)
        if self.inner == 1:
            return of_units
        if self.inner <= TILE_ELEMENTS:
            repeated = of_units.unsqueeze(1).expand(-1, self.inner).reshape(-1)
            return repeated[start - first * self.inner : stop - first * self.inner]
        counts = torch.full((last - first,), self.inner, dtype=torch.int64, device=values.device)
        counts[:1] -= start - first * self.inner
        counts[-1:] -= last * self.inner - stop
        return of_units.repeat_interleave(counts, output_size=stop - start)

    def _of_units(self, values: Tensor, first: int, last: int) -> Tensor:
        """Return the value of each run of ``inner`` elements, ``[last - first]``."""
        if not self.positions_are_segments:
            pieces, numbered = [], 0
            by_outer = values.view(self.outer, -1)
            for count, size in self.runs:
                part = by_outer[:, numbered : numbered + count].unsqueeze(2)
                pieces.append(part.expand(-1, -1, size).reshape(self.outer, -1))
                numbered += count
            values = torch.cat(pieces, dim=1).view(-1)
        if self.reduce == 1:
            return values[first:last]
        begin, end = first // self.length, -(-last // self.length)
        outer = torch.arange(begin, end, device=values.device).div_(
            self.reduce, rounding_mode="floor"
        )
        planes = values.view(self.outer, self.length)[outer].view(-1)
        return planes[first - begin * self.length : last - begin * self.length]

    def sums(self, x: Tensor, of: Callable[[Tensor], Tensor] = _square) -> Tensor:
        """Return the sum of ``of(x)`` over each segment, float64 ``[segments]``.

        The order of additions follows from the shape alone, so the result is deterministic.
        Memory: a few tiles of `TILE_ELEMENTS` values, and 8 bytes per position.

        Args:
            x: the tensor, of any floating dtype and strides; ``of`` sees it as float32.
            of: an elementwise function.
        """
        return self._folded(x, of, _sum, "add")

    def largest(self, x: Tensor, of: Callable[[Tensor], Tensor] = _absolute) -> Tensor:
        """Return the largest ``of(x)``, which is 0 or more, of each segment, as `sums` does."""
        return self._folded(x, of, lambda part, dims: part.amax(dims).double(), "maximum")

    def means(self, x: Tensor, of: Callable[[Tensor], Tensor] = _square) -> Tensor:
        """Return the mean of ``of(x)`` of each segment, float32 ``[segments]``, as `sums` does."""
        return self.means_of(self.position_sums(x, of))

    def means_of(self, positions: Tensor) -> Tensor:
        """Return the mean of each segment, float32 ``[segments]``, from `position_sums`."""
        sums = self._of_segments(positions, _sum)
        return (sums / self.segment_elements(sums.device)).float()

    def position_sums(
        self, x: Tensor, of: Callable[[Tensor], Tensor] = _square, *, first_index: int = 0
    ) -> Tensor:
        """Return what a part of the tensor adds to the sums of each position of ``length``.

        The sums of positions that lie in the part as a whole are those of the whole tensor; others
        have the rounding of a float64 addition more.

        Args:
            x: consecutive elements of the flattened tensor, in any shape.
            of: an elementwise function.
            first_index: of the first of them.

        Returns:
            float64 ``[outer, length]``.
        """
        return self._of_positions(x, of, _sum, "add", first_index)

    def _folded(
        self,
        x: Tensor,
        of: Callable[[Tensor], Tensor],
        fold: Fold,
        combine: Literal["add", "maximum"],
    ) -> Tensor:
        return self._of_segments(self._of_positions(x, of, fold, combine, 0), fold)

    def _of_positions(
        self,
        x: Tensor,
        of: Callable[[Tensor], Tensor],
        fold: Fold,
        combine: Literal["add", "maximum"],
        first_index: int,
    ) -> Tensor:
        merge = getattr(torch, combine)
        shape = (self.outer, self.length)
        positions = torch.zeros(shape, dtype=torch.float64, device=x.device)
        flat = BlockGrid((x.numel(),), None, True, 1, x.numel())
        for box in self._boxes(first_index, first_index + x.numel(), TILE_ELEMENTS):
            start = box.start - first_index
            part = Tile(flat, 0, 1, start, start + math.prod(box.sizes)).read(x).float()
            folded = fold(of(part).view(box.sizes), (1, 3))
            here = positions[
                box.outer : box.outer + box.sizes[0], box.position : box.position + box.sizes[2]
            ]
            merge(here, folded, out=here)
        return positions

    def _of_segments(self, positions: Tensor, fold: Fold) -> Tensor:
        if self.positions_are_segments:
            return positions.reshape(-1)
        pieces, passed = [], 0
        for count, size in self.runs:
            run = positions[:, passed : passed + count * size].reshape(self.outer, count, size)
            pieces.append(fold(run, (2,)))
            passed += count * size
        return torch.cat(pieces, dim=1).reshape(-1)

    def _boxes(self, first: int, last: int, limit: int) -> Iterator[_Box]:
        """Cut elements ``first:last`` into contiguous boxes of about ``limit`` elements at most."""
        dims = (self.outer, self.reduce, self.length, self.inner)
        for origin, sizes in _cover(first, last, dims):
            plane = sizes[2] * sizes[3]
            steps = (
                min(sizes[0], max(1, limit // (plane * sizes[1]))),
                min(sizes[1], max(1, limit // plane)),
                min(sizes[2], max(1, limit // sizes[3])),
                min(sizes[3], limit),
            )
            ranges = [
                range(begin, begin + size, step)
                for begin, size, step in zip(origin, sizes, steps, strict=True)
            ]
            for corner in product(*ranges):
                part = tuple(
                    min(step, begin + size - at)
                    for at, begin, size, step in zip(corner, origin, sizes, steps, strict=True)
                )
                o, r, p, i = corner
                start = ((o * self.reduce + r) * self.length + p) * self.inner + i
                yield _Box(o, p, start, (part[0], part[1], part[2], part[3]))


def _cover(first: int, last: int, dims: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Cut elements ``first:last`` of a tensor of ``dims`` into boxes: corners and sizes, in order.

    Each is contiguous: whole in all dimensions behind the first in which it has several indices.
    """
    if first >= last:
        return
    if len(dims) == 1:
        yield (first,), (last - first,)
        return
    rest = dims[1:]
    row = math.prod(rest)
    begin, head = divmod(first, row)
    end, tail = divmod(last, row)
    if begin == end:
        yield from _cover_within(begin, head, tail, rest)
        return
    if head:
        yield from _cover_within(begin, head, row, rest)
        begin += 1
    if begin < end:
        yield (begin, *(0,) * len(rest)), (end - begin, *rest)
    yield from _cover_within(end, 0, tail, rest)


def _cover_within(index: int, first: int, last: int, rest: Shape) -> Iterator[tuple[Shape, Shape]]:
    for corner, sizes in _cover(first, last, rest):
        yield (index, *corner), (1, *sizes)


@dataclass(frozen=True)
class _Box:
    """A contiguous part of the tensor: first ``outer``, ``position`` and element, and sizes."""

    outer: int
    position: int
    start: int
    sizes: tuple[int, int, int, int]
