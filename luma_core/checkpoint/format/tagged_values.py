"""Python values that JSON has no form for: each kind by a tag, as plainer values and back.

A checkpoint keeps them as ``{"$tag": plainer}``. Only exact types are taken, since what a subclass
adds would be lost. Nothing is pickled, and no name in a checkpoint chooses what is called but the
tags and factories below.
"""

from __future__ import annotations

import base64
import io
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())
    np = import_later("numpy", globals())


MAX_PLAIN_BITS = 4096
"""Larger integers have no decimal form that JSON readers take."""

_NUMPY_KINDS = "biufcSUMm"
_FACTORIES: dict[str, Callable[[], Any] | None] = {
    "none": None,
    **{kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple)},
    **{kind.__name__: kind for kind in (dict, set, frozenset, Counter, OrderedDict, deque)},
}


class Pairs(list[tuple[Any, Any]]):
    """Keys and values of a mapping, in order; keys may be anything that is kept."""


class NotKeptError(Exception):
    """A value cannot be kept, although others of its type can; the text says what to do."""


@dataclass(frozen=True)
class Kind:
    """How values of some types are kept.

    Attributes:
        tag: what their form is called, without its ``$``.
        plainer: returns values that are kept themselves: one, or in a tuple one and plain JSON.
        restore: undoes that, from one value or a list; raises what it likes where that cannot be.
    """

    tag: str
    plainer: Callable[[Any], Any]
    restore: Callable[[Any], Any]


def _pairs(value: Any) -> dict[Any, Any]:
    found = dict(value)
    if len(found) != len(value):
        raise ValueError("a key comes twice")
    return found


def _factory_name(value: defaultdict[Any, Any]) -> str:
    for name, factory in _FACTORIES.items():
        if factory is value.default_factory:
            return name
    raise NotKeptError(
        "Its default_factory is code; a type such as list or int, or None, can be kept. "
        "Or give dict(value)."
    )


def _encoded(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _decoded(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _check_numpy(dtype: np.dtype[Any]) -> None:
    wide = dtype.kind in "fc" and dtype.str[1:] not in ("f2", "f4", "f8", "c8", "c16")
    if dtype.kind not in _NUMPY_KINDS or not dtype.itemsize or wide:
        raise NotKeptError(f"NumPy's dtype {dtype} is none that can be kept: use .tolist().")


def _plainer_array(value: np.ndarray[Any, Any]) -> tuple[Tensor, str, list[int]]:
    _check_numpy(value.dtype)
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    # torch warns of memory that it must not write to.
    flat = flat if flat.flags.writeable else flat.copy()
    return torch.from_numpy(flat), value.dtype.str, list(value.shape)


def _array(value: list[Any]) -> np.ndarray[Any, Any]:
    data, name, shape = value
    dtype = np.dtype(name)
    _check_numpy(dtype)
    content = data.cpu().numpy()
    if content.dtype != np.uint8:
        raise TypeError(f"bytes of type {content.dtype}")
    return np.ndarray(tuple(shape), dtype, buffer=bytearray(content.tobytes()))


def _plainer_scalar(value: np.generic) -> tuple[str, str]:
    _check_numpy(value.dtype)
    return _encoded(value.tobytes()), value.dtype.str


def _scalar(value: list[str]) -> Any:
    content, name = _decoded(value[0]), value[1]
    dtype = np.dtype(name)
    _check_numpy(dtype)
    if len(content) != dtype.itemsize:
        raise ValueError(f"{len(content)} bytes")
    return np.frombuffer(content, dtype)[0]


def _plainer_time(value: datetime) -> str:
    if value.fold or type(value.tzinfo) not in (type(None), timezone):
        raise NotKeptError("Only times without a zone or with a fixed offset can be kept.")
    return value.isoformat()


def _dtype(value: str) -> torch.dtype:
    found = getattr(torch, value)
    if not isinstance(found, torch.dtype):
        raise TypeError(value)
    return found


def _sorted(value: Iterable[Any]) -> list[Any]:
    # The order of a set differs between processes, and equal sets shall have equal bytes.
    return sorted(value, key=lambda item: (type(item).__name__, repr(item)))


_BY_TYPE: dict[type, Kind] = {
    float: Kind("float", repr, float),
    int: Kind("int", hex, lambda value: int(value, 16)),
    str: Kind(
        "str",
        lambda value: _encoded(value.encode("utf-8", "surrogatepass")),
        lambda value: _decoded(value).decode("utf-8", "surrogatepass"),
    ),
    complex: Kind("complex", lambda x: [x.real, x.imag], lambda x: complex(x[0], x[1])),
    bytes: Kind("bytes", _encoded, _decoded),
    bytearray: Kind("bytearray", _encoded, lambda value: bytearray(_decoded(value))),
    io.BytesIO: Kind(
        "bytes_io", lambda x: _encoded(x.getvalue()), lambda x: io.BytesIO(_decoded(x))
    ),
    tuple: Kind("tuple", list, tuple),
    set: Kind("set", _sorted, set),
    frozenset: Kind("frozenset", _sorted, frozenset),
    range: Kind("range", lambda x: [x.start, x.stop, x.step], lambda x: range(*x)),
    dict: Kind("dict", lambda value: Pairs(value.items()), _pairs),
    OrderedDict: Kind(
        "ordered_dict",
        lambda value: Pairs(value.items()),
        lambda value: OrderedDict(_pairs(value)),
    ),
    Counter: Kind(
        "counter", lambda value: Pairs(value.items()), lambda value: Counter(_pairs(value))
    ),
    defaultdict: Kind(
        "defaultdict",
        lambda value: (Pairs(value.items()), _factory_name(value)),
        lambda value: defaultdict(_FACTORIES[value[1]], _pairs(value[0])),
    ),
    deque: Kind(
        "deque", lambda value: (list(value), value.maxlen), lambda value: deque(value[0], value[1])
    ),
    datetime: Kind("datetime", _plainer_time, datetime.fromisoformat),
    date: Kind("date", date.isoformat, date.fromisoformat),
    timedelta: Kind(
        "timedelta",
        lambda x: [x.days, x.seconds, x.microseconds],
        lambda x: timedelta(x[0], x[1], x[2]),
    ),
    type(Path()): Kind("path", str, Path),
}
_SCALAR = Kind("numpy", _plainer_scalar, _scalar)
_BY_TAG = {kind.tag: kind for kind in (*_BY_TYPE.values(), _SCALAR)}


@cache
def _library_kinds() -> dict[type, Kind]:
    """Return the kinds of NumPy's and PyTorch's types, which reading other kinds does not load."""
    return {
        np.ndarray: Kind("ndarray", _plainer_array, _array),
        torch.Size: Kind("size", list, torch.Size),
        torch.dtype: Kind("dtype", lambda value: str(value).removeprefix("torch."), _dtype),
        torch.device: Kind("device", str, torch.device),
    }


def kind_called(tag: str) -> Kind | None:
    """Return the kind with a tag; ``None`` where it is not known."""
    if tag in _BY_TAG:
        return _BY_TAG[tag]
    return next((kind for kind in _library_kinds().values() if kind.tag == tag), None)


def kind_of(value: Any) -> Kind | None:
    """Return the kind of a value; ``None`` where there is none for its type."""
    found = _BY_TYPE.get(type(value)) or _library_kinds().get(type(value))
    if found is None and type(value).__module__ == "numpy" and isinstance(value, np.generic):
        return _SCALAR
    return found
