"""One parameter's saved state, checked and copied into what an optimizer keeps for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from luma_core import backends
from luma_core.carried import as_bytes, from_bytes, redistributed
from luma_core.codecs import Codec, Fields, FieldSpec, parameter_codecs
from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.recoding import decoded_part, encoded_part
from luma_core.sharding import (
    FieldPlace,
    Part,
    field_places,
    is_sharded,
    local_tensor,
    part_of,
    replicated,
)
from luma_core.state import ParameterState, field_key

if TYPE_CHECKING:
    from luma_core.optim.offload.load_arena import LoadArena

SCALARS = {"step": torch.int64, "noise_key": torch.int64, "nonfinite": torch.int64}
"""What a parameter's state has beside stored moments, and its dtype."""


def carry_entry(entry: Any) -> Any:
    """Return a parameter's state with each tensor as every collective carries it."""
    if not isinstance(entry, dict):
        return entry
    return {
        key: as_bytes(value) if isinstance(value, Tensor) else value for key, value in entry.items()
    }


def check_entry_kind(name: str, entry: object) -> None:
    """Check that a parameter's entry of a ``state_dict`` is a mapping.

    Raises:
        StateMismatchError: naming the parameter and what it has.
    """
    if not isinstance(entry, Mapping):
        raise StateMismatchError(
            f"{name!r}: the state is a {type(entry).__name__}; it must be a mapping."
        )


def expected_fields(name: str, param: Tensor, options: Mapping[str, Any]) -> dict[str, FieldPlace]:
    """Return the stored tensors that a parameter has under a group's options, by key.

    Raises:
        StateMismatchError: the options do not suit the parameter.
    """
    return _expected(name, param, options)[1]


def _expected(
    name: str, param: Tensor, options: Mapping[str, Any]
) -> tuple[dict[str, Codec], dict[str, FieldPlace]]:
    codecs = parameter_codecs(options, name, param.shape)
    return codecs, _places(name, param, codecs)


def _places(name: str, param: Tensor, codecs: Mapping[str, Codec]) -> dict[str, FieldPlace]:
    try:
        return {
            field_key(moment, key): place
            for moment, codec in codecs.items()
            for key, place in field_places(param, codec).items()
        }
    except ConfigurationError as error:
        raise StateMismatchError(f"{name!r}: {error.message}", hint=error.hint) from error


def check_state(name: str, param: Tensor, state: ParameterState) -> None:
    """Check that a parameter's state fits it by shape and has the fields of its codecs.

    Raises:
        StateMismatchError: it does not.
    """
    if state.shape != tuple(param.shape):
        raise StateMismatchError(
            f"{name!r}: the state is for shape {list(state.shape)}; "
            f"the parameter has {list(param.shape)}."
        )
    if state.codecs:
        _check_keys(name, state.fields.keys(), _places(name, param, state.codecs).keys())


def _check_keys(name: str, found: Any, expected: Any) -> None:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if missing or unknown:
        hint = ""
        if "exp_avg" in unknown:
            hint = "Load AdamW state with import_adamw_state()."
        raise StateMismatchError(
            f"{name!r}: missing fields {some_names(missing)}, "
            f"unknown fields {some_names(unknown)}.",
            hint=hint,
        )


class StateDevices(NamedTuple):
    """Where a parameter's state is kept.

    Attributes:
        counters: device of ``step`` and ``nonfinite``.
        stored: device of the stored moments.
        incoming: has places for stored moments that are loaded; the others get memory.
    """

    counters: torch.device
    stored: torch.device
    incoming: LoadArena | None = None

    def of(self, key: str) -> torch.device:
        """Return the device of one of the parameter's tensors."""
        if key == "noise_key":
            return torch.device("cpu")
        return self.counters if key in SCALARS else self.stored

    def placed(self, name: str, key: str, local: Tensor, *, share: bool) -> Tensor:
        """Return a plain tensor where it is kept: a copy unless ``share`` allows itself."""
        if self.incoming is not None and self.incoming.room(name, key) is not None:
            return self.incoming.put(name, key, local)
        return local.detach().to(self.of(key), copy=not share)


def build_entry(
    name: str,
    param: Tensor,
    options: Mapping[str, Any],
    state: ParameterState,
    devices: StateDevices,
) -> dict[str, Tensor] | None:
    """Copy one parameter's state, known to fit by its keys, to where it is kept.

    Fields of a sharded parameter may be whole or DTensors. Moments are coded anew, by rounding to
    nearest, where the options ask for another codec, and where the sharding cuts blocks of fields
    that are whole.
    """
    if not state.codecs:
        return None
    part = part_of(param)
    entry = {
        "step": torch.tensor(state.step, device=devices.counters),
        "noise_key": torch.tensor(state.noise_key, device="cpu"),
        "nonfinite": torch.tensor(state.nonfinite, device=devices.counters),
    }
    codecs, places = _expected(name, param, options)
    # Tensors that were read for this call alone need no second copy.
    fresh = bool(getattr(state.fields, "fresh", False))
    for moment, codec in codecs.items():
        keys = [field_key(moment, key) for key in codec.layout(param.shape)]
        if state.codecs[moment] != codec or _needs_coding(state, keys[0], codec, part):
            for field, value in _coded(state, moment, codec, param).items():
                key = field_key(moment, field)
                local = devices.placed(name, key, local_tensor(value), share=True)
                entry[key] = local if part is None else part.wrapped(local, places[key])
            continue
        for key in keys:
            value = state.fields[key]
            entry[key] = _copied(name, key, value, places[key], part, devices, share=fresh)
    return entry


