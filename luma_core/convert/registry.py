"""Formats by name: those of the catalog, and those that other packages bring."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from luma_core import catalog
from luma_core.convert.base import Sink, Source, Url
from luma_core.errors import ConfigurationError, NameTakenError
from luma_core.extensions import EntryPoints

_log = logging.getLogger("luma")


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        name: what it is called.
        source: opens state in it, with the model that gives names; None where it is only written.
        sink: writes it; None where it is only read.
        detect: whether a place holds it.
    """

    name: str
    source: Callable[[Url, Url | None], Source] | None
    sink: Sink | None
    detect: Callable[[Url], bool]


_ENTRIES = {entry.name: entry for entry in catalog.FORMATS}

_registered: dict[str, Format] = {}


def register_format(format: Format) -> Format:
    """Make a format known by its name, to be read from and written to.

    A package that is installed need not call it: an entry point in the group ``luma_core.formats``
    that names a `Format` does the same when formats are first looked for.

    Raises:
        ConfigurationError: it is no `Format` with a name, or can be neither read nor written.
        NameTakenError: another format has that name.
    """
    if not isinstance(format, Format):
        raise ConfigurationError(
            f"format={format!r} must be a luma_core.convert.Format.",
            hint="Give Format(name=..., source=..., sink=..., detect=...).",
        )
    name = format.name
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"Format.name={name!r} must be a string that is not empty.",
            hint="Give it a name, for example Format(name='mine', ...).",
        )
    if format.source is None and format.sink is None:
        raise ConfigurationError(
            f"format {name!r} has source=None and sink=None.",
            hint="Give a function that opens it, or one that writes it.",
        )
    if name in _ENTRIES or _registered.setdefault(name, format) != format:
        raise NameTakenError(
            f"format name {name!r} is that of another format.", hint="Give it another name."
        )
    return format


entry_points = EntryPoints("luma_core.formats", register_format)
"""Formats of other packages."""


def find_format(name: str) -> Format | None:
    """Return the format of a name; None where there is none."""
    if name in _ENTRIES:
        return _own(name)
    if name not in _registered:
        entry_points.load()
    return _registered.get(name)


@cache
def _own(name: str) -> Format:
    entry = _ENTRIES[name]
    source, sink, detect = (
        None if home is None else catalog.import_home(home)
        for home in (entry.source, entry.sink, entry.detect)
    )
    return Format(name=name, source=source, sink=sink, detect=detect or (lambda _: False))


def detect_format(place: Url) -> Format | None:
    """Return the format that a place holds and that can be read; None where none is known.

    Formats of other packages are asked before the last of our own, which takes any file.
    """
    *own, last = (_own(entry.name) for entry in catalog.FORMATS if entry.source)
    for format in own:
        if format.detect(place):
            return format
    entry_points.load()
    for format in list(_registered.values()):
        if format.source and _detects(format, place):
            return format
    return last if last.detect(place) else None


def _detects(format: Format, place: Url) -> bool:
    try:
        return bool(format.detect(place))
    # Another package's code raises what it likes, and the place may hold something else.
    except Exception as error:
        _log.warning(
            "format %r of another package cannot tell whether %s holds it: %s: %s",
            format.name,
            os.fspath(place),
            type(error).__name__,
            error,
        )
        return False


def format_names() -> tuple[str, ...]:
    """Return the names of all formats, sorted."""
    entry_points.load()
    return tuple(sorted({*_ENTRIES, *_registered}))


def target_names() -> tuple[str, ...]:
    """Return the names of the formats that can be written, sorted."""
    entry_points.load()
    own = (name for name, one in _registered.items() if one.sink)
    return tuple(sorted({*catalog.WRITTEN_FORMATS, *own}))


def source_names() -> tuple[str, ...]:
    """Return the names of the formats that can be read, sorted."""
    entry_points.load()
    own = (name for name, one in _registered.items() if one.source)
    return tuple(sorted({*catalog.READ_FORMATS, *own}))
