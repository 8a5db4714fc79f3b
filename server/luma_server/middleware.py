"""What happens to every request: a name, a log line, and an answer even if the code fails."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luma_core.wire import REQUEST_ID_HEADER
from luma_server.problems import make_problem, problem_response

_log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

_ENCODED_SEPARATOR = re.compile(rb"%(?:2f|5c|00)", re.IGNORECASE)


class RequestMiddleware:
    """Names requests, logs them, and turns unexpected exceptions into problems.

    A request keeps the ``X-Request-ID`` it came with where that is 1 to 128 letters, digits, ``.``,
    ``_`` and ``-``. Encoded slashes, backslashes and NUL bytes in a path are refused here, as the
    router sees the decoded path, in which they could shift the meaning of its parts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._handle(scope, receive, named_send, request_id)
        except Exception:
            _log.exception("request failed", extra={"request_id": request_id})
            if status:
                raise
            problem = make_problem(
                500,
                "the server failed to answer.",
                "internal_error",
                hint="Its log tells more under this request_id.",
                request_id=request_id,
            )
            await problem_response(problem)(scope, receive, named_send)
        finally:
            fields = {"request_id": request_id, "status": status}
            fields |= {name: scope[name] for name in ("method", "path")}
            fields["seconds"] = round(time.perf_counter() - began, 6)
            _log.info("request", extra=fields)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        if _ENCODED_SEPARATOR.search(scope.get("raw_path", b"")):
            problem = make_problem(
                400,
                "the path holds an encoded slash, backslash or NUL byte.",
                "unsafe_name",
                hint="Names of runs and steps hold letters, digits, '.', '_' and '-' only.",
                request_id=request_id,
            )
            await problem_response(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)
