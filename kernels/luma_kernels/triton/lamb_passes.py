"""The LAMB step's launches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luma_core.optim.rules.lamb import adapts
from luma_kernels.triton.lamb import (
    ADAPT,
    TRUST_CLIP,
    lamb_kernel,
    ratio_kernel,
    step_parameter,
    store_moments,
)
from luma_kernels.triton.launch import KernelLaunch
from luma_kernels.triton.passes import (
    Pass,
    RuleKernels,
    adamw_prepare,
    by_program,
    step_constants,
    whole_passes,
)
from luma_kernels.triton.plan import (
    Bucket,
    FusedTensor,
    Launch,
    Plan,
    option_row,
)

_RATIO_LANES = 1024
_RATIO_WARPS = 4


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
    """Return ``sums`` and ``skipped``: see `lamb.py`."""
    bucket = tensors[0].bucket
    blocks = bucket.tile_blocks * bucket.tuning.tiles
    return (
        torch.empty(programs, 2, dtype=torch.float32, device=device),
        torch.empty(programs, blocks, dtype=torch.uint8, device=device),
    )


def lamb_constants(bucket: Bucket, *, last: bool, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return all compile-time parameters of `lamb_kernel` for a bucket's first or last pass."""
    return {
        **step_constants(bucket, scaler=scaler, fast=fast),
        "STEP_TILE": step_parameter if last else store_moments,
        "LAST": last,
        "FACTOR": True,
    }


def lamb_registers(bucket: Bucket, *, last: bool) -> int:
    """Return the bound on registers per thread.

    The first pass needs some for its sums, and with one scale per tensor a few more.
    """
    if last:
        return bucket.tuning.registers
    return bucket.tuning.registers + 8 + 8 * bucket.whole


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
        )
        for last in (False, True)
    )
    ratio = {
        "RAGGED": bucket.ragged,
        "BLOCK": bucket.block,
        "TILE_BLOCKS": bucket.tile_blocks,
        "TILES": bucket.tuning.tiles,
        "LANES": _RATIO_LANES,
    }
    reduce = Pass(KernelLaunch(ratio_kernel, ratio, num_warps=_RATIO_WARPS), _each_tensor)
    if not bucket.whole:
        return [first, reduce, last]
    constants = lamb_constants(bucket, last=False, scaler=scaler, fast=fast)
    maxima, finish = whole_passes(bucket, constants)
    return [maxima, first, finish, reduce, last]


def _by_program(plan: Plan, part: Launch) -> tuple[Any, ...]:
    return *by_program(plan, part), *part.scratch


def _each_tensor(plan: Plan, part: Launch) -> tuple[Any, ...]:
    return part.tensors, plan.table, plan.rows, part.scratch[0], part.first_tensor


LAMB = RuleKernels(lamb_options, adamw_prepare, lamb_passes, lamb_scratch)
