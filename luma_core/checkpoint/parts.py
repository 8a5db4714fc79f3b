"""The parts of a sharded optimizer's state that one process saves and loads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from luma_core.carried import gathered
from luma_core.checkpoint.agreement import Processes
from luma_core.checkpoint.consistency import tensor_name
from luma_core.checkpoint.reader import Checkpoint
from luma_core.checkpoint.shard import PlannedTensor
from luma_core.codecs import Codec
from luma_core.optim.base import CompressedOptimizer
from luma_core.sharding import (
    FieldPlace,
    Part,
    decoded_part,
    encoded_part,
    local_tensor,
    part_of,
)
from luma_core.state import ParameterState, field_key


@dataclass
class PartPlan:
    """What one process saves.

    Attributes:
        tensors: whole fields and pieces of fields.
        nonfinite: what it adds to the counters of sharded parameters, by name.
    """

    tensors: list[PlannedTensor] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)


class _Fields(dict[str, Tensor]):
    """Fields that nobody else holds, so that they need not be copied."""

    fresh = True


def planned_parts(optimizer: CompressedOptimizer, processes: Processes) -> PartPlan:
    """Return what this process saves of an optimizer; all processes call it together."""
    plan = PartPlan()
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    for index, (state, param) in enumerate(zip(optimizer.parameter_states(), params, strict=True)):
        part, owned = part_of(param), index % processes.world == processes.rank
        if not state.codecs:
            continue
        if part is None or not part.cut:
            if owned:
                plan.tensors += [
                    _planned(state, key, local_tensor(value)) for key, value in state.fields.items()
                ]
            continue
        plan.nonfinite[state.name] = part_count(part, state)
        for moment, codec in state.codecs.items():
            plan.tensors += _planned_moment(state, moment, codec, part, owned)
    return plan


def _counts_add_up(state: ParameterState) -> bool:
    return all(codec.tiled and codec.block_size is not None for codec in state.codecs.values())


def part_count(part: Part, state: ParameterState) -> int:
    """Return what a process answers for of a parameter's counter of non-finite blocks.

    Args:
        part: its part of the parameter.
        state: the parameter's, with the count of this process, or of all together.
    """
    if not part.primary or (any(part.offset) and not _counts_add_up(state)):
        return 0
    return state.nonfinite


def _planned_moment(
    state: ParameterState, moment: str, codec: Codec, part: Part, owned: bool
) -> list[PlannedTensor]:
    fields = state.moment_fields(moment)
    if not part.aligned(codec):
        moment_values = gathered(part.like_whole(decoded_part(part, codec, fields)))
        if not owned:
            return []
        coded = codec.encode_tensor(moment_values)
        return [_planned(state, field_key(moment, key), value) for key, value in coded.items()]
    planned = []
    for name, place in part.fields(codec).items():
        key, value = field_key(moment, name), fields[name]
        if place.placements is None:
            planned += [_planned(state, key, local_tensor(value))] * owned
        elif set(part.cut) == {0} and place.spec.shape[0]:
            piece = local_tensor(value)
            if part.primary and piece.shape[0]:
                planned.append(_planned(state, key, piece, part.ranges(place)[0].start))
        else:
            whole = gathered(value)
            planned += [_planned(state, key, whole)] * owned
    return planned


def _planned(
    state: ParameterState, key: str, value: Tensor, first_row: int | None = None
) -> PlannedTensor:
    name = tensor_name(state.name, key)
    return PlannedTensor(name, value.dtype, tuple(value.shape), lambda: value, first_row)


def loaded_fields(
    checkpoint: Checkpoint,
    state: ParameterState,
    part: Part,
    keep: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return a parameter's fields as DTensors, reading no more than the rows of this process.

    A moment whose blocks the sharding cuts is coded anew, by rounding to nearest.

    Args:
        checkpoint: what to read.
        state: of the parameter.
        part: that this process has of it.
        keep: called with each field's key and local tensor; returns the one to go on with.
    """
    fields = _Fields()
    for moment, codec in state.codecs.items():
        if part.aligned(codec):
            for name, place in part.fields(codec).items():
                key = field_key(moment, name)
                local = _read_field(checkpoint, state.name, moment, name, part, place)
                fields[key] = part.wrapped(keep(key, local), place)
            continue
        rows, *rest = part.slices
        values = checkpoint.read(state.name, moment, rows=rows)
        local = values[(slice(None), *rest)].contiguous()
        coded, places = encoded_part(part, codec, part.like_whole(local)), part.fields(codec)
        for name, value in coded.items():
            key = field_key(moment, name)
            fields[key] = part.wrapped(keep(key, local_tensor(value)), places[name])
    return fields


def _read_field(
    checkpoint: Checkpoint, parameter: str, moment: str, name: str, part: Part, place: FieldPlace
) -> Tensor:
    if place.placements is None or not math.prod(place.spec.shape):
        return checkpoint.read(parameter, moment, field=name)
    rows, *rest = part.ranges(place)
    found = checkpoint.read(parameter, moment, field=name, rows=rows)
    return found[(slice(None), *rest)].contiguous()
