"""Exchange of whole states with ``torch.optim.AdamW``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import parameter_codecs
from luma_core.errors import ConversionError, StateMismatchError
from luma_core.optim.loading import check_entry_kind, matched_parts
from luma_core.optim.options import check_options
from luma_core.optim.rules.adamw import MOMENTS
from luma_core.state import GroupOptions, ParameterState, field_key

if TYPE_CHECKING:
    from luma_core.optim.base import CompressedOptimizer

ADAMW_OPTIONS = ("lr", "betas", "eps", "weight_decay", "maximize")
"""The options that AdamW and its compressed forms share."""

_TORCH_ONLY = {
    "amsgrad": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
_STEP_LIMIT = 1 << 63


def adamw_group(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ``torch.optim.AdamW`` group that match ``options``."""
    group = {key: options[key] for key in ADAMW_OPTIONS}
    group["betas"] = tuple(group["betas"])
    return {**group, **_TORCH_ONLY}


def shared_options(group: Mapping[str, Any]) -> GroupOptions:
    """Return the options of an AdamW group that its compressed forms adopt.

    Raises:
        ConversionError: the group uses ``amsgrad``.
        ConfigurationError: an option has a value that cannot work.
    """
    if group.get("amsgrad"):
        raise ConversionError(
            "the AdamW state uses amsgrad=True, whose running maximum cannot be represented.",
            hint="Only plain AdamW state can be converted.",
        )
    options = {key: group[key] for key in ADAMW_OPTIONS if key in group}
    check_options(options)
    return options


def export_adamw_state(optimizer: CompressedOptimizer) -> dict[str, Any]:
    """Implement `AdamWStateOptimizer.export_adamw_state`."""
    entries: dict[int, dict[str, Tensor]] = {}
    for index, state in enumerate(optimizer.parameter_states()):
        if state.codecs:
            entries[index] = {
                "step": torch.tensor(float(state.step)),
                **{moment: state.decode(moment) for moment in MOMENTS},
            }
    groups = []
    first = 0
    for group in optimizer.param_groups:
        last = first + len(group["params"])
        exported = {**adamw_group(group), "params": list(range(first, last))}
        if "param_names" in group:
            exported["param_names"] = list(group["param_names"])
        groups.append(exported)
        first = last
    return {"state": entries, "param_groups": groups}


def import_adamw_state(optimizer: CompressedOptimizer, state_dict: Mapping[str, Any]) -> None:
    """Implement `AdamWStateOptimizer.import_adamw_state`."""
    entries, saved_groups, ids = matched_parts(optimizer, state_dict, "AdamW state")
    groups = [
        _merged(group, shared_options(saved))
        for saved, group in zip(saved_groups, optimizer.param_groups, strict=True)
    ]
    heads = optimizer.parameter_states()
    for head, key in zip(heads, ids, strict=True):
        _check_entry(head, entries.get(key))
    devices = [param.device for group in optimizer.param_groups for param in group["params"]]
    states = _encoded(heads, ids, entries, groups, devices)
    optimizer.load_parameter_states(groups, states)


def checked_step(place: str, value: object) -> int:
    """Return AdamW's step count, kept as a number or a tensor of one.

    Raises:
        ConversionError: it is not a whole number, or out of range; the message begins with
            ``place``.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value < _STEP_LIMIT and value == int(value))
    ):
        raise ConversionError(
            f"{place}: step is {value!r}; it must be a whole number from 0 to below 2**63."
        )
    return int(value)


def check_moment_kind(place: str, moment: str, value: object) -> tuple[int, ...]:
    """Check that one of AdamW's moments is a dense float tensor, and return its shape.

    Raises:
        ConversionError: it is something else; the message begins with ``place``.
    """
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or not value.is_floating_point()
    ):
        what = (
            f"{value.dtype} {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        )
        raise ConversionError(f"{place}: {moment} is {what}; it must be a dense float tensor.")
    return tuple(value.shape)


def check_moment_values(place: str, moment: str, value: Tensor) -> None:
    """Check that one of AdamW's moments is finite in float32 and, if a square, not negative.

    Raises:
        ConversionError: saying how many values are not; the message begins with ``place``.
    """
    x = value.detach().float()
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ConversionError(
            f"{place}: {moment} holds {bad} values that are NaN or infinite.",
            hint="Use state from before the training diverged.",
        )
    negative = int((x < 0).sum()) if moment == "exp_avg_sq" else 0
    if negative:
        raise ConversionError(
            f"{place}: exp_avg_sq holds {negative} negative values; squares are 0 or more."
        )


def _merged(group: Mapping[str, Any], adopted: GroupOptions) -> GroupOptions:
    """Return a group's options with AdamW's adopted."""
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return {**options, **adopted}


def _check_entry(head: ParameterState, entry: Any) -> None:
    if entry is None:
        return
    check_entry_kind(head.name, entry)
    if not entry:
        return
    for moment in ("step", *MOMENTS):
        if moment not in entry:
            raise StateMismatchError(
                f"{head.name!r}: the AdamW state has no {moment!r}; it has "
                f"{', '.join(map(repr, entry))}."
            )
    place = repr(head.name)
    checked_step(place, entry["step"])
    for moment in MOMENTS:
        found = check_moment_kind(place, moment, entry[moment])
        if found != head.shape:
            raise StateMismatchError(
                f"{head.name!r}: {moment} has shape {list(found)}; "
                f"the parameter has {list(head.shape)}."
            )
        check_moment_values(place, moment, entry[moment])


def _encoded(
    heads: Sequence[ParameterState],
    ids: Sequence[Any],
    entries: Mapping[Any, Mapping[str, Any]],
    groups: Sequence[GroupOptions],
    devices: Sequence[torch.device],
) -> list[ParameterState]:
    states = []
    for head, key, device in zip(heads, ids, devices, strict=True):
        entry = entries.get(key)
        if not entry:
            states.append(ParameterState(head.name, head.shape, head.dtype, head.group))
            continue
        options = groups[head.group]
        states.append(
            encode_state(
                head,
                options,
                step=checked_step(repr(head.name), entry["step"]),
                moments={moment: entry[moment].detach().to(device) for moment in MOMENTS},
            )
        )
    return states


def encode_state(
    head: ParameterState, options: GroupOptions, *, step: int, moments: Mapping[str, Tensor]
) -> ParameterState:
    """Code a parameter's float moments by rounding to nearest.

    Args:
        head: name, shape, dtype and group of the parameter.
        options: its group's options, with ``codecs``, ``min_compress_elements`` and ``seed``.
        step: completed steps.
        moments: float tensors of the parameter's shape by moment name.
    """
    codecs = parameter_codecs(options, head.name, head.shape)
    fields = {
        field_key(moment, name): tensor
        for moment, codec in codecs.items()
        for name, tensor in codec.encode_tensor(moments[moment]).items()
    }
    return ParameterState(
        name=head.name,
        shape=head.shape,
        dtype=head.dtype,
        group=head.group,
        step=step,
        noise_key=rounding.parameter_key(options["seed"], head.name),
        codecs=codecs,
        fields=fields,
    )
