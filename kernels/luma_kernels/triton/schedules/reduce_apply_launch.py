"""The LAMB step's launches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import BlockGrid, Codec
from luma_core.rules.lamb import adapts
from luma_core.sharding import Part
from luma_kernels.triton.rules.elementwise import adamw_moments
from luma_kernels.triton.runtime.exact import DIGITS
from luma_kernels.triton.runtime.exchange import Sums
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import (
    Bucket,
    FusedTensor,
    Launch,
    Plan,
    bucket_of,
    option_row,
)
from luma_kernels.triton.schedules.one_pass_launch import (
    Pass,
    RuleKernels,
    adamw_prepare,
    by_program,
    step_constants,
    whole_passes,
)
from luma_kernels.triton.schedules.reduce_apply import (
    ADAPT,
    TRUST_CLIP,
    lamb_kernel,
    ratio_kernel,
    step_moments,
    step_parameter,
)

_SUMS = 2 * DIGITS.value


@dataclass(frozen=True)
class LambBucket(Bucket):
    """A bucket of tensors whose squares are added up alike.

    Attributes:
        flat: whether the tensors may be cut within blocks: see `exact.py`.
    """

    flat: bool


def lamb_bucket_of(
    param: Tensor,
    grad: Tensor,
    codecs: Mapping[str, Codec],
    options: Mapping[str, Any],
    part: Part | None = None,
) -> LambBucket | None:
    """Return the bucket of a parameter, or ``None`` where the kernels cannot take it."""
    bucket = bucket_of(param, grad, codecs, options, part)
    if bucket is None:
        return None
    own = {item.name: getattr(bucket, item.name) for item in fields(bucket)}
    return LambBucket(**own, flat=BlockGrid.of(param.shape, None).flat)


def lamb_options(group: Mapping[str, Any]) -> list[float]:
    """Return a group's row of the options table; the last column says how to use the ratio."""
    row = option_row(group)
    if not group["bias_correction"]:
        row[1] = row[2] = -math.inf  # the logarithm of 0, whose powers correct nothing
    row[-1] = float(ADAPT.value * adapts(group) + TRUST_CLIP.value * group["trust_clip"])
    return row


def lamb_scratch(
    tensors: Sequence[FusedTensor], programs: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return ``sums`` and ``skipped``: see `reduce_apply.py`."""
    bucket = tensors[0].bucket
    blocks = bucket.tile_blocks * bucket.tuning.tiles
    return (
        torch.zeros(len(tensors), _SUMS, dtype=torch.int64, device=device),
        torch.empty(programs, blocks, dtype=torch.uint8, device=device),
    )


def lamb_sums(part: Launch) -> Sums:
    """Return ``sums`` of a launch."""
    return Sums(part.scratch[0], [_SUMS] * part.tensors)


def lamb_constants(bucket: Bucket, *, last: bool, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return all compile-time parameters of `lamb_kernel` for a bucket's first or last pass."""
    return {
        **step_constants(bucket, scaler=scaler, fast=fast),
        "STEP_TILE": step_parameter if last else step_moments,
        "LAST": last,
        "FACTOR": True,
        "FLAT": _is_flat(bucket),
    }


def lamb_registers(bucket: Bucket, *, last: bool) -> int:
    """Return the bound on registers per thread.

    The first pass needs some for its sums, and with one scale per tensor a few more.
    """
    if last:
        return bucket.tuning.registers
    sums = 8 if bucket.param_dtype == torch.float32 else 24
    return bucket.tuning.registers + sums + 8 * bucket.whole + 16 * _is_flat(bucket)


def lamb_passes(bucket: Bucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return three passes, or five where one scale is for a whole tensor."""
    first, last = (
        Pass(
            KernelLaunch(
                lamb_kernel,
                lamb_constants(bucket, last=last, scaler=scaler, fast=fast),
                num_warps=bucket.tuning.warps,
                **({"maxnreg": lamb_registers(bucket, last=last)} if fast else {}),
            ),
            _by_program,
            after_sums=last,
        )
        for last in (False, True)
    )
    reduce = Pass(KernelLaunch(ratio_kernel, {}, num_warps=1), _each_tensor, after_sums=True)
    if not bucket.whole:
        return [first, reduce, last]
    constants = lamb_constants(bucket, last=False, scaler=scaler, fast=fast)
    constants["MOMENTS"] = adamw_moments
    maxima, finish = whole_passes(bucket, constants)
    return [maxima, first, finish, reduce, last]


def _is_flat(bucket: Bucket) -> bool:
    return isinstance(bucket, LambBucket) and bucket.flat


def _by_program(plan: Plan, part: Launch) -> tuple[Any, ...]:
    return *by_program(plan, part), *part.scratch, part.first_tensor


def _each_tensor(plan: Plan, part: Launch) -> tuple[Any, ...]:
    return part.tensors, plan.rows, part.scratch[0], part.first_tensor


LAMB = RuleKernels(
    lamb_options, adamw_prepare, lamb_passes, lamb_scratch, lamb_bucket_of, lamb_sums
)
