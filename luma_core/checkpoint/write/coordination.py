"""What processes that save or load together tell each other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from luma_core.errors import LumaError, StorageError

T = TypeVar("T")


class Processes:
    """The processes that work together.

    Args:
        group: all by default. Its time-out bounds how long they wait for one that disappeared.

    Attributes:
        rank: number of this process.
        world: how many there are.
        global_rank: number of this process in the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank: int = dist.get_rank(group)
        self.world: int = dist.get_world_size(group)
        self.global_rank: int = dist.get_rank()

    def told(self, value: T) -> list[T]:
        """Tell all processes a value, and return all values in their order.

        Raises:
            StorageError: a process disappeared.
        """
        found: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise StorageError(
                f"process {self.rank} of {self.world} lost another one: {error}.",
                hint="Start all processes again; the last checkpoint that was committed is whole.",
            ) from error
        return found

    def agreed(self, work: Callable[[], T]) -> list[T]:
        """Do some work in every process, and return all results once all have succeeded.

        Raises:
            LumaError: what the first process that failed raised, in all of them.
            StorageError: a process failed in another way, or disappeared.
        """
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        outcomes = self.told((None if failure is None else _described(failure), result))
        if failure is not None:
            raise failure
        for rank, (description, _) in enumerate(outcomes):
            if description is not None:
                raise _raised(rank, *description)
        return [value for _, value in outcomes]  # type: ignore[misc]


def _described(error: BaseException) -> tuple[type[BaseException], str, str]:
    if isinstance(error, LumaError):
        return type(error), error.message, error.hint
    return type(error), f"{type(error).__name__}: {error}", ""


def _raised(rank: int, kind: type[BaseException], message: str, hint: str) -> LumaError:
    if issubclass(kind, LumaError):
        return kind(f"process {rank}: {message}", hint=hint)
    return StorageError(f"process {rank} failed: {message}.")


_groups: dict[tuple[dist.ProcessGroup, tuple[int, ...]], dist.ProcessGroup] = {}


def group_for_saves(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return a gloo group of the same processes, which only saves behind training use.

    Collectives of one group on two threads would meet in another order in each process. All
    processes of the group call it together; it is made once.
    """
    world: dist.ProcessGroup = dist.distributed_c10d._get_default_group()
    members = tuple(dist.get_process_group_ranks(group))
    if (world, members) not in _groups:
        _groups[world, members] = dist.new_group(
            list(members),
            backend="gloo",
            timeout=_timeout(group or world),
            use_local_synchronization=True,
        )
    return _groups[world, members]


def _timeout(group: dist.ProcessGroup) -> timedelta:
    """Return how long collectives of a group wait for a process."""
    backend = group._get_backend(torch.device(group._device_types[0]))
    found: timedelta = getattr(
        getattr(backend, "options", None), "_timeout", dist.default_pg_timeout
    )
    return found
