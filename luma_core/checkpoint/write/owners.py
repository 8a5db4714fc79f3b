"""Decides which process writes which tensor: all gather what each has, and decide alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from luma_core.checkpoint.format.manifest import Box
from luma_core.checkpoint.format.stored_tensors import is_grid
from luma_core.errors import StateMismatchError

_HINT = (
    "Give parameters that are no copies of each other names of their own in each process, and "
    "train copies alike; save with replicas='first' to keep the copies of the first process."
)


class LocalCopy(NamedTuple):
    """What one process has of a tensor.

    Attributes:
        shape: of the whole tensor.
        box: its part, which may be empty.
        facts: what must be the same in all processes that have a part, by what it is called.
        options: of its parameter group, for which the same holds; shared by all of the group.
        part_bytes: size of what one process writes of this part.
        whole_bytes: size of what one process writes for all parts.
        cut_over: ranks of the processes over which it is cut; empty where it is not.
        checked: whether copies must be equal under ``replicas="equal"``.
    """

    shape: tuple[int, ...]
    box: Box
    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    part_bytes: int
    whole_bytes: int
    cut_over: tuple[int, ...]
    checked: bool = True

    @property
    def empty(self) -> bool:
        """Whether it has no element of a tensor that has some."""
        return any(start == stop for start, stop in self.box) and math.prod(self.shape) > 0


def whole_box(shape: Sequence[int]) -> Box:
    """Return the part that is all of a tensor."""
    return tuple((0, size) for size in shape)


@dataclass(frozen=True)
class Owners:
    """Who writes a tensor.

    Attributes:
        parts: the process that writes each part; none of them is empty.
        whole: the process that writes what one writes for all.
    """

    parts: Mapping[Box, int]
    whole: int


class Holders:
    """All processes' copies of tensors.

    Args:
        kind: what they are, for messages: ``"parameter"``.
        by_process: the copies of each process, by name.
        ranks: of these processes in the default group, in order.

    Attributes:
        copies: by name and process.
        several: names of which there are copies that must be equal, and the processes that have
            each part of those.

    Raises:
        StateMismatchError: copies differ in what must be the same, or are parts of no whole.
    """

    def __init__(
        self, kind: str, by_process: Sequence[Mapping[str, LocalCopy]], ranks: Sequence[int]
    ) -> None:
        self._kind = kind
        self.copies: dict[str, dict[int, LocalCopy]] = {}
        for process, copies in enumerate(by_process):
            for name, copy in copies.items():
                self.copies.setdefault(name, {})[process] = copy
        number = {rank: process for process, rank in enumerate(ranks)}
        self._boxes: dict[str, dict[Box, list[int]]] = {}
        for name, found in self.copies.items():
            self._check_facts(name, found)
            self._boxes[name] = _by_box(found)
            self._check_parts(name, found, number)
        self.several = {
            name: [holders for holders in boxes.values() if self._are_replicas(name, holders)]
            for name, boxes in self._boxes.items()
        }
        self.several = {name: some for name, some in self.several.items() if some}

    def boxes(self, name: str) -> dict[Box, list[int]]:
        """Return the parts of a tensor that are not empty, and the processes that have each."""
        return self._boxes[name]

    def several_of(self, process: int) -> list[str]:
        """Return the tensors of which a process and others have copies that must be equal."""
        return [name for name, some in self.several.items() if any(process in one for one in some)]

    def check_equal(self, by_process: Sequence[Mapping[str, int]]) -> None:
        """Check that copies are equal.

        Args:
            by_process: digests of the copies of each process, by name.

        Raises:
            StateMismatchError: some are not; says of what, and in which processes.
        """
        for name, some in self.several.items():
            for holders in some:
                digests = {process: by_process[process].get(name) for process in holders}
                if len(groups := _grouped(digests)) > 1:
                    sides = " than in ".join(_ranks(some) for some in groups[:2])
                    raise StateMismatchError(
                        f"{self._kind} {name!r} has other values in {sides}.", hint=_HINT
                    )

    def owners(self, world: int) -> dict[str, Owners]:
        """Return who writes each tensor, so that all write about as much.

        Of copies that may differ, the first process's counts.
        """
        load = [0] * world

        def least(processes: Sequence[int], size: int) -> int:
            chosen = min(processes, key=lambda process: (load[process], process))
            load[chosen] += size
            return chosen

        found = {}
        for name, copies in self.copies.items():
            parts = {}
            for box, holders in self._boxes[name].items():
                size = copies[holders[0]].part_bytes
                any_will_do = self._are_replicas(name, holders)
                parts[box] = least(holders if any_will_do else holders[:1], size)
            whole_bytes = next(iter(copies.values())).whole_bytes
            found[name] = Owners(parts, least(list(parts.values()), whole_bytes))
        return found

    def _are_replicas(self, name: str, holders: Sequence[int]) -> bool:
        copies = self.copies[name]
        return len(holders) > 1 and all(copies[process].checked for process in holders)

    def _check_facts(self, name: str, copies: Mapping[int, LocalCopy]) -> None:
        if len(copies) == 1:
            return
        self._compare(name, "shape", {p: list(copy.shape) for p, copy in copies.items()})
        first = next(iter(copies.values()))
        if any(copy.options != first.options for copy in copies.values()):
            for option in dict.fromkeys(o for copy in copies.values() for o in copy.options):
                values = {p: copy.options.get(option) for p, copy in copies.items()}
                self._compare(name, f"its group's {option!r}", values)
        if any(copy.facts != first.facts for copy in copies.values()):
            for fact in first.facts:
                self._compare(name, fact, {p: copy.facts.get(fact) for p, copy in copies.items()})

    def _compare(self, name: str, fact: str, values: Mapping[int, Any]) -> None:
        groups = _grouped(values)
        if len(groups) > 1:
            described = " and ".join(
                f"{values[processes[0]]!r} in {_ranks(processes)}" for processes in groups[:2]
            )
            raise StateMismatchError(
                f"{self._kind} {name!r} differs between ranks: {fact} is {described}.",
                hint=_HINT,
            )

    def _check_parts(
        self, name: str, copies: Mapping[int, LocalCopy], number: Mapping[int, int]
    ) -> None:
        meshes: dict[tuple[int, ...], set[int]] = {}
        for process, copy in copies.items():
            if copy.cut_over:
                meshes.setdefault(copy.cut_over, set()).add(process)
        for ranks, members in meshes.items():
            absent = [rank for rank in ranks if number.get(rank) not in members]
            if absent:
                raise StateMismatchError(
                    f"{self._kind} {name!r} is cut over the processes of rank {list(ranks[:8])}, "
                    f"but that of rank {absent[0]} does not save its part with the others.",
                    hint="Call this in all processes of the mesh, with the same parameters.",
                )
        shape = next(iter(copies.values())).shape
        boxes = self._boxes[name]
        if math.prod(shape) and not is_grid(shape, boxes):
            described = [list(map(list, box)) for box in list(boxes)[:3]]
            raise StateMismatchError(
                f"{self._kind} {name!r} of shape {list(shape)} is in parts {described} that do not "
                "make up the whole.",
                hint="Shard it alike in all processes, and give all that have parts as group=.",
            )


def _by_box(copies: Mapping[int, LocalCopy]) -> dict[Box, list[int]]:
    found: dict[Box, list[int]] = {}
    for process, copy in copies.items():
        if not copy.empty:
            found.setdefault(copy.box, []).append(process)
    return found


def _grouped(values: Mapping[int, Any]) -> list[list[int]]:
    """Return the processes that have equal values, those of the first process first."""
    groups: list[tuple[Any, list[int]]] = []
    for process, value in values.items():
        same = next((some for other, some in groups if other == value), None)
        if same is None:
            groups.append((value, [process]))
        else:
            same.append(process)
    return [some for _, some in groups]


def _ranks(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:4]))}{more}"
