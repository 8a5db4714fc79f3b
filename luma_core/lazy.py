"""Imports that wait: modules until their use, exported names until they are asked for.

So reading a manifest, or an error's class, costs no import of PyTorch or NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_INCIDENTAL = {"TYPE_CHECKING", "annotations", "export_lazily", "give_moved_names"}
"""What a package imports for its own use and does not offer."""


class _ModuleToImport(ModuleType):
    """Stands for a module in a namespace until one of its attributes is used."""

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        super().__init__(name)
        self._namespace = namespace

    def __getattr__(self, attribute: str) -> Any:
        module = import_module(self.__name__)
        for name, value in list(self._namespace.items()):
            if value is self:
                self._namespace[name] = module
        return getattr(module, attribute)


def import_later(name: str, namespace: dict[str, Any]) -> ModuleType:
    """Return what stands for a module until it is used, and then gives its place to it.

    Args:
        name: of the module.
        namespace: the ``globals()`` that the result is assigned in: from the first use on, the
            module itself is there, so that later uses cost nothing.
    """
    return sys.modules.get(name) or _ModuleToImport(name, namespace)


def export_lazily(
    package: str, exported: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package that imports what it exports on demand.

    Submodules can be reached as attributes too, as if the package had imported them.

    Args:
        package: its name.
        exported: names by the module that defines them.
    """
    modules = {name: module for module, names in exported.items() for name in names}
    namespace = vars(sys.modules[package])

    def get_attribute(name: str) -> Any:
        if name in modules:
            value = namespace[name] = getattr(import_module(modules[name]), name)
            return value
        submodule = f"{package}.{name}"
        if name.startswith("_") or find_spec(submodule) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(submodule)

    def list_attributes() -> list[str]:
        return sorted({*namespace, *modules} - _INCIDENTAL)

    return get_attribute, list_attributes
