"""Launches of the Adam-mini step where a parameter is cut and positions are runs of elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luma_core.codecs import BlockGrid, Codec, SegmentMean
from luma_core.sharding import Part
from luma_kernels.triton.runtime.configuration import first_moment
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import Launch, Plan, Tuning
from luma_kernels.triton.schedules.one_pass_launch import TYPES, Pass, by_program
from luma_kernels.triton.schedules.positions import (
    PositionBucket,
    means_pass,
    of_kernel,
    position_options,
)
from luma_kernels.triton.schedules.rows import row_sums_kernel, row_update_kernel
from luma_kernels.triton.schedules.segments_launch import (
    BLOCK,
    SPAN,
    common_fields,
    first_moment_fits,
    tile_of,
    tuning_of,
)

_SHORTEST_POSITION = 16
_LONGEST_POSITION = 1 << 22


@dataclass(frozen=True)
class RowBucket(PositionBucket):
    """A bucket of tensors that are cut between positions.

    Attributes:
        tile: elements stepped at once.
        full: whether tiles fill positions exactly.
    """

    tile: int
    full: bool

    @property
    def tuning(self) -> Tuning:
        """The launch configuration."""
        return tuning_of(self.tile)

    def programs(self, grid: BlockGrid) -> int:
        """Return the number of programs of this bucket's own tensor."""
        inner = self.partition.inner
        return -(-(grid.numel // inner) // max(SPAN // inner, 1))


def row_bucket_of(
    param: Tensor,
    grad: Tensor,
    codecs: Mapping[str, Codec],
    options: Mapping[str, Any],
    part: Part,
) -> RowBucket | None:
    """Return the bucket of a parameter, or ``None`` where these kernels cannot take it."""
    first, second = codecs["exp_avg"], codecs["exp_avg_sq"]
    if not isinstance(second, SegmentMean):
        return None
    cut = second.partition
    found = position_options(cut, cut.inner)
    fits = cut.reduce == 1 and _SHORTEST_POSITION <= cut.inner <= _LONGEST_POSITION
    fits = fits and math.prod(part.shape[1:]) % cut.inner == 0
    fits = fits and first_moment_fits(first, part.shape, [cut.inner])
    contiguous = param.is_contiguous() and grad.is_contiguous() and param.device == grad.device
    if found is None or not fits or not contiguous:
        return None
    tile = tile_of([cut.inner])
    return RowBucket(
        **common_fields(param, grad, codecs, options),
        here=cut,
        start=part.first_index // cut.inner,
        cut=True,
        **found,
        tile=tile,
        full=cut.inner % tile == 0,
    )


def row_constants(bucket: RowBucket, *, scaler: bool) -> dict[str, Any]:
    """Return the compile-time parameters of the kernels for a bucket."""
    return {
        "M": first_moment(bucket.first),
        "P": TYPES[bucket.param_dtype],
        "G": TYPES[bucket.grad_dtype],
        "SKIP": bucket.skip,
        "ROUND": bucket.round,
        "FACTOR": scaler or bucket.maximize,
        "HAS_SCALER": scaler,
        "ALIGNED": bucket.aligned,
        "EVEN": bucket.even,
        "GROUPED": bucket.partition.inner % bucket.tuning.lane == 0,
        "FULL": bucket.full,
        "BLOCK": BLOCK,
        "TILE_BLOCKS": bucket.tile // BLOCK,
        "LANE": bucket.tuning.lane,
        "RUNS": bucket.runs,
        "SPAN": SPAN,
    }


def row_passes(bucket: RowBucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return three passes: sums of squares, second moments, and all else."""
    constants = row_constants(bucket, scaler=scaler)
    limits = {"maxnreg": bucket.tuning.registers} if fast else {}
    sums, update = (
        KernelLaunch(kernel, of_kernel(kernel, constants), num_warps=bucket.tuning.warps, **limits)
        for kernel in (row_sums_kernel, row_update_kernel)
    )
    return [
        Pass(sums, _sums),
        means_pass(bucket, scaler=scaler, fast=fast),
        Pass(update, _update, after_sums=True),
    ]


def _sums(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, _, sums, *_ = part.scratch
    return *by_program(plan, part)[:-1], cuts, sums, part.first_tensor


def _update(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, _, _, rates, _ = part.scratch
    return *by_program(plan, part)[:-1], cuts, rates, part.first_tensor
