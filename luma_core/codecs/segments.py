"""How one parameter is cut into Hessian blocks, and the sums, means and spreading that needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from luma_core.codecs.blocks import TILE_ELEMENTS, BlockGrid, Tile
from luma_core.errors import ConfigurationError

Runs = tuple[tuple[int, int], ...]
"""``(count, size)``: so many segments of so many positions, one run after the other."""

Shape = tuple[int, ...]


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

    def sums(self, x: Tensor, of: Callable[[Tensor], Tensor] = torch.square) -> Tensor:
        """Return the sum of ``of(x)`` over each segment, float64 ``[segments]``.

        The order of additions follows from the shape alone, so the result is deterministic.
        Memory: a few tiles of `TILE_ELEMENTS` values, and 8 bytes per position.

        Args:
            x: the tensor, of any floating dtype and strides; ``of`` sees it as float32.
            of: an elementwise function.
        """
        return self._folded(x, of, lambda part, dims: part.sum(dims, dtype=torch.float64), "add")

    def largest(self, x: Tensor, of: Callable[[Tensor], Tensor] = torch.abs) -> Tensor:
        """Return the largest ``of(x)``, which is 0 or more, of each segment, as `sums` does."""
        return self._folded(x, of, lambda part, dims: part.amax(dims).double(), "maximum")

    def means(self, x: Tensor, of: Callable[[Tensor], Tensor] = torch.square) -> Tensor:
        """Return the mean of ``of(x)`` of each segment, float32 ``[segments]``, as `sums` does."""
        return (self.sums(x, of) / self.segment_elements(x.device)).float()

    def _folded(
        self,
        x: Tensor,
        of: Callable[[Tensor], Tensor],
        fold: Callable[[Tensor, tuple[int, ...]], Tensor],
        combine: Literal["add", "maximum"],
    ) -> Tensor:
        merge = getattr(torch, combine)
        shape = (self.outer, self.length)
        positions = torch.zeros(shape, dtype=torch.float64, device=x.device)
        flat = BlockGrid((self.numel,), None, True, 1, self.numel)
        for box in self._boxes(TILE_ELEMENTS):
            part = Tile(flat, 0, 1, box.start, box.start + math.prod(box.sizes)).read(x).float()
            folded = fold(of(part).view(box.sizes), (1, 3))
            here = positions[
                box.outer : box.outer + box.sizes[0], box.position : box.position + box.sizes[2]
            ]
            merge(here, folded, out=here)
        if self.positions_are_segments:
            return positions.reshape(-1)
        pieces, passed = [], 0
        for count, size in self.runs:
            run = positions[:, passed : passed + count * size].reshape(self.outer, count, size)
            pieces.append(fold(run, (2,)))
            passed += count * size
        return torch.cat(pieces, dim=1).reshape(-1)

    def _boxes(self, limit: int) -> Iterator[_Box]:
        """Cut the tensor into contiguous boxes of about ``limit`` elements at most."""
        if self.numel == 0:
            return
        plane = self.length * self.inner
        inner = min(self.inner, limit)
        positions = min(self.length, max(1, limit // self.inner))
        reduce = min(self.reduce, max(1, limit // plane))
        outer = min(self.outer, max(1, limit // (plane * self.reduce)))
        for o in range(0, self.outer, outer):
            for r in range(0, self.reduce, reduce):
                for p in range(0, self.length, positions):
                    for i in range(0, self.inner, inner):
                        start = ((o * self.reduce + r) * self.length + p) * self.inner + i
                        sizes = (
                            min(outer, self.outer - o),
                            min(reduce, self.reduce - r),
                            min(positions, self.length - p),
                            min(inner, self.inner - i),
                        )
                        yield _Box(o, p, start, sizes)


@dataclass(frozen=True)
class _Box:
    """A contiguous part of the tensor: first ``outer``, ``position`` and element, and sizes."""

    outer: int
    position: int
    start: int
    sizes: tuple[int, int, int, int]
