"""The one body of every error, and which error has which status."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    ConfigurationError,
    ConversionError,
    CorruptCheckpointError,
    LumaError,
    ServiceError,
    StorageError,
    UnknownCodecError,
    UnsafeNameError,
    UnsupportedVersionError,
)
from luma_core.wire import CODE_CHECKPOINT_NOT_FOUND, PROBLEM_MEDIA_TYPE, Problem

STATUS: dict[str, int] = {
    "unsafe_name": 400,
    "wrong_host": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    CODE_CHECKPOINT_NOT_FOUND: 404,
    "file_not_found": 404,
    "upload_not_found": 404,
    "job_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "upload_too_slow": 408,
    "checkpoint_changed": 409,
    "checkpoint_exists": 409,
    "commit_in_progress": 409,
    "pinned": 409,
    "in_use": 409,
    "upload_incomplete": 409,
    "job_not_finished": 409,
    "length_required": 411,
    "too_large": 413,
    "range_not_satisfiable": 416,
    "invalid_request": 422,
    "invalid_manifest": 422,
    "digest_mismatch": 422,
    "cannot_convert": 422,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "too_many_sessions": 429,
    "too_many_jobs": 429,
    "corrupt_checkpoint": 500,
    "unsupported_version": 500,
    "unknown_codec": 500,
    "internal_error": 500,
    "storage_error": 503,
    "unavailable": 503,
    "not_ready": 503,
    "store_full": 507,
}
"""HTTP status of every `Problem.code`."""

_ERRORS: tuple[tuple[type[LumaError], str], ...] = (
    (CheckpointNotFoundError, CODE_CHECKPOINT_NOT_FOUND),
    (CheckpointExistsError, "checkpoint_exists"),
    (ConcurrentSaveError, "commit_in_progress"),
    (UnsafeNameError, "unsafe_name"),
    (CorruptCheckpointError, "corrupt_checkpoint"),
    (UnsupportedVersionError, "unsupported_version"),
    (UnknownCodecError, "unknown_codec"),
    (StorageError, "storage_error"),
    (ConversionError, "cannot_convert"),
    (ConfigurationError, "invalid_request"),
    (ServiceError, "unavailable"),
)

_OF_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    408: "upload_too_slow",
    413: "too_large",
}

_RETRY = {"storage_error": "2", "unavailable": "1", "commit_in_progress": "1"}
"""Seconds after which the same request may succeed."""


class ApiError(LumaError):
    """An answer that is a problem.

    Args:
        code: one of `STATUS`.
        message: what was wrong, in one sentence.
        hint: what to do about it.
        headers: more headers of the answer.
    """

    def __init__(
        self, code: str, message: str, *, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.headers = dict(headers or {})


def code_of(error: LumaError) -> str:
    """Return the `Problem.code` of an error."""
    if isinstance(error, ApiError):
        return error.code
    if isinstance(error, StorageError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "store_full"
    return next((code for kind, code in _ERRORS if isinstance(error, kind)), "internal_error")


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


def error_response(error: LumaError, request_id: str, hide: Callable[[str], str]) -> Response:
    """Return the answer that tells of ``error``.

    Args:
        error: what was raised.
        request_id: names the request.
        hide: removes the root's address from a message.
    """
    code = code_of(error)
    headers = {"Retry-After": _RETRY[code]} if code in _RETRY else {}
    if isinstance(error, ApiError):
        headers |= error.headers
    problem = make_problem(
        STATUS[code], hide(error.message), code, hint=hide(error.hint), request_id=request_id
    )
    return problem_response(problem, headers=headers)


def install_problems(app: FastAPI, hide: Callable[[str], str]) -> None:
    """Answer every error of the routes with a problem.

    Args:
        app: the application.
        hide: removes the root's address from a message.
    """

    def luma_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, LumaError)
        return error_response(error, request.state.request_id, hide)

    def os_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, OSError)
        told = StorageError(f"the store failed: {error.strerror or type(error).__name__}.")
        told.errno = error.errno
        return error_response(told, request.state.request_id, hide)

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, path = error.status_code, request.url.path
        detail = {
            404: f"there is nothing at {path}.",
            405: f"{path} does not support {request.method}.",
        }.get(status, str(error.detail))
        code = _OF_STATUS.get(status, "bad_request")
        problem = make_problem(status, detail, code, request_id=request.state.request_id)
        return problem_response(problem, headers=error.headers)

    def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        told = ApiError("invalid_request", f"{place}: {first['msg']}.")
        return error_response(told, request.state.request_id, hide)

    app.add_exception_handler(LumaError, luma_error)
    app.add_exception_handler(OSError, os_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def document_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Give the error answers in an OpenAPI schema the media type they have."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            content = operation["responses"]["default"]["content"]
            content[PROBLEM_MEDIA_TYPE] = content.pop("application/json")
            # FastAPI's own description of a validation error is not what is answered.
            operation["responses"].pop("422", None)
    return schema