def _needs_coding(state: ParameterState, key: str, codec: Codec, part: Part | None) -> bool:
    """Return whether the sharding cuts blocks of a field that is whole."""
    return part is not None and not part.aligned(codec) and not is_sharded(state.fields[key])


def _coded(state: ParameterState, moment: str, codec: Codec, param: Tensor) -> Fields:
    """Return a stored moment in another codec."""
    part, source, fields = part_of(param), state.codecs[moment], state.moment_fields(moment)
    # Of a tensor on another device than its parameter, the faster one of the two codes.
    device = local_tensor(param).device
    if part is None:
        whole = backends.decode(source, fields, state.shape)
        return backends.encode(codec, local_tensor(whole).to(device))
    if any(map(is_sharded, fields.values())):
        local = decoded_part(part, source, fields).to(device)
        return encoded_part(part, codec, part.like_whole(local))
    return encoded_part(part, codec, backends.decode(source, fields, state.shape).to(device))


def entry_fits(
    name: str, param: Tensor, options: Mapping[str, Any], entry: Mapping[str, Any]
) -> bool:
    """Return whether a parameter's entry of a ``state_dict`` has the shapes that it asks for."""
    try:
        fields = expected_fields(name, param, options)
    except StateMismatchError:
        return False
    found = stored_fields(fields, entry)
    return all(
        not isinstance(value, Tensor) or tuple(value.shape) == fields[key].spec.shape
        for key, value in found.items()
    )


def stored_fields(expected: Mapping[str, FieldPlace], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some expected fields that an entry of a ``state_dict`` has, in their dtypes.

    There codes of 16 bits are bytes, as `carry_entry` made them.
    """
    found = {key: entry[key] for key in expected if key in entry}
    return {
        key: from_bytes(value, expected[key].spec.dtype) if isinstance(value, Tensor) else value
        for key, value in found.items()
    }


def check_entry(name: str, param: Tensor, options: Mapping[str, Any], saved: Any) -> None:
    """Check one parameter's entry of a ``state_dict`` against the options it was saved with.

    Raises:
        StateMismatchError: it lacks a tensor, or one has another dtype or shape.
    """
    for key, place in _expected_entry(name, param, options, saved).items():
        _check_tensor(name, key, saved[key], place, part_of(param))


def copy_entry(
    name: str, param: Tensor, options: Mapping[str, Any], saved: Any, devices: StateDevices
) -> dict[str, Tensor]:
    """Copy one parameter's entry of a ``state_dict``, known to fit, to where it is kept."""
    part = part_of(param)
    return {
        key: _copied(name, key, saved[key], place, part, devices)
        for key, place in _expected_entry(name, param, options, saved).items()
    }


def _expected_entry(
    name: str, param: Tensor, options: Mapping[str, Any], saved: Mapping[str, Any]
) -> dict[str, FieldPlace]:
    fields = expected_fields(name, param, options)
    expected = {**{key: _scalar(dtype) for key, dtype in SCALARS.items()}, **fields}
    _check_keys(name, saved.keys(), expected.keys())
    return expected


def _scalar(dtype: torch.dtype) -> FieldPlace:
    return replicated(FieldSpec(dtype, ()))


def _copied(
    name: str,
    key: str,
    value: object,
    place: FieldPlace,
    part: Part | None,
    devices: StateDevices,
    *,
    share: bool = False,
) -> Tensor:
    found = _check_tensor(name, key, value, place, part)
    if part is None or (place.placements is None and not is_sharded(found)):
        return devices.placed(name, key, local_tensor(found), share=share)
    if is_sharded(found):
        wanted = place.placements or tuple(_replicate() for _ in part.placements)
        if tuple(found.placements) != tuple(wanted):
            found = redistributed(found, part, wanted)
            share = True
        local = local_tensor(found)
    else:
        local, share = part.sliced(found, place), False
    local = devices.placed(name, key, local, share=share)
    return part.wrapped(local.contiguous(), place)


def _check_tensor(
    name: str, key: str, value: object, place: FieldPlace, part: Part | None
) -> Tensor:
    dtype, shape = place.spec.dtype, place.spec.shape
    if isinstance(value, Tensor):
        value = from_bytes(value, dtype)
    if not isinstance(value, Tensor) or value.dtype != dtype or tuple(value.shape) != shape:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value)
        hint = ""
        if part is not None and place.used != place.local_shape:
            hint = (
                "Its blocks are those of another sharding. luma_core.checkpoint.load codes them "
                "anew."
            )
        raise StateMismatchError(
            f"{name!r}: field {key!r} is {got}; it must be {dtype} {list(shape)}.", hint=hint
        )
    return value


def _replicate() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()
