"""The caller's own values in a checkpoint: JSON values, and tensors anywhere among them.

Tensors go to a shard; in the manifest ``{"$tensor": name}`` stands for each, the name being its
JSON pointer (RFC 6901). Keys of the caller that begin with ``$`` get another ``$`` in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from luma_core.checkpoint.dtypes import check_storable
from luma_core.errors import ConfigurationError

_TENSOR = "$tensor"


def flatten_extra(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split ``value`` into its JSON form and its tensors by name.

    Raises:
        ConfigurationError: something inside is neither; says where.
    """
    tensors: dict[str, Tensor] = {}
    return _flatten(value, "", tensors), tensors


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise _refused(path, repr(value), "Use None or a tensor instead: JSON has no such number.")
    if isinstance(value, Tensor):
        check_storable(f"extra{path}", value)
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return dict(_flatten_item(key, item, path, tensors) for key, item in value.items())
    raise _refused(
        path,
        f"a {type(value).__module__}.{type(value).__qualname__}",
        "Convert it to numbers, strings, lists, dicts with string keys, or tensors.",
    )


def _flatten_item(key: Any, item: Any, path: str, tensors: dict[str, Tensor]) -> tuple[str, Any]:
    if not isinstance(key, str):
        raise _refused(path, f"a dict with the key {key!r}", "Keys must be strings.")
    pointer = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
    return ("$" + key if key.startswith("$") else key), _flatten(item, pointer, tensors)


def _refused(path: str, what: str, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"extra{path} is {what}; only JSON values and tensors can be saved.", hint=hint
    )


def tensor_names(value: Any) -> Iterator[str]:
    """Yield the name of each tensor that the JSON form of extra values stands for."""
    if isinstance(value, dict) and _TENSOR in value:
        yield value[_TENSOR]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensor_names(item)


def restore_extra(value: Any, read: Callable[[str], Tensor]) -> Any:
    """Undo `flatten_extra`.

    Args:
        value: the JSON form.
        read: returns a tensor by name.
    """
    if isinstance(value, list):
        return [restore_extra(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return read(value[_TENSOR])
    return {
        key[1:] if key.startswith("$") else key: restore_extra(item, read)
        for key, item in value.items()
    }
