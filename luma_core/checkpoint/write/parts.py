"""The parts of a sharded optimizer's state that one process saves and loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any

from torch import Tensor

from luma_core.carried import gathered
from luma_core.checkpoint.format.any_optimizer import AnyOptimizer
from luma_core.checkpoint.format.consistency import tensor_name
from luma_core.checkpoint.format.manifest import Box
from luma_core.checkpoint.format.plan import parameter_entry
from luma_core.checkpoint.format.shard import PlannedTensor
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.write.owners import LocalCopy, Owners, whole_box
from luma_core.codecs import Codec
from luma_core.errors import ConfigurationError, UnsupportedParameterError
from luma_core.optim.base import CompressedOptimizer
from luma_core.recoding import encoded_part
from luma_core.sharding import (
    FieldPlace,
    Part,
    is_flattened,
    local_tensor,
    padded_fields,
    part_of,
    used_fields,
)
from luma_core.state import GroupOptions, ParameterState, field_key

ShardedOptimizer = CompressedOptimizer | AnyOptimizer
"""What many processes save and load together."""


def sharded_optimizer(optimizer: object) -> ShardedOptimizer:
    """Return an optimizer whose state is of tensors that may be cut, but have their shapes.

    Args:
        optimizer: one of ours, or what `state_of_any` returns.

    Raises:
        ConfigurationError: it is something else, as an opened checkpoint.
        UnsupportedParameterError: parameters are flat ones of FSDP1.
    """
    if not isinstance(optimizer, CompressedOptimizer | AnyOptimizer):
        raise ConfigurationError(
            f"optimizer is a {type(optimizer).__name__}; with a process group it must be an "
            "optimizer.",
            hint="Leave process_group= away in the one process that has the state.",
        )
    for name, param, _ in optimizer.parameters_by_name():
        if is_flattened(param):
            raise UnsupportedParameterError(
                f"parameter {name!r} is a flat one of FullyShardedDataParallel, cut anywhere.",
                hint="Give luma_core.optim.unflattened(model, optimizer).",
            )
    return optimizer


class _Fields(dict[str, Tensor]):
    """Fields that no other object refers to, so that they need not be copied."""

    fresh = True


class LocalState:
    """The state of the parameters of which this process has a part.

    Args:
        optimizer: their optimizer.
        options: of its groups, as plain JSON values.
    """

    def __init__(self, optimizer: ShardedOptimizer, options: Sequence[GroupOptions]) -> None:
        params = [param for _, param, _ in optimizer.parameters_by_name()]
        found = zip(optimizer.parameter_states(), map(part_of, params), strict=True)
        self._states = {
            state.name: (state, part) for state, part in found if part is None or part.here
        }
        # One object for all parameters of a group is sent once.
        self._options = [
            {key: value for key, value in group.items() if key != "parameter_codecs"}
            for group in options
        ]

    def copies(self, *, checked: bool) -> dict[str, LocalCopy]:
        """Return what this process has of each parameter's state, by name."""
        codecs: dict[Any, dict[str, Any]] = {}
        found = {}
        for name, (state, part) in self._states.items():
            entry = parameter_entry(state)
            key = tuple(state.codecs.items())
            facts = {
                "dtype": entry.dtype,
                "codecs": codecs.setdefault(key, entry.codecs),
                "step": entry.step,
                "noise_key": entry.noise_key,
            }
            sizes = self._sizes(state, part)
            options = self._options[state.group]
            found[name] = local_copy(state.shape, part, facts, options, *sizes, checked=checked)
        return found

    def counts(self) -> dict[str, tuple[int, bool]]:
        """Return each parameter's count of non-finite blocks, and whether it is of its part."""
        return {
            name: (state.nonfinite, counts_add_up(state.codecs.values()))
            for name, (state, _) in self._states.items()
        }

    def groups(self) -> dict[str, int]:
        """Return the index of each parameter's group in this process, by name."""
        return {name: state.group for name, (state, _) in self._states.items()}

    def tensors(self, name: str) -> list[Tensor]:
        """Return the stored tensors that this process has of a parameter."""
        state, part = self._states[name]
        return [
            value
            for moment, codec in state.codecs.items()
            for value in used_fields(part, codec, state.moment_fields(moment)).values()
        ]

    def plan(self, owners: Mapping[str, Owners], process: int) -> list[PlannedTensor]:
        """Return what this process writes; all that have a part of a parameter call it together.

        Args:
            owners: who writes each parameter, in the same order in all processes.
            process: the number of this one.
        """
        planned = []
        for name, owner in owners.items():
            if name in self._states:
                state, part = self._states[name]
                for moment, codec in state.codecs.items():
                    planned += _plan_moment(state, moment, codec, part, owner, process)
        return planned

    @staticmethod
    def _sizes(state: ParameterState, part: Part | None) -> tuple[int, int]:
        """Return the bytes that are written part by part, and those that one process writes."""
        sizes = [0, 0]
        for moment, codec in state.codecs.items():
            fields = state.moment_fields(moment)
            ways = _ways(part, codec)
            for key, value in used_fields(part, codec, fields).items():
                way = ways.get(key, _Way.WHOLE)
                factor = math.prod(part.cut.values()) if part and way is _Way.GATHERED else 1
                sizes[way in (_Way.ONE, _Way.GATHERED)] += value.nbytes * factor
        return sizes[0], sizes[1]


