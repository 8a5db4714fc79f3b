"""Which of a model's tensors are an optimizer's parameters, by order and shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]

Wanted = Shape | None
"""A parameter's shape; None where it has no state, which could tell."""

_Item = tuple[str, Shape]
_Run = list[tuple[int, Wanted]]


@dataclass(frozen=True)
class Alignment:
    """What order and shapes tell.

    Attributes:
        names: of each parameter that only one name fits, by its place among all.
        choices: two names that fit one of the others; empty where there is none.
        misfit: place of a parameter that no name fits; None where there is none.
    """

    names: Mapping[int, str]
    choices: tuple[str, ...] = ()
    misfit: int | None = None


def align(shapes: Mapping[str, Shape], groups: Sequence[Sequence[Wanted]]) -> Alignment:
    """Find the names of parameters, given that each group is in the order of the model.

    The model may hold more: buffers, and parameters that are not optimized. Of all places where a
    group can lie in the model, the leftmost and the rightmost agree on what is certain, and what
    is certain of one group is none of another's. A group that lies nowhere is not in that order:
    then only shapes that one name has are certain.

    Args:
        shapes: of the model's tensors by name, in its order.
        groups: shapes of each group's parameters, in order.
    """
    places = iter(range(sum(map(len, groups))))
    whole: list[_Run] = [[(next(places), wanted) for wanted in group] for group in groups]
    by_shape: dict[Shape, list[_Item]] = {}
    for item in shapes.items():
        by_shape.setdefault(item[1], []).append(item)
    runs = [
        (part, _fitting(shapes, by_shape, part))
        for run in whole
        for part in (
            [run] if _lain(_fitting(shapes, by_shape, run), run) else [[single] for single in run]
        )
    ]
    found: dict[int, str] = {}
    taken: set[str] = set()
    while True:
        before = len(found)
        choices: tuple[str, ...] = ()
        for run, items in runs:
            own = {found[place] for place, _ in run if place in found}
            free = [item for item in items if item[0] in own or item[0] not in taken]
            first = _lain(free, run)
            last = _lain(free[::-1], run[::-1])
            if first is None or last is None:
                return Alignment(found, misfit=next(place for place, _ in run))
            for (place, _), left, right in zip(run, first, last[::-1], strict=True):
                if left == right:
                    found[place] = left
                    taken.add(left)
                else:
                    choices = choices or (left, right)
        if not choices or len(found) == before:
            return Alignment(found, choices)


def _fitting(
    shapes: Mapping[str, Shape], by_shape: Mapping[Shape, list[_Item]], run: _Run
) -> list[_Item]:
    """Return the tensors that have the shape of any parameter in a run, in order."""
    wanted = {shape for _, shape in run}
    if len(wanted) == 1 and (only := next(iter(wanted))) is not None:
        return by_shape.get(only, [])
    return [item for item in shapes.items() if None in wanted or item[1] in wanted]


def _lain(shapes: Iterable[_Item], run: _Run) -> list[str] | None:
    """Return the first names that a run fits in order; None where it fits nowhere."""
    remaining = iter(shapes)
    names = []
    for _, wanted in run:
        name = next((n for n, shape in remaining if wanted is None or shape == wanted), None)
        if name is None:
            return None
        names.append(name)
    return names
