"""Coordination of the ranks of a process group; one process alone is a group of one rank."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from luma_core.errors import LumaError, StorageError

T = TypeVar("T")


class Ranks:
    """The ranks that save or load together, of which rank 0 is the coordinator.

    Args:
        process_group: theirs, or None for this process alone, which tells nobody anything. The
            group's time-out bounds how long they wait for a rank that disappeared.

    Attributes:
        rank: of this process.
        world_size: how many there are.
        global_rank: of this process in the default group.
    """

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        self._group = process_group
        alone = process_group is None
        self.rank: int = 0 if alone else dist.get_rank(process_group)
        self.world_size: int = 1 if alone else dist.get_world_size(process_group)
        self.global_rank: int = 0 if alone else dist.get_rank()

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank decides, commits and removes."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order.

        Raises:
            StorageError: a process disappeared.
        """
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise StorageError(
                f"rank {self.rank} of {self.world_size} lost another one: {error}.",
                hint="Start all processes again; the last checkpoint that was committed is whole.",
            ) from error
        return found

    def run_on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """Do some work on every rank, and return all results once all have succeeded.

        Raises:
            LumaError: what the first rank that failed raised, on all of them, so that all can go on
                in the same way.
            StorageError: a rank failed in another way, or disappeared.
        """
        if self._group is None:
            return [work()]
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        outcomes = self.all_gather((None if failure is None else _described(failure), result))
        for rank, (description, _) in enumerate(outcomes):
            if description is not None:
                if failure is not None and rank == self.rank:
                    raise failure
                raise _raised(rank, *description) from failure
        return [value for _, value in outcomes]  # type: ignore[misc]

    def run_on_coordinator(self, work: Callable[[], T]) -> T:
        """Do some work on the coordinator rank only, and return its result on all.

        Raises:
            LumaError: what it raised, on all ranks.
            StorageError: it failed in another way, or a process disappeared.
        """
        if self._group is None:
            return work()
        results = self.run_on_all_ranks(lambda: work() if self.is_coordinator else None)
        return results[0]  # type: ignore[return-value]


def _described(error: BaseException) -> tuple[type[BaseException], str, str]:
    if isinstance(error, LumaError):
        return type(error), error.message, error.hint
    return type(error), f"{type(error).__name__}: {error}", ""


def _raised(rank: int, kind: type[BaseException], message: str, hint: str) -> LumaError:
    if issubclass(kind, LumaError):
        return kind(f"rank {rank}: {message}", hint=hint)
    return StorageError(f"rank {rank} failed: {message}.")


_groups: dict[tuple[dist.ProcessGroup, tuple[int, ...]], dist.ProcessGroup] = {}


def group_for_saves(process_group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return a gloo group of the same ranks, which only asynchronous saves use.

    Collectives of one group on two threads would meet in another order on each rank. All ranks
    of the group call it together; it is made once.
    """
    world: dist.ProcessGroup = dist.distributed_c10d._get_default_group()
    members = tuple(dist.get_process_group_ranks(process_group))
    if (world, members) not in _groups:
        _groups[world, members] = dist.new_group(
            list(members),
            backend="gloo",
            timeout=_timeout(process_group),
            use_local_synchronization=True,
        )
    return _groups[world, members]


def group_or_default(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return a process group, the default one where none is given.

    Raises:
        ValueError: there is no default group.
    """
    if process_group is not None:
        return process_group
    found: dist.ProcessGroup = dist.distributed_c10d._get_default_group()
    return found


def _timeout(group: dist.ProcessGroup) -> timedelta:
    """Return how long collectives of a group wait for a process."""
    backend = group._get_backend(torch.device(group._device_types[0]))
    found: timedelta = getattr(
        getattr(backend, "options", None), "_timeout", dist.default_pg_timeout
    )
    return found
