"""What happens to every request: a name, limits, a log line, and an answer if the code fails."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luma_core.wire import REQUEST_ID_HEADER
from luma_server.http.problems import ApiError, error_response
from luma_server.http.transfer import ZERO_COPY
from luma_server.metrics import Metrics
from luma_server.settings import Settings

_log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ENCODED_SEPARATOR = re.compile(rb"%(?:2f|5c|00)", re.IGNORECASE)
_PART = re.compile(r"/v1/uploads/[^/]+/files/[^/]+/parts/[^/]+")
_MANIFEST = re.compile(r"/v1/uploads(?:/[^/]+/commit)?")

_JSON_GROWTH = 2
"""How much longer a manifest may get as a JSON string."""


@dataclass
class _Course:
    """What is known of a request on its way."""

    request_id: str
    status: int = 0
    received: int = 0
    sent: int = 0


class RequestMiddleware:
    """Names requests, limits and logs them, and turns unexpected exceptions into problems.

    A request keeps the ``X-Request-ID`` it came with where that is 1 to 128 letters, digits, ``.``,
    ``_`` and ``-``. Encoded slashes, backslashes and NUL bytes in a path are refused here, as the
    router sees the decoded path, in which they could shift the meaning of its parts.

    Args:
        app: what answers.
        settings: limits.
        metrics: what counts.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        course = _Course(request_id)
        began = time.perf_counter()
        try:
            await self._handle(scope, receive, _counting(send, course), course)
        except Exception:
            _log.exception("request failed", extra={"request_id": request_id})
            if course.status:
                raise
            told = ApiError(
                "internal_error",
                "the server failed to answer.",
                hint="Its log tells more under this request_id.",
            )
            answer = error_response(told, request_id, str)
            await answer(scope, receive, _counting(send, course))
        finally:
            self._tell(scope, course, time.perf_counter() - began)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, course: _Course) -> None:
        problem = None
        limit = self._limit(scope)
        length = Headers(scope=scope).get("Content-Length", "")
        if _ENCODED_SEPARATOR.search(scope.get("raw_path") or b""):
            problem = ApiError(
                "unsafe_name",
                "the path holds an encoded slash, backslash or NUL byte.",
                hint="Names of runs and steps hold letters, digits, '.', '_' and '-' only.",
            )
        elif length.isdigit() and int(length) > limit:
            problem = ApiError("too_large", f"a body of {length} bytes; at most {limit}.")
        if problem is not None:
            await error_response(problem, course.request_id, str)(scope, receive, send)
            return
        limited = _limited(receive, limit, self._settings.idle_seconds, course)
        await self._app(scope, limited, send)

    def _limit(self, scope: Scope) -> int:
        """Return how long the body may be."""
        path, settings = scope["path"], self._settings
        if scope["method"] == "PUT" and _PART.fullmatch(path):
            return settings.part_bytes
        if scope["method"] == "POST" and _MANIFEST.fullmatch(path):
            return settings.max_body_bytes + _JSON_GROWTH * settings.max_manifest_bytes
        return settings.max_body_bytes

    def _tell(self, scope: Scope, course: _Course, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if route != "other" else "other"
        self._metrics.request(
            method,
            route,
            course.status,
            seconds=seconds,
            received=course.received,
            sent=course.sent,
        )
        fields = {"request_id": course.request_id, "status": course.status}
        fields |= {name: scope[name] for name in ("method", "path")}
        fields |= {"seconds": round(seconds, 6), "token": scope["state"].get("token", "")}
        fields |= {"received_bytes": course.received, "sent_bytes": course.sent}
        _log.info("request", extra=fields)


def _counting(send: Send, course: _Course) -> Send:
    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            course.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = course.request_id
            headers["X-Content-Type-Options"] = "nosniff"
        course.sent += len(message.get("body", b""))
        if message["type"] == ZERO_COPY:
            course.sent += message["count"]
        await send(message)

    return counted


def _limited(receive: Receive, limit: int, idle_seconds: float, course: _Course) -> Receive:
    more = True

    async def limited() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout(idle_seconds):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"nothing came for {idle_seconds:g} s.") from error
        more = message.get("more_body", False)
        course.received += len(message.get("body", b""))
        if course.received > limit:
            raise HTTPException(413, f"a body of more than {limit} bytes.")
        return message

    return limited
