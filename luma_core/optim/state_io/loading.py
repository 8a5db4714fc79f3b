"""Puts saved state into an optimizer: everything is checked before anything changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from luma_core.optim.offload.load_arena import AwaitedTensor, LoadArena
from luma_core.optim.state_io.adamw_source import AdamWSource, is_adamw_state
from luma_core.optim.state_io.adoption import adopt
from luma_core.optim.state_io.entries import StateDevices, expected_fields
from luma_core.optim.state_io.owner import StateOwner
from luma_core.optim.state_io.plan import LoadPlan, Taken, plan_loading
from luma_core.optim.state_io.saved_groups import check_parts
from luma_core.optim.state_io.saved_options import options_taken_over
from luma_core.optim.state_io.sources import Source
from luma_core.optim.state_io.state_dict_source import StateDictSource
from luma_core.sharding import field_places
from luma_core.state import LoadReport, MatchedState, field_key

_LOGGER = logging.getLogger(__name__)


def load_source(
    optimizer: StateOwner,
    source: Source,
    *,
    strict: bool = True,
    rename: bool = False,
    incoming: LoadArena | None = None,
    quiet: bool = False,
) -> LoadReport:
    """Replace an optimizer's state.

    Every field is read and copied before the first is replaced, so that a failure to read one
    leaves the optimizer unchanged. So the old and the new state are both there for a moment: in
    memory, or in files with state on disk.

    Args:
        optimizer: that takes the state.
        source: the state.
        strict: as `plan_loading` takes it.
        rename: whether parameters get their saved names.
        incoming: of `incoming_state`, where stored tensors are in it already.
        quiet: whether nothing is logged of state of another algorithm.
    """
    plan = plan_loading(optimizer, source, strict=strict, rename=rename)
    if incoming is None:
        stored = [t for t in plan.taken if t.index is not None and source.has_state(t.index)]
        incoming = _make_load_arena(optimizer, stored)
    loaded = [
        None
        if taken.index is None
        else source.entry(
            taken.index, taken.own, taken.options, _home(optimizer, taken.own[1], incoming)
        )
        for taken in plan.taken
    ]
    if not quiet:
        _log(optimizer, plan)
    _replace(optimizer, plan, loaded, incoming, rename=rename)
    return plan.report


def load_torch_state_dict(
    optimizer: StateOwner, state_dict: Mapping[str, Any], *, strict: bool
) -> LoadReport:
    """Implement `CompressedOptimizer.load_state_dict`."""
    check_parts(state_dict, "state", optimizer.param_groups if strict else None)
    foreign = is_adamw_state(state_dict)
    source: Source
    source = (
        AdamWSource(state_dict, optimizer.rule)
        if foreign
        else StateDictSource(optimizer, state_dict)
    )
    rename = source.named and all("param_names" in group for group in state_dict["param_groups"])
    return load_source(optimizer, source, strict=strict, rename=rename)


def incoming_state(optimizer: StateOwner, states: Sequence[MatchedState]) -> LoadArena | None:
    """Implement `CompressedOptimizer.incoming_state`."""
    offloader = optimizer.offloader
    if offloader is None:
        return None
    params = {name: param for name, param, _ in optimizer.parameters_by_name()}
    return offloader.new_load_arena(
        [
            AwaitedTensor(found.name, field_key(moment, field), place.spec.dtype, place.local_shape)
            for found in states
            if found.state.codecs and offloader.takes(params[found.name])
            for moment, codec in found.codecs.items()
            for field, place in field_places(params[found.name], codec).items()
        ]
    )


def _home(optimizer: StateOwner, param: Tensor, incoming: LoadArena | None) -> StateDevices:
    return optimizer.state_devices(param)._replace(incoming=incoming)


def _make_load_arena(optimizer: StateOwner, stored: Sequence[Taken]) -> LoadArena | None:
    """Return an arena for the state of parameters under the options it is loaded with."""
    offloader = optimizer.offloader
    if offloader is None:
        return None
    return offloader.new_load_arena(
        [
            AwaitedTensor(name, key, place.spec.dtype, place.local_shape)
            for (name, param, _), options in ((taken.own, taken.options) for taken in stored)
            if offloader.takes(param)
            for key, place in expected_fields(name, param, options).items()
        ]
    )


def _log(optimizer: StateOwner, plan: LoadPlan) -> None:
    """Say once what is not as the optimizer was built, or not as it was saved."""
    name = type(optimizer).__name__
    if plan.foreign is not None:
        _LOGGER.warning(
            "state of %r is loaded into %s: moments are coded in its own codecs, by rounding to "
            "nearest, and of the options only %s are adopted.",
            plan.foreign,
            name,
            ", ".join(options_taken_over(optimizer.rule)),
        )
    groups = list(zip(optimizer.param_groups, plan.adopted, strict=True))
    if any(
        "codecs" in options and options["codecs"] != group["codecs"] for group, options in groups
    ):
        _LOGGER.warning(
            "the loaded state keeps the codecs that it was saved with, not those that %s was built "
            "with. import_adamw_state() of its export_adamw_state() codes it in others.",
            name,
        )
    kept = [index for index, (_, options) in enumerate(groups) if "codecs" not in options]
    if kept and plan.foreign is None:
        _LOGGER.warning(
            "parameter groups %s keep their own options, for their parameters are not those of one "
            "saved group.",
            ", ".join(map(str, kept)),
        )


def _replace(
    optimizer: StateOwner,
    plan: LoadPlan,
    loaded: Sequence[dict[str, Tensor] | None],
    incoming: LoadArena | None,
    *,
    rename: bool,
) -> None:
    """Put checked options, names and entries in place; nothing here fails."""
    names = iter([taken.own[0] for taken in plan.taken])
    for group, adopted in zip(optimizer.param_groups, plan.adopted, strict=True):
        adopt(group, adopted)
        if rename:
            group["param_names"] = [next(names) for _ in group["params"]]
    optimizer.forget_names()
    for taken, entry in zip(plan.taken, loaded, strict=True):
        param = taken.own[1]
        if entry is None:
            optimizer.state.pop(param, None)
        else:
            optimizer.state[param] = entry
    if incoming is not None and optimizer.offloader is not None:
        optimizer.offloader.take(incoming)
