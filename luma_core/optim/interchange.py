"""Exchange of whole states with ``torch.optim.AdamW``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec, Fields, parameter_codecs
from luma_core.errors import ConversionError, StateMismatchError, some_names
from luma_core.optim.adamw_entry import AdamWEntry, check_moment_values, checked_entry
from luma_core.optim.entries import check_entry_kind
from luma_core.optim.loading import group_names, matched_parts
from luma_core.optim.options import check_options
from luma_core.optim.rules.adamw import MOMENTS
from luma_core.sharding import Part, decoded_part, encoded_part, local_tensor, part_of
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
    """Implement `AdamWStateOptimizer.export_adamw_state`."""
    entries: dict[int, dict[str, Tensor]] = {}
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    for index, (state, param) in enumerate(zip(optimizer.parameter_states(), params, strict=True)):
        if state.codecs:
            entries[index] = {
                "step": torch.tensor(float(state.step), device="cpu"),
                **{moment: _decoded(state, moment, param) for moment in MOMENTS},
            }
    groups = []
    first = 0
    for group in optimizer.param_groups:
        last = first + len(group["params"])
        exported = {**adamw_group(group), "params": list(range(first, last))}
        if (names := group_names(group)) is not None:
            exported["param_names"] = list(names)
        groups.append(exported)
        first = last
    return {"state": entries, "param_groups": groups}


def _decoded(state: ParameterState, moment: str, param: Tensor) -> Tensor:
    part = part_of(param)
    if part is None:
        return state.decode(moment)
    fields = state.moment_fields(moment)
    return part.like_whole(decoded_part(part, state.codecs[moment], fields))


def import_adamw_state(optimizer: CompressedOptimizer, state_dict: Mapping[str, Any]) -> None:
    """Implement `AdamWStateOptimizer.import_adamw_state`."""
    entries, saved_groups, _ = matched_parts(optimizer, state_dict, "AdamW state")
    ids = _matched_ids(saved_groups, optimizer.param_groups)
    for index, saved in enumerate(saved_groups):
        if "betas" not in saved:
            raise StateMismatchError(
                f"parameter group {index} of the AdamW state has no 'betas': it is not AdamW's.",
                hint="Give what torch.optim.AdamW's or Adam's state_dict() returned.",
            )
    groups = [
        _merged(group, shared_options(saved))
        for saved, group in zip(saved_groups, optimizer.param_groups, strict=True)
    ]
    heads = optimizer.parameter_states()
    found = [_checked(head, entries.get(key)) for head, key in zip(heads, ids, strict=True)]
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    states = [
        _encoded(head, entry, groups[head.group], param)
        for head, entry, param in zip(heads, found, params, strict=True)
    ]
    optimizer.load_parameter_states(groups, states)


def _matched_ids(
    saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Return the keys of the entries in the optimizer's order: by name where both have names."""
    ids: list[Any] = []
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        keys = list(saved["params"])
        theirs, own = _names_of(index, saved), group_names(group)
        if theirs is None or own is None:
            ids.extend(keys)
            continue
        if set(theirs) != set(own):
            missing = [name for name in own if name not in set(theirs)]
            unexpected = [name for name in theirs if name not in set(own)]
            raise StateMismatchError(
                f"parameter group {index} of the AdamW state has other names than the "
                f"optimizer's: missing {some_names(missing)}, unexpected {some_names(unexpected)}.",
                hint="Build the optimizer over the same model, grouped in the same way.",
            )
        by_name = dict(zip(theirs, keys, strict=True))
        ids.extend(by_name[name] for name in own)
    return ids


def _names_of(index: int, saved: Mapping[str, Any]) -> list[str] | None:
    """Return the names in a group: its ``param_names``, or keys that are names; None without."""
    keys = saved["params"]
    names = saved.get("param_names")
    if names is None:
        return list(keys) if keys and all(isinstance(key, str) for key in keys) else None
    if not isinstance(names, list | tuple) or len(names) != len(keys):
        raise StateMismatchError(
            f"parameter group {index} of the AdamW state has 'param_names' that do not fit its "
            f"{len(keys)} 'params'; there must be one name for each."
        )
    return list(names)


def _merged(group: Mapping[str, Any], adopted: GroupOptions) -> GroupOptions:
    """Return a group's options with AdamW's adopted."""
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return {**options, **adopted}


def _checked(head: ParameterState, entry: Any) -> AdamWEntry | None:
    """Return a parameter's entry, checked; None where it has no state."""
    if entry is None:
        return None
    check_entry_kind(head.name, entry)
    if not entry:
        return None
    found = checked_entry(repr(head.name), entry)
    if found.shape != head.shape:
        raise StateMismatchError(
            f"{head.name!r}: exp_avg has shape {list(found.shape)}; "
            f"the parameter has {list(head.shape)}."
        )
    for moment, value in found.moments.items():
        check_moment_values(repr(head.name), moment, value)
    return found


def _encoded(
    head: ParameterState, entry: AdamWEntry | None, options: GroupOptions, param: Tensor
) -> ParameterState:
    if entry is None:
        return ParameterState(head.name, head.shape, head.dtype, head.group)
    device = local_tensor(param).device
    moments = {key: value.detach().to(device) for key, value in entry.moments.items()}
    return encode_state(head, options, step=entry.step, moments=moments, part=part_of(param))


def encode_state(
    head: ParameterState,
    options: GroupOptions,
    *,
    step: int,
    moments: Mapping[str, Tensor],
    part: Part | None = None,
) -> ParameterState:
    """Code a parameter's float moments by rounding to nearest.

    Args:
        head: name, shape, dtype and group of the parameter.
        options: its group's options, with ``codecs``, ``min_compress_elements`` and ``seed``.
        step: completed steps.
        moments: float tensors of the parameter's shape by moment name.
        part: what this process has of the parameter, where that is sharded.
    """
    codecs = parameter_codecs(options, head.name, head.shape)
    fields = {
        field_key(moment, name): tensor
        for moment, codec in codecs.items()
        for name, tensor in _coded(codec, moments[moment], part).items()
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


def _coded(codec: Codec, moment: Tensor, part: Part | None) -> Fields:
    return codec.encode_tensor(moment) if part is None else encoded_part(part, codec, moment)
