"""One table from exception to exit code, and the way errors are printed."""

from __future__ import annotations

import json

import typer

from luma_core import errors

EXIT_CODES: tuple[tuple[type[errors.LumaError], int], ...] = (
    (errors.CheckpointNotFoundError, 3),
    (errors.CheckpointExistsError, 4),
    (errors.ConcurrentSaveError, 4),
    (errors.CorruptCheckpointError, 5),
    (errors.UnsupportedVersionError, 5),
    (errors.UnsafeNameError, 5),
    (errors.UnknownCodecError, 5),
    (errors.StorageError, 7),
    (errors.CheckpointError, 5),
    (errors.ConversionError, 6),
    (errors.StateMismatchError, 6),
    (errors.UnsupportedParameterError, 6),
    (errors.ServiceError, 8),
    (errors.ConfigurationError, 2),
    (errors.LumaError, 1),
)
"""The first class an error is an instance of decides."""


def exit_code(error: errors.LumaError) -> int:
    """Return the exit code of an error of this project."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def report(error: Exception, *, as_json: bool) -> int | None:
    """Print ``error`` to standard error and return the exit code; ``None`` if it is a bug.

    Args:
        error: what a command raised.
        as_json: print ``{"error": {"type", "message", "hint", "exit_code"}}`` instead of prose.
    """
    if isinstance(error, errors.LumaError):
        code = exit_code(error)
        if as_json:
            body = {
                "type": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "exit_code": code,
            }
            typer.echo(json.dumps({"error": body}), err=True)
            return code
        typer.echo(typer.style("error: ", fg="red", bold=True) + error.message, err=True)
        if error.hint:
            typer.echo(typer.style(" hint: ", fg="cyan") + error.hint, err=True)
        return code
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    return None
