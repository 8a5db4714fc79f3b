"""Exchange of whole states with ``torch.optim.AdamW``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luma_core import backends, rounding
from luma_core.codecs import parameter_codecs
from luma_core.optim.state_io.adamw_entry import MU_PRODUCT
from luma_core.optim.state_io.adamw_source import WHAT, AdamWSource
from luma_core.optim.state_io.loading import load_source
from luma_core.optim.state_io.owner import StateOwner
from luma_core.optim.state_io.saved_groups import check_parts, group_names
from luma_core.optim.state_io.saved_options import COUPLING, SHARED_OPTIONS
from luma_core.recoding import decoded_part
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.nadamw import MOMENTUM_DECAY, momentum_product
from luma_core.sharding import part_of
from luma_core.state import GroupOptions, LoadReport, ParameterState, field_key

_TORCH_ONLY = {
    "amsgrad": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}


def adamw_group(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ``torch.optim.AdamW`` group that match ``options``.

    Those of Adam, RAdam and NAdam differ in whether weight decay is decoupled, and NAdam's have its
    momentum decay.
    """
    group = {key: options[key] for key in SHARED_OPTIONS}
    group["betas"] = tuple(group["betas"])
    if options.get(MOMENTUM_DECAY) is not None:
        group[MOMENTUM_DECAY] = options[MOMENTUM_DECAY]
    return {**group, **_TORCH_ONLY, COUPLING: options.get(COUPLING, True)}


def torch_extras(options: Mapping[str, Any], step: int) -> dict[str, Tensor]:
    """Return what PyTorch keeps of a parameter beside ``step`` and moments: NAdam's product."""
    decay = options.get(MOMENTUM_DECAY)
    if decay is None:
        return {}
    product = momentum_product(float(options["betas"][0]), float(decay), step)
    return {MU_PRODUCT: torch.tensor(product, dtype=torch.float32, device="cpu")}


def export_adamw_state(optimizer: StateOwner) -> dict[str, Any]:
    """Implement `AdamWStateOptimizer.export_adamw_state`."""
    entries: dict[int, dict[str, Tensor]] = {}
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    for index, (state, param) in enumerate(zip(optimizer.parameter_states(), params, strict=True)):
        if state.codecs:
            entries[index] = {
                "step": torch.tensor(float(state.step), device="cpu"),
                **{moment: decoded_moment(state, moment, param) for moment in MOMENTS},
                **torch_extras(optimizer.param_groups[state.group], state.step),
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


def decoded_moment(state: ParameterState, moment: str, param: Tensor) -> Tensor:
    """Return a moment of a parameter in float32, cut like the parameter."""
    part = part_of(param)
    if part is None:
        return state.decode(moment)
    fields = state.moment_fields(moment)
    return part.like_whole(decoded_part(part, state.codecs[moment], fields))


def import_adamw_state(
    optimizer: StateOwner, state_dict: Mapping[str, Any], *, strict: bool
) -> LoadReport:
    """Implement `AdamWStateOptimizer.import_adamw_state`."""
    check_parts(state_dict, WHAT, optimizer.param_groups if strict else None)
    return load_source(
        optimizer, AdamWSource(state_dict, optimizer.rule), strict=strict, quiet=True
    )


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
        for name, tensor in backends.encode(codec, moments[moment]).items()
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
