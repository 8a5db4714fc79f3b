"""The caller's own values in a checkpoint: what JSON has, tensors, and the kinds of `kinds`.

Tensors go to a shard; in the JSON form ``{"$tensor": name}`` stands for each, the name being its
JSON pointer (RFC 6901). Keys of the caller that begin with ``$`` get another ``$`` in front.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from luma_core.checkpoint.format.dtypes import check_storable
from luma_core.checkpoint.format.tagged_values import (
    MAX_PLAIN_BITS,
    NotKeptError,
    Pairs,
    kind_called,
    kind_of,
)
from luma_core.errors import ConfigurationError, CorruptCheckpointError, UnsupportedVersionError
from luma_core.lazy import import_later
from luma_core.sharding import is_sharded

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())
    np = import_later("numpy", globals())

_TENSOR = "tensor"

MAX_DEPTH = 180
"""Levels of JSON; readers of a manifest take 200, of which its own fields need some."""


def flatten_extra(value: Any, place: str = "extra") -> tuple[Any, dict[str, Tensor]]:
    """Split ``value`` into its JSON form and its tensors by name.

    Args:
        value: of any kind that is kept.
        place: what it is called in messages.

    Raises:
        ConfigurationError: something inside cannot be kept; says where, what and what to do.
    """
    tensors: dict[str, Tensor] = {}
    return _flatten(value, _Where(place, "", 0), tensors), tensors


def flatten_plain(value: Any, place: str) -> Any:
    """Return the JSON form of a value without tensors.

    Raises:
        ConfigurationError: as `flatten_extra`, and where there is a tensor or array inside.
    """
    tree, tensors = flatten_extra(value, place)
    if tensors:
        raise ConfigurationError(
            f"{place} holds a tensor or an array, which cannot be kept there.",
            hint="Use numbers, or keep it in extra=.",
        )
    return tree


@dataclasses.dataclass(frozen=True)
class _Where:
    """A place among the values.

    Attributes:
        told: as Python would write it, for messages.
        pointer: the names of tensors there begin with it.
        depth: levels of JSON above.
    """

    told: str
    pointer: str
    depth: int

    def below(self, key: Any, pointer: str, *, levels: int = 1) -> _Where:
        return _Where(f"{self.told}[{key!r}]", f"{self.pointer}/{pointer}", self.depth + levels)

    def deeper(self, levels: int) -> _Where:
        return dataclasses.replace(self, depth=self.depth + levels)


def _flatten(value: Any, where: _Where, tensors: dict[str, Tensor]) -> Any:
    if where.depth > MAX_DEPTH:
        raise ConfigurationError(
            f"{where.told[:80]}... is nested too deeply to be saved, or holds itself.",
            hint="Keep flat values.",
        )
    if _is_plain(value):
        return value
    if isinstance(value, torch.Tensor):
        return _flatten_tensor(value, where, tensors)
    if type(value) is list:
        return _flatten_items(value, where, tensors)
    if type(value) is dict and all(type(key) is str and _has_utf8(key) for key in value):
        return {
            ("$" + key if key.startswith("$") else key): _flatten(
                item, where.below(key, key.replace("~", "~0").replace("/", "~1")), tensors
            )
            for key, item in value.items()
        }
    return _flatten_kind(value, where, tensors)


def _is_plain(value: Any) -> bool:
    """Whether JSON has the value, in a form that its readers take."""
    kind = type(value)
    return (
        value is None
        or kind is bool
        or (kind is int and value.bit_length() <= MAX_PLAIN_BITS)
        or (kind is str and _has_utf8(value))
        or (kind is float and math.isfinite(value))
    )


def _has_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _flatten_tensor(value: Tensor, where: _Where, tensors: dict[str, Tensor]) -> Any:
    if is_sharded(value):
        raise _refused(where, value, "Give full_tensor().")
    check_storable(where.told, value)
    tensors[where.pointer] = value
    return {"$" + _TENSOR: where.pointer}


def _flatten_items(value: list[Any], where: _Where, tensors: dict[str, Tensor]) -> list[Any]:
    return [_flatten(item, where.below(i, str(i)), tensors) for i, item in enumerate(value)]


def _flatten_kind(value: Any, where: _Where, tensors: dict[str, Tensor]) -> Any:
    kind = kind_of(value)
    if kind is None:
        raise _refused(where, value, _hint(value))
    try:
        plainer = kind.plainer(value)
    except NotKeptError as error:
        raise _refused(where, value, str(error)) from None
    inner, *rest = plainer if isinstance(plainer, tuple) else (plainer,)
    below = where.deeper(2 if rest else 1)
    found = (
        _flatten_pairs(inner, below, tensors)
        if isinstance(inner, Pairs)
        else _flatten(inner, below, tensors)
    )
    return {"$" + kind.tag: [found, *rest] if rest else found}


def _flatten_pairs(pairs: Pairs, where: _Where, tensors: dict[str, Tensor]) -> list[Any]:
    found = []
    for index, (key, item) in enumerate(pairs):
        below = where.below(key, str(index), levels=2)
        named: dict[str, Tensor] = {}
        flat = _flatten(key, dataclasses.replace(below, told=f"a key of {where.told}"), named)
        if named:
            raise _refused(below, key, "Keys must be plain values.")
        found.append([flat, _flatten(item, below, tensors)])
    return found


def _refused(where: _Where, value: Any, hint: str) -> ConfigurationError:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return ConfigurationError(
        f"{where.told} is of type {name} and cannot be kept exactly.", hint=hint
    )


def _hint(value: Any) -> str:
    """Return the plain value that is saved in place of a value."""
    if isinstance(value, enum.Enum):
        return "Save its .value or .name."
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "Save dataclasses.asdict(value)."
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return "Save value._asdict(), or tuple(value)."
    if isinstance(value, np.random.Generator):
        return "Save value.bit_generator.state."
    if isinstance(value, np.random.RandomState | torch.Generator):
        return "Save value.get_state()."
    if isinstance(value, random.Random):
        return "Save value.getstate()."
    if callable(getattr(value, "state_dict", None)):
        return "Save value.state_dict()."
    return (
        "Save numbers, strings, bytes, lists, tuples, dicts, sets, arrays or tensors instead, for "
        "example vars(value)."
    )


def tensor_names(value: Any) -> Iterator[Any]:
    """Yield what stands for the name of each tensor in the JSON form of extra values."""
    if isinstance(value, dict) and "$" + _TENSOR in value:
        yield value["$" + _TENSOR]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensor_names(item)


def restore_extra(value: Any, read: Callable[[str], Tensor], where: str = "extra") -> Any:
    """Undo `flatten_extra`.

    Args:
        value: the JSON form.
        read: returns a tensor by name.
        where: what it is called in messages.

    Raises:
        CorruptCheckpointError: it is no form that `flatten_extra` gives.
        UnsupportedVersionError: it has a tag that is not known here.
    """
    if isinstance(value, list):
        return [restore_extra(item, read, where) for item in value]
    if not isinstance(value, dict):
        return value
    tags = [key[1:] for key in value if key.startswith("$") and not key.startswith("$$")]
    if not tags:
        return {
            key[1:] if key.startswith("$") else key: restore_extra(item, read, where)
            for key, item in value.items()
        }
    if len(value) > 1:
        raise CorruptCheckpointError(f"{where}: a tagged value has the fields {sorted(value)[:3]}.")
    return _restore_kind(tags[0], value["$" + tags[0]], read, where)


def _restore_kind(tag: str, form: Any, read: Callable[[str], Tensor], where: str) -> Any:
    if tag == _TENSOR:
        return read(form)
    kind = kind_called(tag)
    if kind is None:
        raise UnsupportedVersionError(
            f"{where}: values of kind {'$' + tag[:40]!r} are not known to this software.",
            hint="Upgrade the package 'luma-state'.",
        )
    plainer = restore_extra(form, read, where)
    try:
        return kind.restore(plainer)
    # What a form that nobody wrote makes them raise is not one kind of error.
    except Exception as error:
        raise CorruptCheckpointError(
            f"{where}: no value of kind {'$' + tag!r}: {error}."
        ) from error
