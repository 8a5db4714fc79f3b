"""Launches of the Adam-mini step where segments are columns of transposed layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from luma_core.codecs import BF16, FP32, BlockGrid, Codec, Partition, SegmentMean
from luma_core.sharding import Part
from luma_kernels.triton.runtime.configuration import first_moment
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import Launch, Plan
from luma_kernels.triton.schedules.columns import (
    column_parts_kernel,
    column_sums_kernel,
    column_update_kernel,
)
from luma_kernels.triton.schedules.one_pass_launch import TYPES, Pass, by_program
from luma_kernels.triton.schedules.positions import (
    PositionBucket,
    chunks,
    means_pass,
    of_kernel,
    position_options,
)
from luma_kernels.triton.schedules.segments_launch import common_fields

_BLOCK = 128
_CHUNK_ROWS = 64
_TILE_ROWS = 4
_LANE = 8


@dataclass(frozen=True)
class ColumnBucket(PositionBucket):
    """A bucket of tensors whose segments are columns; their first moments have no scales."""

    def programs(self, grid: BlockGrid) -> int:
        """Return the number of programs of this bucket's own tensor."""
        return self.here.outer * chunks(self.here) * -(-self.here.length // _BLOCK)


def column_bucket_of(
    param: Tensor,
    grad: Tensor,
    codecs: Mapping[str, Codec],
    options: Mapping[str, Any],
    part: Part | None = None,
) -> ColumnBucket | None:
    """Return the bucket of a parameter, or ``None`` where these kernels cannot take it.

    ``part`` is what it is of a parameter that is cut.
    """
    first, second = codecs["exp_avg"], codecs["exp_avg_sq"]
    if not isinstance(second, SegmentMean) or not isinstance(first, FP32 | BF16):
        return None
    cut = second.partition
    found = position_options(cut, cut.length)
    here = cut if part is None else _rows_of(cut, part)
    contiguous = param.is_contiguous() and grad.is_contiguous() and param.device == grad.device
    if cut.inner != 1 or found is None or here is None or not contiguous:
        return None
    return ColumnBucket(
        **common_fields(param, grad, codecs, options),
        here=here,
        start=0 if part is None else part.first_index // (cut.reduce * cut.length),
        cut=part is not None,
        **found,
    )


def _rows_of(cut: Partition, part: Part) -> Partition | None:
    """Return what a part has of a partition; ``None`` where parts may have pieces of rows."""
    row, elements = math.prod(part.shape[1:]), math.prod(part.local_shape)
    if cut.outer == 1 and row % cut.length == 0:
        return replace(cut, reduce=elements // cut.length)
    plane = cut.reduce * cut.length
    return replace(cut, outer=elements // plane) if row % plane == 0 else None


def column_constants(bucket: ColumnBucket, *, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return the compile-time parameters of the kernels for a bucket."""
    return {
        "M": first_moment(bucket.first),
        "P": TYPES[bucket.param_dtype],
        "G": TYPES[bucket.grad_dtype],
        "SKIP": bucket.skip,
        "ROUND": bucket.round,
        "FACTOR": scaler or bucket.maximize,
        "FAST": fast,
        "HAS_SCALER": scaler,
        "ALIGNED": bucket.aligned,
        "EVEN": bucket.even,
        "BLOCK": _BLOCK,
        "TILE_ROWS": _TILE_ROWS,
        "LANE": _LANE,
        "RUNS": bucket.runs,
        "CHUNK": _CHUNK_ROWS,
    }


def column_passes(bucket: ColumnBucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return three passes, or one more of tensors that are cut.

    They are sums of squares, sums of those of parts, second moments, and all else.
    """
    constants = column_constants(bucket, scaler=scaler, fast=fast)
    sums, parts, update = (
        KernelLaunch(kernel, of_kernel(kernel, constants), num_warps=1)
        for kernel in (column_sums_kernel, column_parts_kernel, column_update_kernel)
    )
    return [
        Pass(sums, _sums),
        *([Pass(parts, _parts)] if bucket.cut else []),
        means_pass(bucket, scaler=scaler, fast=fast),
        Pass(update, _update, after_sums=True),
    ]


def _sums(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, partials, *_ = part.scratch
    return *by_program(plan, part)[:-1], cuts, partials, part.first_tensor


def _parts(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, partials, sums, *_ = part.scratch
    return *by_program(plan, part)[:-1], cuts, partials, sums, part.first_tensor


def _update(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, _, _, rates, _ = part.scratch
    return *by_program(plan, part)[:-1], cuts, rates, part.first_tensor
