"""Stages of a step that need a parameter whole: its parts come to one owner and go back.

Each parameter has one owner among the processes that have parts of it, chosen so that all do about
the same work. A part goes there and back as it is yielded, in its own dtype, so the owner computes
what an unsharded step does, bit for bit. All processes must yield the same parameters in the same
order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from luma_core.rules.base import Applied, Gather
from luma_core.sharding import Part, cuts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Coordinate = tuple[int, ...]
"""Which part: an index along each mesh dimension that cuts."""


def apply_whole(wanted: Sequence[Gather]) -> list[Applied]:
    """Apply functions to tensors that are whole; equal ones of equal shapes in one batch."""
    batches: dict[object, list[int]] = {}
    for index, one in enumerate(wanted):
        key = one.function, one.values.shape, one.values.dtype, one.values.device
        batches.setdefault(key, []).append(index)
    found: dict[int, Applied] = {}
    for members in batches.values():
        first = wanted[members[0]]
        values = torch.stack([wanted[index].values for index in members])
        sides = [side for index in members if (side := wanted[index].beside) is not None]
        results, beside = first.function.apply(values, torch.stack(sides) if sides else None)
        for place, index in enumerate(members):
            found[index] = Applied(results[place], None if beside is None else beside[place])
    return [found[index] for index in range(len(wanted))]


def apply_to_parts(wanted: Sequence[tuple[Gather, Part | None]]) -> list[Applied]:
    """Apply functions to the whole tensors whose parts are given; return parts of the results.

    Args:
        wanted: each with the part that its values are; ``None`` for whole tensors.
    """
    here: list[int] = []
    cut: dict[object, list[int]] = {}
    for index, (_, part) in enumerate(wanted):
        if part is None or not part.groups:
            here.append(index)
        else:
            key = part.mesh, tuple(part.groups), wanted[index][0].values.dtype
            cut.setdefault(key, []).append(index)
    found = dict(zip(here, apply_whole([wanted[index][0] for index in here]), strict=True))
    for members in cut.values():
        parts = [(wanted[index][0], part) for index in members if (part := wanted[index][1])]
        found |= zip(members, _Exchange(parts).run(), strict=True)
    return [found[index] for index in range(len(wanted))]


class _Axis(NamedTuple):
    """One mesh dimension that cuts: its process group, and this process's index along it."""

    group: ProcessGroup
    size: int
    here: int


class _Pieces:
    """Where all parts of one tensor lie, by coordinate."""

    def __init__(self, part: Part) -> None:
        self.whole_shape = part.shape
        self.boxes = _boxes(part)

    def shape(self, at: Coordinate) -> tuple[int, ...]:
        """Return the shape of a part."""
        return tuple(index.stop - index.start for index in self.boxes[at])


