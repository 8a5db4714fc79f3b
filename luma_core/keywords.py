"""Options that several functions take by keyword: named and described once, in a dataclass.

A function takes them as ``**keywords: Unpack[...]`` of a `TypedDict` with the fields of the
dataclass, which type checkers read; signature and docstring are completed here, for readers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from luma_core.errors import ConfigurationError

Options = TypeVar("Options")


def check_keywords(function: str, options: type, keywords: Mapping[str, Any]) -> None:
    """Check that keywords are fields of a dataclass of options.

    Raises:
        TypeError: one of them is none, as Python says it of functions.
    """
    known = {field.name for field in fields(options)}
    unknown = next((name for name in keywords if name not in known), None)
    if unknown is not None:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}")


def merge_keywords(
    function: str, kind: type[Options], options: Options | None, keywords: Mapping[str, Any]
) -> Options:
    """Return what a function was given as ``options``, with what it was given by keyword.

    Args:
        function: its name, for errors.
        kind: the dataclass of options.
        options: an instance of it; ``None`` for its defaults.
        keywords: fields of it, which replace those of ``options``.

    Raises:
        ConfigurationError: ``options`` is something else, or a value cannot work.
        TypeError: a keyword is no field, as Python says it of functions.
    """
    check_keywords(function, kind, keywords)
    if options is not None and not isinstance(options, kind):
        raise ConfigurationError(
            f"options={options!r} must be {kind.__name__}, or None.",
            hint=f"Give {kind.__name__}(...), or the options themselves by keyword.",
        )
    given: Any = kind() if options is None else options
    merged: Options = replace(given, **keywords)
    return merged


def show_keywords(function: Callable[..., Any], options: type) -> None:
    """Show the fields of a dataclass of options as keywords in a function's signature."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shown = signature.replace(parameters=[*own, *_parameters(options)])
    function.__signature__ = shown  # type: ignore[attr-defined]


def with_keywords(text: str, options: type) -> str:
    """Return a docstring, cleaned of indents, with the fields of options at the end of its Args."""
    told = inspect.cleandoc(options.__doc__ or "").partition("Attributes:\n")[2]
    args, title, rest = inspect.cleandoc(text).partition("\n\nRaises:")
    return f"{args}\n{told}{title}{rest}"


def _parameters(options: type) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(options)
    ]
