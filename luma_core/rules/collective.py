"""Steps of sharded parameters: what they need of whole parameters is reduced for all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luma_core.rules.base import Applied, Gather, Reduction, Stages, Wanted
from luma_core.rules.whole import apply_to_parts
from luma_core.sharding import Part

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def run_together(steps: Sequence[tuple[Stages, Part | None]]) -> list[Tensor]:
    """Run the steps of several parameters, stage by stage, and return their results.

    A stage of all parameters that are cut over the same processes takes one collective for each
    kind of reduction, and tensors that are needed whole are exchanged together. All processes must
    step the same parameters in the same order.
    """
    results: dict[int, Tensor] = {}
    waiting: dict[int, Wanted] = {}

    def advance(index: int, sent: Tensor | Applied | None) -> None:
        stages = steps[index][0]
        try:
            waiting[index] = next(stages) if sent is None else stages.send(sent)
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(steps)):
        advance(index, None)
    while waiting:
        now, waiting = waiting, {}
        for index, found in _answers(now, [part for _, part in steps]).items():
            advance(index, found)
    return [results[index] for index in range(len(steps))]


def _answers(
    waiting: Mapping[int, Wanted], parts: Sequence[Part | None]
) -> dict[int, Tensor | Applied]:
    """Return what each of some steps is waiting for, in their order."""
    sums = {i: (wanted, parts[i]) for i, wanted in waiting.items() if isinstance(wanted, Reduction)}
    wholes = {i: (wanted, parts[i]) for i, wanted in waiting.items() if isinstance(wanted, Gather)}
    found: dict[int, Tensor | Applied] = {}
    found |= zip(sums, reduce_parts(list(sums.values())), strict=True)
    found |= zip(wholes, apply_to_parts(list(wholes.values())), strict=True)
    return {index: found[index] for index in waiting}


def reduce_parts(wanted: Sequence[tuple[Reduction, Part | None]]) -> list[Tensor]:
    """Return the values of whole parameters from those of parts, which stay as they are.

    Args:
        wanted: values, each with the part that they are of; ``None`` for whole parameters.

    Returns:
        tensors of the same shapes, dtypes and devices.
    """
    results = [reduction.values for reduction, _ in wanted]
    batches: dict[Any, list[int]] = {}
    for index, (reduction, part) in enumerate(wanted):
        groups = tuple(part.groups) if part is not None else ()
        if groups and part is not None:
            key = groups, reduction.kind, reduction.values.dtype, part.mesh.device_type
            batches.setdefault(key, []).append(index)
    for (groups, kind, _, device), members in batches.items():
        sizes = [results[index].numel() for index in members]
        values = torch.cat([results[index].reshape(-1).to(device) for index in members])
        for group in groups:
            all_reduce(values, kind, group)
        for index, piece in zip(members, values.split(sizes), strict=True):
            results[index] = piece.view_as(results[index]).to(results[index].device)
    return results


def all_reduce(values: Tensor, kind: str, group: ProcessGroup) -> None:
    """Replace values by their sums or maxima over a group.

    Args:
        values: contiguous, equal in shape and dtype on all processes.
        kind: ``"sum"`` or ``"max"``.
        group: the processes; all must call this.
    """
    from torch import distributed

    operation = distributed.ReduceOp.SUM if kind == "sum" else distributed.ReduceOp.MAX
    distributed.all_reduce(values, operation, group)
