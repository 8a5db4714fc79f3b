"""Doing what steps ask for: over httpx, with threads or on an event loop."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import httpx

from luma_client.effects import (
    BrokenError,
    Cancel,
    Fork,
    Join,
    Reply,
    Request,
    Sleep,
    Steps,
    Take,
    Work,
)

T = TypeVar("T")

THREADS = 8
"""Requests of one synchronous client that are on their way beside the caller's own."""

MAX_ANSWER_BYTES = 512 << 20
"""Larger answers are refused, unless they are taken in pieces."""


_SLICE_BYTES = 256 << 10


class _StoppedError(Exception):
    """Ends steps whose result nobody wants any more."""


class _Body:
    """Where the body of one answer goes."""

    def __init__(self, request: Request, response: httpx.Response) -> None:
        self._request = request
        self._response = response
        self._kept = bytearray()
        choose = request.body_to
        self._take: Take | None = (
            None if choose is None else choose(response.status_code, response.headers)
        )

    def add(self, piece: bytes) -> None:
        if self._take is not None:
            self._take(piece)
            return
        self._kept += piece
        if len(self._kept) > MAX_ANSWER_BYTES:
            raise BrokenError("other", f"the answer has more than {MAX_ANSWER_BYTES} bytes")

    def reply(self) -> Reply:
        headers: Mapping[str, str] = self._response.headers
        return Reply(self._request.url, self._response.status_code, headers, bytes(self._kept))


@contextmanager
def _told_broken() -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        kind = "connect" if isinstance(error, httpx.ConnectTimeout) else "timeout"
        raise BrokenError(kind, str(error) or "no answer in time") from error
    except httpx.ConnectError as error:
        kind = "other" if isinstance(_root_of(error), ssl.SSLError) else "connect"
        raise BrokenError(kind, str(error)) from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise BrokenError("broken", str(error) or type(error).__name__) from error
    except httpx.HTTPError as error:
        raise BrokenError("other", str(error) or type(error).__name__) from error


def _root_of(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _arguments(request: Request) -> dict[str, Any]:
    headers = dict(request.headers)
    if request.content is not None:
        headers["Content-Length"] = str(len(request.content))
    return {"params": list(request.params), "headers": headers}


def _slices(content: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """Yield a body piece by piece: sent as one, it would be copied as one."""
    view = memoryview(content)
    return (view[start : start + _SLICE_BYTES] for start in range(0, len(view), _SLICE_BYTES))


async def _slices_async(content: bytes | memoryview) -> AsyncIterator[bytes | memoryview]:
    for piece in _slices(content):
        yield piece


class SyncRunner:
    """Runs steps in the caller's thread, and what they fork in a few more.

    Args:
        transport: replaces the network.
        options: further ones of ``httpx.Client``.
    """

    def __init__(self, transport: httpx.BaseTransport | None, options: Mapping[str, Any]) -> None:
        self._http = httpx.Client(transport=transport, **options)
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            self._pool.shutdown()
        self._http.close()

    def run(self, steps: Steps[T], stop: threading.Event | None = None) -> T:
        """Return what ``steps`` return."""
        outcome: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = steps.send(outcome) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            outcome = error = None
            try:
                outcome = self._do(effect, stop)
            except BaseException as caught:
                error = caught

    def _do(self, effect: object, stop: threading.Event | None) -> Any:
        if stop is not None and stop.is_set():
            raise _StoppedError
        match effect:
            case Request():
                return self._send(effect)
            case Work(call):
                return call()
            case Sleep(seconds):
                (stop or threading.Event()).wait(seconds)
            case Fork(steps):
                stopped = threading.Event()
                return self._threads().submit(self.run, steps, stopped), stopped
            case Join((future, _)):
                return future.result()
            case Cancel(handles):
                _cancel(handles)
            case _:
                raise TypeError(f"no such effect: {effect!r}")
        return None

    def _threads(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, "luma-client")
            return self._pool

    def _send(self, request: Request) -> Reply:
        content: Any = None if request.content is None else _slices(request.content)
        with (
            _told_broken(),
            self._http.stream(
                request.method, request.url, content=content, **_arguments(request)
            ) as response,
        ):
            body = _Body(request, response)
            for piece in response.iter_bytes():
                body.add(piece)
            return body.reply()


def _cancel(handles: tuple[tuple[Future[Any], threading.Event], ...]) -> None:
    for future, stopped in handles:
        stopped.set()
        future.cancel()
    wait([future for future, _ in handles])


class AsyncRunner:
    """Runs steps on the event loop of the caller; what blocks goes to threads.

    Args:
        transport: replaces the network.
        options: further ones of ``httpx.AsyncClient``.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None, options: Mapping[str, Any]
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, steps: Steps[T]) -> T:
        """Return what ``steps`` return."""
        outcome: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = steps.send(outcome) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            outcome = error = None
            try:
                outcome = await self._do(effect)
            except BaseException as caught:
                error = caught

    async def _do(self, effect: object) -> Any:
        match effect:
            case Request():
                return await self._send(effect)
            case Work(call):
                return await asyncio.to_thread(call)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Fork(steps):
                return asyncio.create_task(self.run(steps))
            case Join(task):
                return await task
            case Cancel(tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            case _:
                raise TypeError(f"no such effect: {effect!r}")
        return None

    async def _send(self, request: Request) -> Reply:
        content: Any = None if request.content is None else _slices_async(request.content)
        with _told_broken():
            async with self._http.stream(
                request.method, request.url, content=content, **_arguments(request)
            ) as response:
                body = _Body(request, response)
                async for piece in response.aiter_bytes():
                    body.add(piece)
                return body.reply()
