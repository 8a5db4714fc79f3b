"""Names that have moved: for one version they are found where they were, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

GetAttribute = Callable[[str], Any]


def give_moved_names(
    package: str,
    moved: Mapping[str, Sequence[str] | Mapping[str, str]],
    otherwise: GetAttribute | None = None,
) -> GetAttribute:
    """Return a package's ``__getattr__`` that finds what was moved out of it.

    Args:
        package: its name.
        moved: names by the module where they are now; a mapping gives the names that they have now.
        otherwise: finds all else; by default there is nothing else.
    """
    places = {
        name: (place, names[name] if isinstance(names, Mapping) else name)
        for place, names in moved.items()
        for name in names
    }

    def get_attribute(name: str) -> Any:
        if name in places:
            place, new = places[name]
            _warn(f"{package}.{name}", f"{place}.{new}")
            return getattr(import_module(place), new)
        if otherwise is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return otherwise(name)

    return get_attribute


def give_moved_module(module: str, *places: str) -> GetAttribute:
    """Return the ``__getattr__`` of a module whose content is elsewhere now.

    Args:
        module: the name that it had.
        places: the modules that have it; the first that has a name gives it.
    """

    def get_attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        for place in places:
            value = getattr(import_module(place), name, None)
            if value is not None:
                _warn(f"{module}.{name}", f"{place}.{name}")
                return value
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return get_attribute


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is {new} now; the old name goes with the next version.",
        DeprecationWarning,
        stacklevel=3,
    )
