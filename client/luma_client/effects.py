"""What a request to the server is made of, apart from any network.

Each method of a client is a generator of steps. It yields what it wants done (send this request,
wait, do this beside) and is sent the outcome; it never does such a thing itself. So one text serves
the synchronous and the asynchronous client, which differ only in `runners`, and tests need no
network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Steps = Generator[Any, Any, T]
"""Yields effects, is sent their outcomes, and returns a T."""

Take = Callable[[bytes], None]
"""Receives the pieces of a body."""


@dataclass(frozen=True)
class Request:
    """Send this and return the `Reply`; raises `BrokenError` where no whole answer comes.

    Attributes:
        method: of HTTP.
        url: whole, without the query.
        params: the query.
        headers: beside those of every request.
        content: the body; not changed until the answer has come.
        body_to: told status and headers before the body comes; returns what receives the pieces of
            the body as they come, or None to have it whole in the reply.
    """

    method: str
    url: str
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | memoryview | None = None
    body_to: Callable[[int, Mapping[str, str]], Take | None] | None = None


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        url: what was asked.
        status: of HTTP.
        headers: by name, in any case.
        content: the body; empty where it was taken in pieces.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes = b""

    @property
    def media_type(self) -> str:
        """Media type of the body, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call a function that blocks, and return its result."""

    call: Callable[[], Any]


@dataclass(frozen=True)
class Fork:
    """Begin steps beside these and return a handle for `Join` and `Cancel`."""

    steps: Steps[Any]


@dataclass(frozen=True)
class Join:
    """Wait for what `Fork` began and return its result, or raise its error."""

    handle: Any


@dataclass(frozen=True)
class Cancel:
    """End what `Fork` began, wait until it has ended, and forget its results."""

    handles: tuple[Any, ...]


class BrokenError(Exception):
    """No whole answer came.

    Attributes:
        kind: ``connect`` where no connection was made, ``timeout`` where the server was silent,
            ``broken`` where the connection ended early, ``other`` for what will not get better.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Buffers:
    """Memory that is used again: fresh pages cost more than filling them.

    Args:
        size_bytes: of each buffer.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._free: list[bytearray] = []

    def take(self, count: int) -> memoryview:
        """Return ``count`` bytes, at most ``size_bytes``, that nobody else uses."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = bytearray(self._size_bytes)
        return memoryview(buffer)[:count]

    def give_back(self, view: memoryview) -> None:
        """Let others use what `take` returned."""
        assert isinstance(view.obj, bytearray)
        self._free.append(view.obj)


def in_lanes(
    works: Iterable[Callable[[], Steps[T]]], use: Callable[[T], Steps[None]], *, lanes: int
) -> Steps[None]:
    """Do ``works`` several at a time and ``use`` their results in order.

    Args:
        works: each makes the steps of one piece of work when its turn comes.
        use: what is done with each result.
        lanes: how many results are awaited or held at a time.
    """
    begun: deque[Any] = deque()
    try:
        for work in works:
            if len(begun) == lanes:
                yield from use((yield Join(begun.popleft())))
            begun.append((yield Fork(work())))
        while begun:
            yield from use((yield Join(begun.popleft())))
    except GeneratorExit:
        raise
    except BaseException:
        yield Cancel(tuple(begun))
        raise
