"""What other programs put into files of ``torch.save``: placeholders that run nothing.

Training programs save arguments, metrics and schedulers beside the optimizer's state. None of their
classes is imported: what a file would make of one becomes a `Foreign`, which knows the class's name
and nothing else. NumPy's scalars are read as numbers, since learning rates are such.
"""

from __future__ import annotations

import builtins
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np

from luma_core.errors import UnsafePickleError

SAVE_AGAIN = (
    "Save it again with torch.save(optimizer.state_dict(), ...), tensors and plain values only."
)

_DATA_MODULES = {
    "argparse",
    "collections",
    "copyreg",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "ipaddress",
    "logging",
    "numbers",
    "operator",
    "pathlib",
    "random",
    "re",
    "string",
    "types",
    "typing",
    "uuid",
    "zoneinfo",
}
_UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global")
_CONTAINERS = {"Can only SETITEM": OrderedDict, "Can only append": list, "Can only extend": list}
_NUMBER = re.compile(r"[fiub][1-8]")


class Foreign:
    """An object that was not made.

    Attributes:
        full_name: what the file calls the class, or the function that would make it.
    """

    full_name: ClassVar[str]

    def __new__(cls, *_: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.full_name}>"


class _NumpyType:
    """A NumPy dtype as it is pickled: a code such as ``"f8"``, and the order of bytes."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _numpy_scalar(kind: Any, data: Any = None) -> Any:
    """Return a NumPy scalar's number; what is no number becomes a `Foreign`."""
    code = getattr(kind, "code", None)
    if isinstance(code, str) and _NUMBER.fullmatch(code) and isinstance(data, bytes):
        order = {"<": "<", ">": ">"}.get(kind.order, "=")
        return np.frombuffer(data, np.dtype(order + code), count=1)[0].item()
    return _placeholder("numpy.generic", None)()


_KNOWN = {
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}


def _placeholder(full_name: str, container: type | None) -> type:
    """Return a class to stand for one that is not known; its instances are of ``container``."""
    module, _, name = full_name.rpartition(".")
    made: dict[str, Any] = {"full_name": full_name, "__module__": module, "__qualname__": name}
    if container is not None:
        made["__new__"] = lambda _cls, *_: container()
    return type(name, (Foreign,), made)


def _present_name(full_name: str) -> str:
    """Return what Python calls it now: torch's protocol writes the names that Python 2 had."""
    module, _, name = full_name.rpartition(".")
    found = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return ".".join(found)


def _runs_code(full_name: str) -> bool:
    """Whether it is part of Python's own library and no class of plain data."""
    module, _, name = full_name.rpartition(".")
    top = module.partition(".")[0]
    if top == "builtins":
        # Enumerations of Python 3.11 and bound methods are pickled as an attribute of their class.
        return name != "getattr" and not isinstance(getattr(builtins, name, None), type)
    return top in sys.stdlib_module_names and top.lstrip("_") not in _DATA_MODULES


class ForeignClasses:
    """What stands for the classes and functions that a file names and torch does not know.

    Args:
        where: the file, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._known: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """The names that have something to stand for them, sorted."""
        return sorted(self._known)

    def add(self, full_name: str) -> None:
        """Let something stand for a name.

        Raises:
            UnsafePickleError: only a file that shall run code has use for it.
        """
        name = _present_name(full_name)
        if _runs_code(name):
            raise UnsafePickleError(
                f"{self._where}: reading it would run code that it contains: it calls {name}.",
                hint=SAVE_AGAIN,
            )
        self._known[full_name] = _KNOWN.get(full_name) or _placeholder(full_name, None)

    def allowed(self) -> list[Any]:
        """Return what ``torch.serialization.safe_globals`` takes."""
        return [(stands, name) for name, stands in self._known.items()]

    def learn(self, told: str) -> bool:
        """Take in why ``torch.load`` failed; return whether to try again.

        A name was not known, or the class is one of dicts or lists, which only shows when the file
        puts items into it.

        Raises:
            UnsafePickleError: as for `add`.
        """
        unknown = _UNKNOWN.search(told)
        if unknown is not None:
            # torch leaves "builtins." out.
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            new = name not in self._known
            self.add(name)
            return new
        for said, container in _CONTAINERS.items():
            for name, stands in self._known.items():
                if said in told and repr(stands) in told:
                    self._known[name] = _placeholder(name, container)
                    return True
        return False
