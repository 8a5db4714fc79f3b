"""What a save will write: decided before anything is written, fetched or staged."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from luma_core.checkpoint.format.consistency import tensor_name
from luma_core.checkpoint.format.extra import flatten_extra
from luma_core.checkpoint.format.group_options import plain_options
from luma_core.checkpoint.format.manifest import ParameterEntry
from luma_core.checkpoint.format.model import model_tensors
from luma_core.checkpoint.format.shard import PlannedTensor, plan_shards
from luma_core.checkpoint.storage.names import ShardKind
from luma_core.errors import ConfigurationError
from luma_core.sharding import any_cut
from luma_core.state import GroupOptions, ParameterState, StateSource, field_key


class SavableState(StateSource, Protocol):
    """State that can be saved: an optimizer's, an opened checkpoint's or a conversion's."""

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        ...


@dataclass(frozen=True)
class Plan:
    """What will be written; tensors are fetched when their turn comes."""

    algorithm: str
    named: bool
    groups: tuple[GroupOptions, ...]
    parameters: tuple[ParameterEntry, ...]
    extra: Any
    aliases: Mapping[str, str]
    shards: Mapping[ShardKind, list[list[PlannedTensor]]]

    @property
    def total_bytes(self) -> int:
        return sum(
            tensor.nbytes for shards in self.shards.values() for shard in shards for tensor in shard
        )


def refuse_sharded(optimizer: object) -> None:
    """Refuse optimizers of which this process has only a part.

    Raises:
        ConfigurationError: saying so.
    """
    groups = getattr(optimizer, "param_groups", ())
    if any_cut(param for group in groups for param in group["params"]):
        raise ConfigurationError(
            "the optimizer's parameters are sharded over processes; this process has a part only.",
            hint="Give process_group=torch.distributed.group.WORLD in all processes, or call "
            "save_sharded there.",
        )


def plan_save(
    optimizer: SavableState, model: nn.Module | None, extra: Any, max_shard_bytes: int
) -> Plan:
    """Return what a save of these will write.

    Raises:
        ConfigurationError: something among them cannot be saved.
    """
    names = list(optimizer.parameter_names())
    repeated = (
        {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    )
    if repeated:
        raise ConfigurationError(f"the parameter name {min(repeated)!r} is used more than once.")
    last = _LastState(optimizer)
    parameters = []
    tensors: dict[ShardKind, list[PlannedTensor]] = {"optimizer": []}
    for name in names:
        state = optimizer.parameter_state(name)
        parameters.append(parameter_entry(state))
        # An optimizer has its tensors anyway; others make them when they are asked.
        there = state.fields if isinstance(optimizer, Optimizer) else None
        tensors["optimizer"].extend(_planned_fields(state, last, there))
    weights, aliases = model_tensors(model) if model is not None else ({}, {})
    tensors["model"] = [_planned(name, tensor) for name, tensor in weights.items()]
    tree, extra_tensors = flatten_extra(extra)
    tensors["extra"] = [_planned(name, tensor) for name, tensor in extra_tensors.items()]
    return Plan(
        algorithm=optimizer.algorithm,
        named=optimizer.named,
        groups=tuple(plain_options(i, group) for i, group in enumerate(optimizer.group_options())),
        parameters=tuple(parameters),
        extra=tree,
        aliases=aliases,
        shards={kind: plan_shards(some, max_shard_bytes) for kind, some in tensors.items() if some},
    )


def parameter_entry(state: ParameterState) -> ParameterEntry:
    """Return the manifest entry of a parameter's state."""
    return ParameterEntry(
        name=state.name,
        shape=tuple(state.shape),
        dtype=state.dtype,
        group=state.group,
        step=state.step,
        noise_key=state.noise_key,
        nonfinite=state.nonfinite,
        codecs={moment: codec.to_dict() for moment, codec in state.codecs.items()},
    )


class _LastState:
    """Asks a source for each parameter once while its fields are written one after another."""

    def __init__(self, source: StateSource) -> None:
        self._source = source
        self._of_thread = threading.local()

    def field(self, name: str, key: str) -> Tensor:
        state: ParameterState | None = getattr(self._of_thread, "state", None)
        if state is None or state.name != name:
            state = self._of_thread.state = self._source.parameter_state(name)
        return state.fields[key]


def _planned_fields(
    state: ParameterState, last: _LastState, there: Mapping[str, Tensor] | None
) -> Iterator[PlannedTensor]:
    for moment, codec in state.codecs.items():
        for field, spec in codec.layout(state.shape).items():
            key = field_key(moment, field)
            load = partial(last.field, state.name, key)
            if there is not None:
                load = partial(there.__getitem__, key)
            yield PlannedTensor(tensor_name(state.name, key), spec.dtype, tuple(spec.shape), load)


def _planned(name: str, tensor: Tensor) -> PlannedTensor:
    return PlannedTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)
