"""Steps that rules and backends are tried on, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec
from luma_core.rules import ParameterStep, Rule, StoredMoment
from luma_core.rules.base import Applied, Gather, Reduction, Wanted
from luma_core.rules.whole import apply_whole
from luma_core.testing.values import magnitudes


def make_step(
    rule: Rule,
    codecs: Mapping[str, Codec],
    group: Mapping[str, Any],
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    step: int = 3,
    skip_nonfinite: bool = True,
) -> ParameterStep:
    """Return a step from moments as training leaves them, of magnitudes spread over many octaves.

    Args:
        rule: whose step it is.
        codecs: the codec of each moment.
        group: the group's options.
        shape: the parameter's.
        dtype: the parameter's and the gradient's.
        step: its number.
        skip_nonfinite: whether blocks that are not finite are left.
    """
    moments = {}
    for index, spec in enumerate(rule.moments):
        x = magnitudes(shape, spread=2.0, seed=index)
        codec = codecs[spec.name]
        coded = codec.encode_tensor(x.square() if spec.kind == "square" else x)
        moments[spec.name] = StoredMoment(codec, coded)
    return ParameterStep(
        param=magnitudes(shape, seed=7).mul_(100).to(dtype),
        grad=magnitudes(shape, spread=2.0, seed=8).to(dtype),
        moments=moments,
        hyper=rule.hyper(group, step, coarse=any(codec.coarse for codec in codecs.values())),
        keys=rounding.step_keys(-5, step),
        skip_nonfinite=skip_nonfinite,
        stochastic_rounding=True,
    )


def clone_step(item: ParameterStep) -> ParameterStep:
    """Return the step with tensors of its own."""
    moments = {
        name: replace(stored, fields={key: field.clone() for key, field in stored.fields.items()})
        for name, stored in item.moments.items()
    }
    return replace(item, param=item.param.clone(), moments=moments)


def written(item: ParameterStep) -> dict[str, Tensor]:
    """Return all tensors that a step writes, by name."""
    found = {"param": item.param}
    for name, stored in item.moments.items():
        found |= {f"{name}.{key}": field for key, field in stored.fields.items()}
    return found


def decoded(item: ParameterStep) -> dict[str, Tensor]:
    """Return the moments, float32 of the parameter's shape."""
    shape = tuple(item.param.shape)
    return {
        name: stored.codec.decode_tensor(stored.fields, shape)
        for name, stored in item.moments.items()
    }


def assert_same_bits(found: ParameterStep, expected: ParameterStep, note: object = "") -> None:
    """Compare all that two steps wrote; NaN equals NaN."""
    for name, right in written(expected).items():
        left = written(found)[name]
        assert left.dtype == right.dtype, (name, note)
        if left.is_floating_point():
            assert torch.equal(left.isnan(), right.isnan()), (name, note)
            left, right = left.nan_to_num(7.0), right.nan_to_num(7.0)
        assert torch.equal(left, right), (name, note)


def rows_of(item: ParameterStep, rows: slice) -> ParameterStep:
    """Return the step of some rows, with tensors of its own; fields of whole tensors stay whole."""
    start = rows.indices(item.param.shape[0])[0]
    moments = {}
    for name, stored in clone_step(item).moments.items():
        whole = not stored.codec.tiled
        fields = {k: f if whole or not f.dim() else f[rows] for k, f in stored.fields.items()}
        moments[name] = replace(stored, fields=fields)
    return replace(
        item,
        param=item.param[rows].clone(),
        grad=item.grad[rows],
        moments=moments,
        first_index=item.first_index + start * item.row,
        whole_shape=tuple(item.param.shape),
    )


def step_together(rule: Rule, items: Sequence[ParameterStep]) -> None:
    """Take the steps of the parts of one parameter, as processes that have one each do."""
    running = [rule.stages(item) for item in items]
    wanted = [next(stages, None) for stages in running]
    while all(wanted):
        answers = _answers([one for one in wanted if one is not None])
        wanted = [_sent(*pair) for pair in zip(running, answers, strict=True)]
    assert not any(wanted)


def _sent(stages: Any, value: Tensor | Applied) -> Wanted | None:
    try:
        found: Wanted = stages.send(value)
    except StopIteration:
        return None
    return found


def _answers(wanted: Sequence[Wanted]) -> list[Tensor | Applied]:
    sums = [one for one in wanted if isinstance(one, Reduction)]
    if sums:
        return [_reduced(sums) for _ in sums]
    parts = [one for one in wanted if isinstance(one, Gather)]
    whole = parts[0]._replace(values=torch.cat([part.values for part in parts]))
    values, beside = apply_whole([whole])[0]
    pieces = values.split([part.values.shape[0] for part in parts])
    return [Applied(piece, beside) for piece in pieces]


def _reduced(wanted: Sequence[Reduction]) -> Tensor:
    stacked = torch.stack([one.values for one in wanted])
    return stacked.sum(dim=0) if wanted[0].kind == "sum" else stacked.amax(dim=0)
