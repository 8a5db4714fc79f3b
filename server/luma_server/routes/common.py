"""What routes share: the application's state, types of parameters, kinds of answers."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response

from luma_core.wire import Problem
from luma_server.application_state import ApplicationState
from luma_server.http.access import Principal
from luma_server.http.transfer import cache_headers

_audit = logging.getLogger("luma_server.audit")

MAX_NAME_CHARACTERS = 200
"""Longer names of runs, steps and files are refused."""

MAX_PATTERN_CHARACTERS = 512
"""Longer patterns are refused: a parameter's name is shorter."""

PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "description": "Any error"}
}
CONDITIONAL: dict[int | str, dict[str, Any]] = {
    304: {"description": "Unchanged since the answer whose ETag was sent in If-None-Match"},
}


# Dependencies are asynchronous, as the others take a turn in a thread.
async def _application(request: Request) -> ApplicationState:
    application: ApplicationState = request.app.state.application
    return application


Server = Annotated[ApplicationState, Depends(_application)]

Run = Annotated[str, Path(description="Name of the run")]
Step = Annotated[str, Path(description="Name of the step")]


def json_response(body: bytes, etag: str) -> Response:
    """Return a JSON answer that clients may keep."""
    return Response(body, media_type="application/json", headers=cache_headers(etag))


def audit(request: Request, principal: Principal, event: str, **facts: object) -> None:
    """Log that something was written, by whom."""
    fields = {"event": event, "token": principal.id, "request_id": request.state.request_id}
    _audit.info("write", extra={**fields, "facts": facts})
