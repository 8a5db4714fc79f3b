"""Exchange of whole states with ``torch.optim.AdamW``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import moment_codecs
from luma_core.errors import ConversionError, StateMismatchError
from luma_core.optim.adamw import MOMENTS
from luma_core.optim.options import check_options
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
    """Implement `LUMA.export_adamw_state`."""
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
    """Implement `LUMA.import_adamw_state`."""
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        raise StateMismatchError(
            f"the AdamW state has {len(saved_groups)} parameter groups; "
            f"the optimizer has {len(optimizer.param_groups)}."
        )
    ids: list[Any] = []
    groups: list[GroupOptions] = []
    for index, (saved, group) in enumerate(zip(saved_groups, optimizer.param_groups, strict=True)):
        if len(saved["params"]) != len(group["params"]):
            raise StateMismatchError(
                f"AdamW parameter group {index} has {len(saved['params'])} parameters; "
                f"the optimizer's has {len(group['params'])}."
            )
        ids.extend(saved["params"])
        groups.append(_merged(group, shared_options(saved)))
    heads = optimizer.parameter_states()
    for head, key in zip(heads, ids, strict=True):
        _check_entry(head, state_dict["state"].get(key))
    devices = [param.device for group in optimizer.param_groups for param in group["params"]]
    states = _encoded(heads, ids, state_dict["state"], groups, devices)
    optimizer.load_parameter_states(groups, states)


def _merged(group: Mapping[str, Any], adopted: GroupOptions) -> GroupOptions:
    """Return a group's options with AdamW's adopted."""
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return {**options, **adopted}


def _check_entry(head: ParameterState, entry: Mapping[str, Any] | None) -> None:
    if not entry:
        return
    for moment in ("step", *MOMENTS):
        if moment not in entry:
            raise StateMismatchError(
                f"{head.name!r}: the AdamW state has no {moment!r}; it has "
                f"{', '.join(map(repr, entry))}."
            )
    for moment in MOMENTS:
        found = tuple(entry[moment].shape)
        if found != head.shape:
            raise StateMismatchError(
                f"{head.name!r}: {moment} has shape {list(found)}; "
                f"the parameter has {list(head.shape)}."
            )


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
                step=int(entry["step"]),
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
    codecs = moment_codecs(options["codecs"], head.shape, options["min_compress_elements"])
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
