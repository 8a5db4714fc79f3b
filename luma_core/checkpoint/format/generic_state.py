"""One parameter's state of any optimizer, as codecs that keep it as it is, and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from torch import Tensor, nn

from luma_core.checkpoint.format.dtypes import check_storable
from luma_core.checkpoint.format.extra import flatten_extra, restore_extra, tensor_names
from luma_core.codecs import Codec
from luma_core.codecs.generic import PlainValue, Raw, RawShaped
from luma_core.errors import ConfigurationError
from luma_core.sharding import is_sharded
from luma_core.state import ParameterState, field_key

_FIELD = "value"


def flatten_state(
    name: str, param: Tensor, state: Mapping[Any, Any]
) -> tuple[dict[str, Codec], dict[str, Tensor]]:
    """Return the codecs and the stored tensors of a parameter's state.

    Args:
        name: of the parameter.
        param: the parameter.
        state: what its optimizer keeps for it, by key.

    Raises:
        ConfigurationError: a value cannot be kept exactly; names the parameter and the key.
    """
    codecs: dict[str, Codec] = {}
    fields: dict[str, Tensor] = {}
    for key, value in state.items():
        place = f"state of {name!r}: [{key!r}]"
        if type(key) is not str:
            raise ConfigurationError(f"{place}: keys of state must be strings.")
        tree, tensors = None, {"": value}
        if not isinstance(value, Tensor):
            tree, tensors = flatten_extra(value, place)
            codecs[_quoted(key)] = PlainValue(value=tree)
        for pointer, tensor in tensors.items():
            moment = _quoted(key + pointer)
            if moment in codecs and not pointer:
                raise ConfigurationError(f"{place} is a name that another value's tensor has.")
            codecs[moment] = _tensor_codec(place, param, tensor)
            fields[field_key(moment, _FIELD)] = tensor
    return codecs, fields


def restored_state(state: ParameterState, where: str) -> dict[str, Any]:
    """Return what `flatten_state` was given.

    Raises:
        CorruptCheckpointError: it is no form that `flatten_state` gives.
        UnsupportedVersionError: a value is of a kind that is not known here.
    """

    def tensor(moment: str) -> Tensor:
        return state.fields[field_key(moment, _FIELD)]

    def nested_tensor(key: str, pointer: str) -> Tensor:
        return tensor(_quoted(key + pointer))

    found: dict[str, Any] = {}
    nested: set[str] = set()
    for moment, codec in state.codecs.items():
        if isinstance(codec, PlainValue):
            key = unquote(moment)
            nested |= {_quoted(key + str(pointer)) for pointer in tensor_names(codec.value)}
    for moment, codec in state.codecs.items():
        key = unquote(moment)
        if isinstance(codec, PlainValue):
            found[key] = restore_extra(
                codec.value,
                partial(nested_tensor, key),
                f"{where}: state of {state.name!r}: [{key!r}]",
            )
        elif moment not in nested:
            found[key] = tensor(moment)
    return found


def steps_of(state: Mapping[Any, Any]) -> int:
    """Return the completed steps that a parameter's state counts; 0 where it counts none."""
    step = state.get("step")
    if isinstance(step, Tensor):
        step = step.item() if step.numel() == 1 else None
    whole = isinstance(step, int | float) and 0 <= step < 1 << 63
    return int(step) if whole else 0  # type: ignore[arg-type]


def _quoted(key: str) -> str:
    """Return a key as a moment's name, in which dots and slashes have meanings of their own."""
    return key.replace("%", "%25").replace("/", "%2F").replace(".", "%2E")


def _tensor_codec(place: str, param: Tensor, value: Tensor) -> Codec:
    plain = type(value) in (Tensor, nn.Parameter) or is_sharded(value)
    if not plain:
        raise ConfigurationError(
            f"{place} is a {type(value).__name__}, a kind of tensor that cannot be kept exactly.",
            hint="Save it with torch.save.",
        )
    if not is_sharded(value):
        check_storable(place, value)
    dtype = str(value.dtype).removeprefix("torch.")
    if value.shape == param.shape and is_sharded(value) == is_sharded(param):
        return Raw(dtype=dtype)
    if is_sharded(value):
        raise ConfigurationError(
            f"{place} is a DTensor of shape {list(value.shape)}, and the parameter's is "
            f"{list(param.shape)}; only tensors of the parameter's shape may be sharded.",
            hint="Save it with torch.distributed.checkpoint.",
        )
    return RawShaped(dtype=dtype, shape=tuple(value.shape))
