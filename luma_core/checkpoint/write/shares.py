"""Plans what one process writes: all gather summaries, check them and share out the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from luma_core.checkpoint.format.extra import flatten_extra
from luma_core.checkpoint.format.group_options import plain_options
from luma_core.checkpoint.format.manifest import ParameterEntry
from luma_core.checkpoint.format.plan import Plan, SavableState
from luma_core.checkpoint.format.shard import PlannedTensor, plan_shards
from luma_core.checkpoint.storage.names import ShardKind
from luma_core.checkpoint.write.coordination import Ranks
from luma_core.checkpoint.write.options import Replicas
from luma_core.checkpoint.write.owners import Holders, LocalCopy, Owners
from luma_core.checkpoint.write.parts import LocalState, ShardedOptimizer, sharded_optimizer
from luma_core.checkpoint.write.replicas import digests
from luma_core.checkpoint.write.weights import (
    LocalWeights,
    check_models,
    find_common_aliases,
    plan_tensor,
    values_of_first,
)
from luma_core.errors import StateMismatchError
from luma_core.state import GroupOptions

_SINGLE = "parameter_codecs"


class _RankSummary(NamedTuple):
    """What one process tells of what it saves.

    Attributes:
        rank: its rank in the default group.
        algorithm: of its optimizer.
        named: whether its parameters have names of their own; ``None`` where it has none.
        groups: options of its parameter groups.
        group_of: index of each parameter's group.
        counts: each parameter's count of non-finite blocks, and whether it is of its part only.
        state: its copies of parameters' state.
        weights: its copies of weights; ``None`` without a model.
        aliases: what `find_common_aliases` takes.
    """

    rank: int
    algorithm: str
    named: bool | None
    groups: list[GroupOptions]
    group_of: dict[str, int]
    counts: dict[str, tuple[int, bool]]
    state: dict[str, LocalCopy]
    weights: dict[str, LocalCopy] | None
    aliases: tuple[dict[str, str], set[str]]


class _Local:
    """What this process saves."""

    def __init__(self, optimizer: ShardedOptimizer, model: nn.Module | None, extra: Any) -> None:
        self.tree, self.extra = flatten_extra(extra)
        groups = enumerate(optimizer.group_options())
        self._groups = [plain_options(index, group) for index, group in groups]
        self._algorithm, self._named = optimizer.algorithm, optimizer.named
        self._any = bool(optimizer.parameter_names())
        self.state = LocalState(optimizer, self._groups)
        self.weights = None if model is None else LocalWeights(model)

    def summarize(self, rank: int, *, checked: bool) -> _RankSummary:
        weights = self.weights
        return _RankSummary(
            rank=rank,
            algorithm=self._algorithm,
            named=self._named if self._any else None,
            groups=self._groups,
            group_of=self.state.groups(),
            counts=self.state.counts(),
            state=self.state.copies(checked=checked),
            weights=None if weights is None else weights.copies(checked=checked),
            aliases=({}, set()) if weights is None else (weights.aliases, weights.known),
        )

    def plan(
        self, state: Mapping[str, Owners], weights: Mapping[str, Owners], process: int
    ) -> dict[ShardKind, list[PlannedTensor]]:
        found: dict[ShardKind, list[PlannedTensor]] = {"optimizer": self.state.plan(state, process)}
        if self.weights is not None:
            found["model"] = self.weights.plan(weights, process)
        if process == 0:
            found["extra"] = [plan_tensor(name, tensor) for name, tensor in self.extra.items()]
        return found


def plan_share(
    optimizer: SavableState,
    model: nn.Module | None,
    extra: Any,
    max_shard_bytes: int,
    replicas: Replicas,
    ranks: Ranks,
) -> Plan:
    """Return what this rank writes; all ranks call it together.

    Nothing is gathered, and nothing written, before all know what all have.

    Raises:
        StateMismatchError: ranks have parts that make up no whole, or copies that differ.
        ConfigurationError: something cannot be saved.
        UnsupportedParameterError: parameters are flat ones of FSDP1.
    """
    locals_: list[_Local] = []

    def summarize() -> _RankSummary:
        locals_.append(_Local(sharded_optimizer(optimizer), model, extra))
        return locals_[0].summarize(ranks.global_rank, checked=replicas == "equal")

    summaries = ranks.run_on_all_ranks(summarize)
    local = locals_[0]
    _check_alike(summaries)
    aliases = find_common_aliases([one.aliases for one in summaries])
    global_ranks = [one.rank for one in summaries]
    state = Holders("parameter", [one.state for one in summaries], global_ranks)
    copies = values_of_first([_without(one.weights or {}, aliases) for one in summaries])
    weights = Holders("weight", copies, global_ranks)
    _check_replicas(local, state, weights, ranks)
    owners = state.owners(ranks.world_size), weights.owners(ranks.world_size)
    tensors: list[dict[ShardKind, list[PlannedTensor]]] = []
    ranks.run_on_all_ranks(lambda: tensors.append(local.plan(*owners, ranks.rank)))
    groups, parameters = _merge(summaries, state)
    return Plan(
        algorithm=summaries[0].algorithm,
        named=any(one.named for one in summaries),
        groups=groups,
        parameters=parameters,
        extra=local.tree,
        aliases=aliases,
        shards={
            kind: plan_shards(some, max_shard_bytes) for kind, some in tensors[0].items() if some
        },
    )


def _without(copies: Mapping[str, LocalCopy], aliases: Mapping[str, str]) -> dict[str, LocalCopy]:
    return {name: copy for name, copy in copies.items() if name not in aliases}


def _check_alike(summaries: Sequence[_RankSummary]) -> None:
    """Check what optimizers and models of all processes have in common."""
    for process, one in enumerate(summaries):
        if one.algorithm != summaries[0].algorithm:
            raise StateMismatchError(
                f"the optimizers differ: {summaries[0].algorithm!r} in rank 0 and "
                f"{one.algorithm!r} in rank {process}."
            )
    check_models([one.weights is not None for one in summaries])
    unnamed = [process for process, one in enumerate(summaries) if one.named is False]
    for process, one in enumerate(summaries):
        if (
            unnamed
            and one.named is not None
            and list(one.state) != list(summaries[unnamed[0]].state)
        ):
            raise StateMismatchError(
                f"ranks {unnamed[0]} and {process} have different parameters, which have no names.",
                hint="Build the optimizer over model.named_parameters().",
            )


def _check_replicas(local: _Local, state: Holders, weights: Holders, ranks: Ranks) -> None:
    """Check that what several processes have is equal; all call it together."""
    if not state.several and not weights.several:
        return

    def digest() -> tuple[dict[str, int], dict[str, int]]:
        found = {name: local.state.tensors(name) for name in state.several_of(ranks.rank)}
        values: dict[str, list[Tensor]] = {}
        if local.weights is not None:
            own = weights.several_of(ranks.rank)
            values = {name: local.weights.tensors(name) for name in own}
        return digests(found), digests(values)

    by_process = ranks.run_on_all_ranks(digest)
    state.check_equal([of_state for of_state, _ in by_process])
    weights.check_equal([of_weights for _, of_weights in by_process])


def _merge(
    summaries: Sequence[_RankSummary], state: Holders
) -> tuple[tuple[GroupOptions, ...], tuple[ParameterEntry, ...]]:
    """Return the groups of all processes, those with equal options once, and all parameters."""
    numbers: dict[tuple[str, int], int] = {}
    groups: list[GroupOptions] = []
    group_of: list[list[int]] = []
    for one in summaries:
        seen: dict[str, int] = {}
        group_of.append([])
        for options in one.groups:
            single = options.get(_SINGLE, {})
            key = json.dumps(_shared(options), sort_keys=True)
            seen[key] = seen.get(key, 0) + 1
            number = numbers.setdefault((key, seen[key]), len(groups))
            if number == len(groups):
                groups.append(dict(options))
            elif _SINGLE in options:
                groups[number][_SINGLE] = {**single, **groups[number][_SINGLE]}
            group_of[-1].append(number)
    entries = []
    for name, copies in state.copies.items():
        process, copy = next(iter(copies.items()))
        entries.append(
            ParameterEntry(
                name=name,
                shape=copy.shape,
                group=group_of[process][summaries[process].group_of[name]],
                nonfinite=_nonfinite(name, summaries, state),
                **copy.facts,
            )
        )
    return tuple(groups), tuple(sorted(entries, key=lambda entry: entry.group))


def _shared(options: GroupOptions) -> GroupOptions:
    """Return a group's options but those of single parameters, which a process has of its own."""
    return {key: value for key, value in options.items() if key != _SINGLE}


def _nonfinite(name: str, summaries: Sequence[_RankSummary], state: Holders) -> int:
    """Return the count of a parameter.

    Each process counts what is in its part, and copies of a part count the same from the load on
    that gave the stored count to one or to all of them.
    """
    parts = [
        max(summaries[process].counts[name][0] for process in holders)
        for holders in state.boxes(name).values()
    ]
    adds_up = any(one.counts[name][1] for one in summaries if name in one.counts)
    return sum(parts) if adds_up else max(parts, default=0)
