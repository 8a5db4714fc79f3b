"""What processes that save or load together tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

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
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank: int = dist.get_rank(group)
        self.world: int = dist.get_world_size(group)

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