class _Exchange:
    """Brings parts of several tensors, cut over the same mesh dimensions, to owners and back.

    With several such dimensions parts travel along one after the other.
    """

    def __init__(self, wanted: Sequence[tuple[Gather, Part]]) -> None:
        self._wanted = [gather for gather, _ in wanted]
        part = wanted[0][1]
        self._home = wanted[0][0].values.device
        self._device = torch.device(part.mesh.device_type)
        if self._home.type == self._device.type:
            self._device = self._home
        self._axes = _axes(part)
        self._here = tuple(axis.here for axis in self._axes)
        self._pieces = [_Pieces(part) for _, part in wanted]
        self._owners = _owners([(g, p.shape) for g, p in wanted], [a.size for a in self._axes])

    def run(self) -> list[Applied]:
        """Return this process's parts of the results."""
        held = {
            (index, self._here): gather.values.to(self._device).reshape(-1)
            for index, gather in enumerate(self._wanted)
        }
        for depth in range(len(self._axes)):
            held = self._sent(held, depth, self._with_owner(depth), self._with_parts(depth))
        results, beside = self._applied(held)
        for depth in reversed(range(len(self._axes))):
            results = self._sent(results, depth, self._with_parts(depth), self._with_owner(depth))
        return [
            Applied(
                results[index, self._here].view(gather.values.shape).to(self._home),
                beside.get(index),
            )
            for index, gather in enumerate(self._wanted)
        ]

    def _with_owner(self, depth: int) -> list[list[tuple[int, Coordinate]]]:
        """Return what is here before parts move along an axis, by the index that it moves to."""
        found: list[list[tuple[int, Coordinate]]] = [[] for _ in range(self._axes[depth].size)]
        for index, owner in enumerate(self._owners):
            if owner[:depth] == self._here[:depth]:
                found[owner[depth]] += [(index, at) for at in self._along(depth)]
        return found

    def _with_parts(self, depth: int) -> list[list[tuple[int, Coordinate]]]:
        """Return what is here once parts have moved along an axis, by where it came from."""
        return [
            [
                (index, (*at[:depth], source, *at[depth + 1 :]))
                for index, owner in enumerate(self._owners)
                if owner[: depth + 1] == self._here[: depth + 1]
                for at in self._along(depth)
            ]
            for source in range(self._axes[depth].size)
        ]

    def _along(self, depth: int) -> Iterator[Coordinate]:
        """Yield the coordinates whose parts a process has that owns along the axes before."""
        for before in product(*(range(axis.size) for axis in self._axes[:depth])):
            yield (*before, *self._here[depth:])

    def _sent(
        self,
        held: Mapping[tuple[int, Coordinate], Tensor],
        depth: int,
        leaving: Sequence[Sequence[tuple[int, Coordinate]]],
        coming: Sequence[Sequence[tuple[int, Coordinate]]],
    ) -> dict[tuple[int, Coordinate], Tensor]:
        """Send flat parts along one axis, and return those that came."""
        from torch import distributed

        dtype = self._wanted[0].values.dtype
        out = [held[key] for keys in leaving for key in keys]
        sent = torch.cat(out) if out else torch.empty(0, dtype=dtype, device=self._device)
        sizes = [[self._numel(key) * dtype.itemsize for key in keys] for keys in coming]
        came = torch.empty(sum(map(sum, sizes)), dtype=torch.uint8, device=self._device)
        # Bytes, which every backend of collectives carries.
        distributed.all_to_all_single(
            came,
            sent.view(torch.uint8),
            [sum(per) for per in sizes],
            [sum(self._numel(key) for key in keys) * dtype.itemsize for keys in leaving],
            group=self._axes[depth].group,
        )
        keys = [key for per in coming for key in per]
        pieces = came.split([size for per in sizes for size in per])
        return {key: piece.view(dtype) for key, piece in zip(keys, pieces, strict=True)}

    def _numel(self, key: tuple[int, Coordinate]) -> int:
        index, at = key
        return math.prod(self._pieces[index].shape(at))

    def _applied(
        self, held: Mapping[tuple[int, Coordinate], Tensor]
    ) -> tuple[dict[tuple[int, Coordinate], Tensor], dict[int, Tensor]]:
        """Return the flat parts of the results that this process owns, and all that is beside."""
        mine = [index for index, owner in enumerate(self._owners) if owner == self._here]
        wholes = []
        for index in mine:
            pieces, dtype = self._pieces[index], self._wanted[index].values.dtype
            whole = torch.empty(pieces.whole_shape, dtype=dtype, device=self._device)
            for at, box in pieces.boxes.items():
                whole[box] = held[index, at].view(pieces.shape(at))
            beside = self._wanted[index].beside
            beside = None if beside is None else beside.to(self._device)
            wholes.append(self._wanted[index]._replace(values=whole, beside=beside))
        found = dict(zip(mine, apply_whole(wholes), strict=True))
        parts = {
            (index, at): result.values[box].reshape(-1)
            for index, result in found.items()
            for at, box in self._pieces[index].boxes.items()
        }
        return parts, self._shared(found)

    def _shared(self, found: Mapping[int, Applied]) -> dict[int, Tensor]:
        """Return what owners computed beside, which all processes have."""
        from torch import distributed

        with_side = [i for i, gather in enumerate(self._wanted) if gather.beside is not None]
        if not with_side:
            return {}
        sides = [side for i in with_side if (side := self._wanted[i].beside) is not None]
        own = [found[i].beside if i in found else None for i in with_side]
        flat = torch.cat(
            [
                torch.zeros(side.numel(), dtype=side.dtype, device=self._device)
                if new is None
                else new.reshape(-1)
                for side, new in zip(sides, own, strict=True)
            ]
        )
        for axis in self._axes:
            # One process has the values and all others have zeros, so the sum is exact.
            distributed.all_reduce(flat, group=axis.group)
        pieces = flat.split([side.numel() for side in sides])
        return {
            index: piece.view(side.shape).to(self._home)
            for index, piece, side in zip(with_side, pieces, sides, strict=True)
        }


def _axes(part: Part) -> list[_Axis]:
    where = part.mesh.get_coordinate()
    return [
        _Axis(part.mesh.get_group(dim), size, where[dim])
        for dim, (size, placement) in enumerate(zip(part.mesh.shape, part.placements, strict=True))
        if cuts(placement) and size > 1
    ]


def _boxes(part: Part) -> dict[Coordinate, tuple[slice, ...]]:
    """Return where all parts of a tensor lie, by their coordinates along axes that cut."""
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    where = part.mesh.get_coordinate()
    sizes = [
        range(size) if cuts(placement) and size > 1 else (where[dim],)
        for dim, (size, placement) in enumerate(zip(part.mesh.shape, part.placements, strict=True))
    ]
    axes = [dim for dim, choice in enumerate(sizes) if isinstance(choice, range)]
    boxes = {}
    for at in product(*sizes):
        shape, offset = _compute_local_shape_and_global_offset(
            part.shape, tuple(part.mesh.shape), list(at), part.placements
        )
        pairs = zip(offset, shape, strict=True)
        boxes[tuple(at[dim] for dim in axes)] = tuple(slice(o, o + n) for o, n in pairs)
    return boxes


def _owners(
    wanted: Sequence[tuple[Gather, tuple[int, ...]]], sizes: Sequence[int]
) -> list[Coordinate]:
    """Return the owner of each tensor: the dearest first, each to who has least to do."""
    places = list(product(*(range(size) for size in sizes)))
    load = dict.fromkeys(places, 0)
    owners: dict[int, Coordinate] = {}
    costs = [gather.function.cost(shape) for gather, shape in wanted]
    for index in sorted(range(len(wanted)), key=lambda i: (-costs[i], i)):
        owners[index] = min(places, key=lambda place: (load[place], place))
        load[owners[index]] += costs[index]
    return [owners[index] for index in range(len(wanted))]
