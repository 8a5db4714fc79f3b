"""Options that several functions take by keyword: named and described once, in a dataclass.

A function takes them as ``**keywords: Unpack[...]`` of a `TypedDict` with the fields of the
dataclass, which type checkers read; signature and docstring are completed here, for readers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any


def check_keywords(function: str, options: type, keywords: Mapping[str, Any]) -> None:
    """Check that keywords are fields of a dataclass of options.

    Raises:
        TypeError: one of them is none, as Python says it of functions.
    """
    known = {field.name for field in fields(options)}
    unknown = next((name for name in keywords if name not in known), None)
    if unknown is not None:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}")


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
