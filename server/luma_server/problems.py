"""The one body of every error, and which error has which status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from luma_core.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    LumaError,
    ServiceError,
    StorageError,
    UnknownCodecError,
    UnsafeNameError,
    UnsupportedVersionError,
)
from luma_core.wire import CODE_CHECKPOINT_NOT_FOUND, PROBLEM_MEDIA_TYPE, Problem

_ERRORS: tuple[tuple[type[LumaError], int, str], ...] = (
    (CheckpointNotFoundError, 404, CODE_CHECKPOINT_NOT_FOUND),
    (UnsafeNameError, 400, "unsafe_name"),
    (CorruptCheckpointError, 500, "corrupt_checkpoint"),
    (UnsupportedVersionError, 500, "unsupported_version"),
    (UnknownCodecError, 500, "unknown_codec"),
    (StorageError, 500, "storage_error"),
    (ServiceError, 503, "unavailable"),
)

_CODES = {404: "not_found", 405: "method_not_allowed"}


def problem_response(problem: Problem, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that carries ``problem``."""
    return Response(
        json.dumps(asdict(problem)),
        status_code=problem.status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type=PROBLEM_MEDIA_TYPE,
    )


def make_problem(
    status: int, detail: str, code: str, *, hint: str = "", request_id: str = ""
) -> Problem:
    """Return a problem whose title is the name of its status."""
    return Problem(status, HTTPStatus(status).phrase, detail, code, hint, request_id)


def install_problems(app: FastAPI, hide_root: Callable[[str], str]) -> None:
    """Answer every error of the routes with a problem.

    Args:
        app: the application.
        hide_root: removes the root's path from a message.
    """

    def luma_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, LumaError)
        status, code = next(
            ((status, code) for kind, status, code in _ERRORS if isinstance(error, kind)),
            (500, "internal_error"),
        )
        return answer(request, status, hide_root(error.message), code, hint=hide_root(error.hint))

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, path = error.status_code, request.url.path
        detail = {
            404: f"there is nothing at {path}.",
            405: f"{path} does not support {request.method}.",
        }.get(status, str(error.detail))
        code = _CODES.get(status, "http_error")
        return answer(request, status, detail, code, headers=error.headers)

    def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return answer(request, 422, f"{place}: {first['msg']}.", "invalid_request")

    app.add_exception_handler(LumaError, luma_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def answer(
    request: Request,
    status: int,
    detail: str,
    code: str,
    *,
    hint: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem that names the request."""
    request_id: str = request.state.request_id
    problem = make_problem(status, detail, code, hint=hint, request_id=request_id)
    return problem_response(problem, headers=headers)


def document_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Give the error answers in an OpenAPI schema the media type they have."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            content = operation["responses"]["default"]["content"]
            content[PROBLEM_MEDIA_TYPE] = content.pop("application/json")
    return schema
