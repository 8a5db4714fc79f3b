"""The Adam-mini step's launches, by how a tensor is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import Codec, SegmentMean
from luma_core.sharding import Part
from luma_kernels.triton.runtime.exchange import Sums
from luma_kernels.triton.runtime.plan import Bucket, FusedTensor, Launch, bucket_of, option_row
from luma_kernels.triton.schedules.columns_launch import (
    ColumnBucket,
    column_bucket_of,
    column_passes,
)
from luma_kernels.triton.schedules.one_pass_launch import (
    Pass,
    RuleKernels,
    adamw_passes,
    adamw_prepare,
)
from luma_kernels.triton.schedules.positions import PositionBucket, position_scratch, position_sums
from luma_kernels.triton.schedules.rows_launch import RowBucket, row_bucket_of, row_passes
from luma_kernels.triton.schedules.segments_launch import (
    MiniBucket,
    mini_bucket_of,
    mini_passes,
    mini_scratch,
)


def segment_bucket_of(
    param: Tensor,
    grad: Tensor,
    codecs: Mapping[str, Codec],
    options: Mapping[str, Any],
    part: Part | None = None,
) -> Bucket | None:
    """Return the bucket of a parameter: AdamW's where it is cut by element."""
    arguments = param, grad, codecs, options
    if not isinstance(codecs["exp_avg_sq"], SegmentMean):
        return bucket_of(*arguments, part)
    if part is None:
        return mini_bucket_of(*arguments) or column_bucket_of(*arguments)
    return row_bucket_of(*arguments, part) or column_bucket_of(*arguments, part)


def segment_scratch(
    tensors: Sequence[FusedTensor], programs: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return the buffers of a bucket's kernels."""
    bucket = tensors[0].bucket
    if isinstance(bucket, MiniBucket):
        return mini_scratch(tensors, device)
    return position_scratch(tensors, device) if isinstance(bucket, PositionBucket) else ()


def segment_sums(part: Launch) -> Sums | None:
    """Return what a launch adds up of parts."""
    return position_sums(part) if isinstance(part.bucket, PositionBucket) else None


def segment_passes(bucket: Bucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return a bucket's launches, in order."""
    if isinstance(bucket, MiniBucket):
        return mini_passes(bucket, scaler, fast)
    if isinstance(bucket, ColumnBucket):
        return column_passes(bucket, scaler, fast)
    if isinstance(bucket, RowBucket):
        return row_passes(bucket, scaler, fast)
    return adamw_passes(bucket, scaler, fast)


ADAM_MINI = RuleKernels(
    option_row, adamw_prepare, segment_passes, segment_scratch, segment_bucket_of, segment_sums
)
