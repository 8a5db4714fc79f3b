"""Codecs by name: those of the catalog, and those that other packages bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from luma_core import catalog
from luma_core.codecs.base import Codec
from luma_core.errors import ConfigurationError, NameTakenError, UnknownCodecError
from luma_core.extensions import EntryPoints

_HOMES = {**{entry.name: entry.home for entry in catalog.CODECS}, **catalog.GENERIC_CODECS}

_types: dict[str, type[Codec]] = {}

C = TypeVar("C", bound=type[Codec])


def register_codec(codec: C) -> C:
    """Make a codec known by its name, for optimizers and checkpoints; a class decorator.

    A package that is installed need not call it: an entry point in the group ``luma_core.codecs``
    that names the class does the same when the codec is first asked for.

    Args:
        codec: a subclass of `Codec` with a ``name`` of its own.

    Raises:
        ConfigurationError: it is none.
        NameTakenError: another codec has that name.
    """
    if not (isinstance(codec, type) and issubclass(codec, Codec)):
        raise ConfigurationError(
            f"codec={codec!r} must be a class.",
            hint="Give a subclass of luma_core.codecs.Codec, not an instance.",
        )
    name = getattr(codec, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"{codec.__name__}.name={name!r} must be a string that is not empty.",
            hint="Set it in the class, for example name = 'mine_m'.",
        )
    if name in _HOMES or _types.setdefault(name, codec) is not codec:
        raise NameTakenError(
            f"codec name {name!r} of {codec.__module__}.{codec.__qualname__} is that of another.",
            hint="Give the class another name.",
        )
    return codec


entry_points = EntryPoints("luma_core.codecs", register_codec)
"""Codecs of other packages."""


def codec_names() -> tuple[str, ...]:
    """Return the names of all codecs, sorted."""
    entry_points.load()
    return tuple(sorted({*_HOMES, *_types}))


def codec_type(name: str) -> type[Codec]:
    """Return the class of the codec of a name.

    Raises:
        UnknownCodecError: there is none.
    """
    found = _types.get(name)
    if found is None and name in _HOMES:
        found = _types[name] = catalog.import_home(_HOMES[name])
    if found is None:
        entry_points.load()
        found = _types.get(name)
    if found is None:
        raise UnknownCodecError(
            f"codec {name!r} is not known.",
            hint=f"Known codecs: {', '.join(codec_names())}. Others come with a package that must "
            "be installed.",
        )
    return found


def codec_from_dict(config: Mapping[str, Any]) -> Codec:
    """Build a codec from plain JSON values, as `Codec.to_dict` returns them.

    Raises:
        UnknownCodecError: no codec has that name.
        ConfigurationError: its configuration cannot work.
    """
    name = config.get("name")
    if not isinstance(name, str):
        raise UnknownCodecError(
            f"codec {name!r} is not known.", hint=f"Known codecs: {', '.join(codec_names())}."
        )
    codec = codec_type(name)
    try:
        return codec.from_dict(config)
    except TypeError as error:
        raise ConfigurationError(f"codec {name!r}: {error}.") from error
