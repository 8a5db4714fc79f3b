"""What a rule's kernels are to the launcher, and those of AdamW; `registry.py` lists all rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from luma_kernels.triton.rules.elementwise import adamw_moments, adamw_update
from luma_kernels.triton.runtime.configuration import first_moment, second_moment
from luma_kernels.triton.runtime.exchange import Sums
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import (
    TENSORS_PER_PROGRAM,
    Bucket,
    FusedTensor,
    Launch,
    Plan,
    bucket_of,
    no_scratch,
    option_row,
)
from luma_kernels.triton.runtime.tables import prepare_kernel
from luma_kernels.triton.schedules.one_pass import finish_kernel, maxima_kernel, step_kernel

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def by_program(plan: Plan, part: Launch) -> tuple[Any, ...]:
    """Return what a kernel of ``(table, rows, owner, maxima)`` is launched with."""
    return part.programs, plan.table, plan.rows, part.owner, plan.maxima


def by_tensor(plan: Plan, part: Launch) -> tuple[Any, ...]:
    """Return what a kernel of ``(table, rows, maxima, tensors, first_tensor)`` is launched with.

    Its programs take ``TENSORS_PER_PROGRAM`` tensors each.
    """
    programs = -(-part.tensors // TENSORS_PER_PROGRAM)
    return programs, plan.table, plan.rows, plan.maxima, part.tensors, part.first_tensor


class Pass(NamedTuple):
    """One launch of a bucket's step.

    Attributes:
        launch: the kernel.
        arguments: returns its number of programs and its arguments; with none, it is left out.
        after_sums: whether it comes after the `RuleKernels.sums` of parts were added up.
    """

    launch: KernelLaunch
    arguments: Callable[[Plan, Launch], tuple[Any, ...]] = by_program
    after_sums: bool = False


def no_sums(part: Launch) -> None:
    """Return the sums of a rule that has none."""
    return


class RuleKernels(NamedTuple):
    """How a rule steps.

    Attributes:
        options: the row of a group in the options table: floats, ``[OPTIONS]``.
        prepare: given whether there is a gradient scaler, the kernel that advances the tensors'
            steps and writes their rows, with the arguments of `prepare_kernel`.
        passes: given a bucket, whether there is a gradient scaler and whether the GPU has
            approximate units, the launches that follow, in order.
        scratch: given the tensors of a bucket, its number of programs and the device, buffers for
            its kernels.
        bucket: given a parameter, its gradient, its codecs, its group's options, and what part it
            is of a parameter whose other parts matter, the bucket; ``None`` where the kernels
            cannot take it. That must be the same on all processes that have parts.
        sums: given a launch, what its first passes add to, which is zero before them; ``None``
            where there is nothing.
    """

    options: Callable[[Mapping[str, Any]], list[float]]
    prepare: Callable[[bool], KernelLaunch]
    passes: Callable[[Bucket, bool, bool], list[Pass]]
    scratch: Callable[[Sequence[FusedTensor], int, torch.device], tuple[Tensor, ...]] = no_scratch
    bucket: Callable[..., Bucket | None] = bucket_of
    sums: Callable[[Launch], Sums | None] = no_sums


def step_constants(bucket: Bucket, *, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return the compile-time parameters of step kernels for a bucket: all those of AdamW's."""
    return {
        "P": TYPES[bucket.param_dtype],
        "G": TYPES[bucket.grad_dtype],
        "M": first_moment(bucket.first),
        "V": None if bucket.second is None else second_moment(bucket.second),
        "WHOLE": bucket.whole,
        "SKIP": bucket.skip,
        "ROUND": bucket.round,
        "FACTOR": scaler or bucket.maximize,
        "FAST": fast,
        "HAS_SCALER": scaler,
        "RAGGED": bucket.ragged,
        "ALIGNED": bucket.aligned,
        "BLOCK": bucket.block,
        "TILE_BLOCKS": bucket.tile_blocks,
        "TILES": bucket.tuning.tiles,
        "LANE": bucket.tuning.lane,
    }


def whole_passes(bucket: Bucket, constants: Mapping[str, Any]) -> tuple[Pass, Pass]:
    """Return what goes before and after coding where one scale is for a whole tensor.

    Args:
        bucket: such a bucket.
        constants: compile-time parameters, those of `step_constants` among them.
    """
    maxima = {name: constants[name] for name in maxima_kernel.arg_names if name in constants}
    finish = {
        "M": constants["M"],
        "V": constants["V"],
        "SKIP": bucket.skip,
        "LANES": TENSORS_PER_PROGRAM,
    }
    return (
        Pass(KernelLaunch(maxima_kernel, maxima, num_warps=bucket.tuning.warps)),
        Pass(KernelLaunch(finish_kernel, finish), by_tensor),
    )


def adamw_passes(bucket: Bucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return the passes of AdamW: see `elementwise_passes`."""
    return elementwise_passes(adamw_moments, adamw_update, bucket, scaler, fast)


def elementwise_passes(
    moments: Any, update: Any, bucket: Bucket, scaler: bool, fast: bool
) -> list[Pass]:
    """Return one pass, or three where one scale is for a whole tensor.

    Args:
        moments: the rule's device function of new moments.
        update: that of the update.
        bucket: the tensors' bucket.
        scaler: whether there is a gradient scaler.
        fast: whether the GPU has approximate units.
    """
    constants = {
        **step_constants(bucket, scaler=scaler, fast=fast),
        "MOMENTS": moments,
        "UPDATE": update,
    }
    limits = {"maxnreg": bucket.tuning.registers} if fast else {}
    step = Pass(KernelLaunch(step_kernel, constants, num_warps=bucket.tuning.warps, **limits))
    if not bucket.whole:
        return [step]
    maxima, finish = whole_passes(bucket, constants)
    return [maxima, step, finish]


def adamw_prepare(scaler: bool) -> KernelLaunch:
    """Return the preparation of an AdamW step."""
    return KernelLaunch(prepare_kernel, {"HAS_SCALER": scaler, "LANES": TENSORS_PER_PROGRAM})


ADAMW = RuleKernels(option_row, adamw_prepare, adamw_passes)
