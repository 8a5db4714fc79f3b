"""Methods that both clients have, written once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from luma_client.effects import Steps
from luma_client.runners import AsyncRunner, SyncRunner

P = ParamSpec("P")
T = TypeVar("T")


class Operation(Generic[P, T]):
    """A method whose steps are run by the client it is called on.

    On a `SyncRunner` it returns the result, on an `AsyncRunner` what can be awaited for it.

    Args:
        steps: makes the steps from the client and the call's arguments.
    """

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: SyncRunner, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncRunner, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: SyncRunner | AsyncRunner | None, owner: type) -> Any:
        if client is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(self.steps(client, *args, **kwargs))

        return update_wrapper(call, self.steps)

    def __call__(self, client: SyncRunner, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it, as ``Client.method(client, ...)``."""
        return client.run(self.steps(client, *args, **kwargs))
