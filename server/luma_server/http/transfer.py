"""Answers that are files: conditions, ranges, and bodies in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from anyio.to_thread import run_sync
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.names import check_name
from luma_core.checkpoint.storage.store import Store
from luma_core.direct import opened
from luma_core.errors import StorageError
from luma_server.http.problems import ApiError

ZERO_COPY = "http.response.zerocopysend"
"""The ASGI extension by which a server sends from a file without copying."""

_PIECE_BYTES = 1 << 20
_REMOTE_PIECE_BYTES = 4 << 20

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True)
class Span:
    """Bytes of a file: from ``start`` on, ``count`` of them."""

    start: int
    count: int


def parse_range(text: str | None, size_bytes: int) -> Span | None:
    """Return what a ``Range`` header asks for; ``None`` for the whole file.

    Several ranges, other units and nonsense ask for the whole file, as RFC 9110 allows.

    Raises:
        ApiError: it begins behind the end.
    """
    found = _RANGE.fullmatch(text.strip()) if text else None
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        start, stop = max(0, size_bytes - int(found[2])), size_bytes
        if int(found[2]) == 0:
            start = size_bytes
    else:
        start = int(found[1])
        stop = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
        if found[2] and int(found[2]) < start:
            return None
    if start >= size_bytes:
        raise ApiError(
            "range_not_satisfiable",
            f"the file has {size_bytes} bytes.",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return Span(start, stop - start)


def is_known(request: Request, etag: str) -> bool:
    """Whether ``If-None-Match`` says that the client has what the tag names."""
    given = ",".join(request.headers.getlist("If-None-Match")).split(",")
    tags = {tag.strip().removeprefix("W/") for tag in given}
    return "*" in tags or etag in tags


def not_modified(etag: str) -> Response:
    """Return the answer without a body."""
    return Response(status_code=304, headers=cache_headers(etag))


def cache_headers(etag: str) -> dict[str, str]:
    """Return headers by which clients keep an answer and ask whether it still holds."""
    # A checkpoint may be replaced under the same name, so what is kept must be asked for again.
    return {"ETag": etag, "Cache-Control": "no-cache"}


def file_response(
    request: Request, store: Store, name: str, *, size_bytes: int, etag: str, media_type: str
) -> Response:
    """Return the answer to a GET or HEAD of a file.

    Args:
        request: its conditions and range.
        store: where the file is.
        name: of the file.
        size_bytes: its size.
        etag: names its content; strong.
        media_type: of its content.

    Raises:
        ApiError: the range begins behind the end.
    """
    if is_known(request, etag):
        return not_modified(etag)
    wanted = request.headers.get("Range")
    if request.headers.get("If-Range", etag) != etag:
        wanted = None
    span = parse_range(wanted, size_bytes)
    headers = {**cache_headers(etag), "Accept-Ranges": "bytes"}
    status = 200
    if span is not None:
        status = 206
        last = span.start + span.count - 1
        headers["Content-Range"] = f"bytes {span.start}-{last}/{size_bytes}"
    span = span or Span(0, size_bytes)
    headers["Content-Length"] = str(span.count)
    if request.method == "HEAD" or not span.count:
        return _Empty(status, headers, media_type)
    return _FileResponse(store, check_name(name), span, status, headers, media_type)


class _Empty(Response):
    """Headers alone; their Content-Length tells of the body that a GET would have."""

    def __init__(self, status: int, headers: dict[str, str], media_type: str) -> None:
        super().__init__(b"", status, headers, media_type)


class _FileResponse(Response):
    """Sends a span of a file: from the page cache where the server can, else piece by piece."""

    def __init__(
        self,
        store: Store,
        name: str,
        span: Span,
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(None, status, headers, media_type)
        self._store = store
        self._name = name
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(self._store, LocalStore):
            await self._send_local(self._store.path / self._name, scope, receive, send)
            return
        read = partial(self._store.read_range, self._name)
        first = await run_sync(self._first_piece, read)
        await self._begin(send)
        await self._send_pieces(lambda at: read(at, self._end(at)), first, receive, send)

    def _end(self, at: int) -> int:
        return min(at + _REMOTE_PIECE_BYTES, self._span.start + self._span.count)

    def _first_piece(self, read: Callable[[int, int], bytes]) -> bytes:
        """Read before anything is sent, so that a store that fails is told by a problem."""
        try:
            return read(self._span.start, self._end(self._span.start))
        except FileNotFoundError as error:
            raise _gone(self._name) from error

    async def _begin(self, send: Send) -> None:
        message = {"type": "http.response.start", "status": self.status_code}
        await send({**message, "headers": self.raw_headers})

    async def _send_local(self, path: Path, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            file: BinaryIO = await run_sync(lambda: opened(path))
        except (FileNotFoundError, IsADirectoryError, StorageError) as error:
            raise _gone(self._name) from error
        with file:
            if file.seek(0, 2) < self._span.start + self._span.count:
                raise _gone(self._name)
            await self._begin(send)
            if ZERO_COPY in scope.get("extensions", {}):
                message = {"type": ZERO_COPY, "file": file, "offset": self._span.start}
                await send({**message, "count": self._span.count, "more_body": False})
                return
            read = partial(_read_at, file, self._span.start + self._span.count)
            first = await run_sync(read, self._span.start)
            await self._send_pieces(read, first, receive, send)

    async def _send_pieces(
        self, read: Callable[[int], bytes], piece: bytes, receive: Receive, send: Send
    ) -> None:
        """Send what ``read`` returns for each place, one piece being read while another is sent."""
        gone = asyncio.ensure_future(_until_gone(receive))
        at, end = self._span.start, self._span.start + self._span.count
        try:
            while piece and not gone.done():
                at += len(piece)
                following = asyncio.ensure_future(run_sync(read, at)) if at < end else None
                message = {"type": "http.response.body", "body": piece}
                await send({**message, "more_body": following is not None})
                piece = await following if following is not None else b""
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
        # A file that got shorter meanwhile: the connection ends without the promised length.


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read_at(file: BinaryIO, end: int, at: int) -> bytes:
    file.seek(at)
    return file.read(min(_PIECE_BYTES, end - at))


def _gone(name: str) -> ApiError:
    return ApiError("file_not_found", f"there is no file {name!r} in that checkpoint any more.")