class _Way(Enum):
    """How a field comes into a checkpoint."""

    WHOLE = "whole"
    """A process has the whole parameter."""
    PIECE = "piece"
    """As rows of the whole field."""
    PART = "part"
    """As a field of a part, which has blocks of its own."""
    ONE = "one"
    """All processes have the whole field; one of them writes it."""
    GATHERED = "gathered"
    """Gathered in all processes; one of them writes it."""


@lru_cache(maxsize=4096)
def _ways(part: Part | None, codec: Codec) -> dict[str, _Way]:
    """Return how each field of a moment is written; empty where a process has all of it."""
    if part is None or _box(part.shape, part) == whole_box(part.shape):
        return {}
    places = part.fields(codec)
    if not part.aligned(codec):
        return dict.fromkeys(places, _Way.PART)
    cut = _Way.PIECE if set(part.cut) == {0} else _Way.GATHERED
    return {name: _Way.ONE if place.placements is None else cut for name, place in places.items()}


def _box(shape: Sequence[int], part: Part | None) -> Box:
    """Return the box of a tensor that a process has; all of a tensor without elements."""
    return whole_box(shape) if part is None or not math.prod(shape) else part.box


def _plan_moment(
    state: ParameterState,
    moment: str,
    codec: Codec,
    part: Part | None,
    owner: Owners,
    process: int,
) -> list[PlannedTensor]:
    box, ways = _box(state.shape, part), _ways(part, codec)
    mine, chosen = owner.parts.get(box) == process, owner.whole == process
    stored = state.moment_fields(moment)
    planned = []
    for name, value in used_fields(part, codec, stored).items():
        key, way = field_key(moment, name), ways.get(name, _Way.WHOLE)
        if way is _Way.GATHERED:
            whole = gathered(stored[name])
            planned += [_plan_tensor(state, key, whole)] * chosen
        elif way is _Way.ONE:
            planned += [_plan_tensor(state, key, value)] * chosen
        elif way is _Way.WHOLE:
            shape = codec.layout(state.shape)[name].shape
            planned += [_plan_tensor(state, key, value.reshape(shape))] * mine
        elif way is _Way.PART:
            planned += [_plan_tensor(state, key, value, box=box)] * mine
        elif part is not None:
            first = part.ranges(part.fields(codec)[name])[0].start
            planned += [_plan_tensor(state, key, value, first_row=first)] * mine
    return planned


def _plan_tensor(
    state: ParameterState,
    key: str,
    value: Tensor,
    *,
    first_row: int | None = None,
    box: Box | None = None,
) -> PlannedTensor:
    return PlannedTensor(
        tensor_name(state.name, key),
        value.dtype,
        tuple(value.shape),
        lambda: value,
        first_row=first_row,
        box=box,
    )


def local_copy(
    shape: Sequence[int],
    part: Part | None,
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    part_bytes: int,
    whole_bytes: int,
    *,
    checked: bool,
) -> LocalCopy:
    """Return what this process has of a tensor: a part, or all of it."""
    cut = part is not None and any(size > 1 for size in part.cut.values())
    ranks = _ranks(part.mesh) if cut and part is not None else ()
    box = _box(shape, part)
    return LocalCopy(tuple(shape), box, facts, options, part_bytes, whole_bytes, ranks, checked)


@lru_cache(maxsize=256)
def _ranks(mesh: Any) -> tuple[int, ...]:
    return tuple(mesh.mesh.flatten().tolist())


def counts_add_up(codecs: Iterable[Codec]) -> bool:
    """Return whether processes count the non-finite blocks of their parts only, not all."""
    return all(codec.tiled and codec.block_size is not None for codec in codecs)


def part_count(part: Part, state: ParameterState) -> int:
    """Return what a process answers for of a parameter's counter of non-finite blocks.

    Args:
        part: its part of the parameter.
        state: the parameter's, with the count of all together.
    """
    return 0 if any(part.offset) and counts_add_up(state.codecs.values()) else state.nonfinite


def loaded_fields(
    checkpoint: Checkpoint,
    state: ParameterState,
    part: Part,
    keep: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return a parameter's fields as DTensors, reading no more than the rows of this process.

    A moment whose blocks this sharding cuts, or that of the save did, is coded anew, by rounding to
    nearest, unless this very part is stored.

    Args:
        checkpoint: what to read.
        state: of the parameter.
        part: that this process has of it.
        keep: called with each field's key and local tensor; returns the one to go on with.
    """
    fields = _Fields()
    for moment, codec in state.codecs.items():
        boxes, places = checkpoint.boxes(state.name, moment), part.fields(codec)
        if part.box in boxes:
            stored = padded_fields(part, codec, checkpoint.read_part(state.name, moment, part.box))
        elif part.aligned(codec) and not boxes:
            stored = {
                name: _read_field(checkpoint, state.name, moment, name, part, place)
                for name, place in places.items()
            }
        else:
            rows, *rest = part.slices
            values = checkpoint.read(state.name, moment, rows=rows)
            local = part.like_whole(values[(slice(None), *rest)].contiguous())
            stored = encoded_part(part, codec, local)
        for name, value in stored.items():
            key = field_key(moment, name)
            fields[key] = part.wrapped(keep(key, local_tensor(value)), places[name])
    return fields


def _read_field(
    checkpoint: Checkpoint, parameter: str, moment: str, name: str, part: Part, place: FieldPlace
) -> Tensor:
    if place.placements is None or not math.prod(place.spec.shape):
        return checkpoint.read(parameter, moment, field=name)[part.ranges(place)]
    rows, *rest = part.ranges(place)
    found = checkpoint.read(parameter, moment, field=name, rows=rows)
    return found[(slice(None), *rest)].contiguous()
