"""The public interface as text: ``python -m tests.packaging.public_interface`` writes it anew.

It is what the packages' ``__all__`` name: functions with their signatures, classes with their
public methods and properties, dataclasses with their fields. A change of it shows in review as a
change of ``public_interface.txt``.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "luma_core",
    "luma_core.checkpoint",
    "luma_core.checkpoint.format",
    "luma_core.checkpoint.storage",
    "luma_core.convert",
    "luma_core.stats",
    "luma_core.optim",
    "luma_core.rules",
    "luma_core.partition",
    "luma_core.codecs",
    "luma_core.errors",
    "luma_client",
    "luma_server",
)
PATH = Path(__file__).with_suffix(".txt")


def interface() -> str:
    """Return the whole public interface as text."""
    homes: dict[int, str] = {}
    for package in PACKAGES:
        for name, value in _exported(package).items():
            homes.setdefault(id(value), f"{package}.{name}")
    lines: list[str] = []
    for package in PACKAGES:
        lines += ["", f"# {package}"]
        for name, value in sorted(_exported(package).items()):
            home = homes[id(value)]
            unique = inspect.isclass(value) or inspect.isroutine(value)
            if unique and home != f"{package}.{name}":
                lines.append(f"{name} = {home}")
            else:
                lines += _described(name, value, homes)
    return "\n".join(lines[1:]) + "\n"


def _exported(package: str) -> dict[str, Any]:
    module = importlib.import_module(package)
    own = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == package and not name.startswith("_")
    ]
    names = getattr(module, "__all__", own)
    return {name: getattr(module, name) for name in names}


def _described(name: str, value: Any, homes: dict[int, str]) -> Iterator[str]:
    if inspect.isclass(value) and not isinstance(value, types.GenericAlias):
        yield from _class(name, value, homes)
    elif inspect.isroutine(value):
        yield from _function(f"def {name}", value)
    elif isinstance(value, int | float | str) and not name.startswith("_"):
        yield f"{name} = {value!r}"
    else:
        yield f"{name}: {type(value).__name__}"


def _class(name: str, value: type, homes: dict[int, str]) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    if is_dataclass(value):
        for field in fields(value):
            made = field.default_factory is not MISSING
            default = " = ..." if made else ""
            if field.default is not MISSING:
                default = f" = {_text(repr(field.default))}"
            yield f"    {field.name}: {field.type}{default}"
    elif "__init__" in vars(value) or not issubclass(value, BaseException):
        yield from _function("    def __init__", value)
    # What comes from a base that is listed itself, or from what that is made of, is listed there.
    listed = {part for base in value.__mro__[1:] if id(base) in homes for part in base.__mro__}
    found: dict[str, Any] = {}
    for cls in value.__mro__:
        ours = cls.__module__.startswith("luma_") and cls not in listed
        for key, member in vars(cls).items() if ours else ():
            # PyTorch puts a wrapper of `step` into the class of every optimizer that is made.
            if not getattr(member, "hooked", False):
                found.setdefault(key, member)
    for key, member in sorted(found.items()):
        if not key.startswith("_"):
            yield from _member(key, member)


def _member(name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property) or type(member).__name__ == "cached_property":
        getter = member.fget if isinstance(member, property) else member.func
        yield f"    {name}: {getter.__annotations__.get('return', '?')} (property)"
    elif isinstance(member, classmethod | staticmethod):
        yield from _function(f"    @{type(member).__name__} def {name}", member.__func__)
    elif inspect.isroutine(member):
        yield from _function(f"    def {name}", member)


def _function(head: str, value: Any) -> Iterator[str]:
    """Yield a function's signature, in one line or with a line for each parameter."""
    signature = inspect.signature(value)
    whole = f"{head}{_unquoted(str(signature))}"
    if len(whole) <= 100:
        yield whole
        return
    indent = " " * (len(head) - len(head.lstrip()))
    yield f"{head}("
    before = inspect.Parameter.POSITIONAL_ONLY
    for parameter in signature.parameters.values():
        if before is not parameter.kind is parameter.KEYWORD_ONLY:
            yield f"{indent}    *,"
        before = parameter.kind
        yield f"{indent}    {_unquoted(str(parameter))},"
    yield f"{indent}){_unquoted(str(signature.replace(parameters=[])))[2:]}"


def _unquoted(text: str) -> str:
    """Return a signature whose annotations are no strings, which they are where postponed."""
    return _text(re.sub(r"(: |-> )'([^']*)'", r"\1\2", text))


def _text(value: str) -> str:
    """Return a text without addresses of objects."""
    return re.sub(r"<(.+?)(?: object)? at 0x\w+>", r"<\1>", value)


if __name__ == "__main__":
    PATH.write_text(interface())
