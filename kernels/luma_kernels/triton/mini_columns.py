"""Launches of the Adam-mini step where segments are columns of transposed layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import BF16, FP32, BlockGrid, Codec, Partition, SegmentMean
from luma_kernels.triton.adam_mini_columns import (
    column_means_kernel,
    column_sums_kernel,
    column_update_kernel,
)
from luma_kernels.triton.launch import KernelLaunch
from luma_kernels.triton.mini_passes import first_moment_constants
from luma_kernels.triton.passes import TYPES, Pass, by_program
from luma_kernels.triton.plan import ALIGNMENT_BYTES, Bucket, FusedTensor, Launch, Plan

_BLOCK = 128
_CHUNK_ROWS = 64
_TILE_ROWS = 4
_TILE_CHUNKS = 16
_MOST_COLUMNS = 64
_MOST_RUNS = 8
_LANE = 8


@dataclass(frozen=True)
class ColumnBucket(Bucket):
    """A bucket of tensors whose segments are columns.

    Attributes:
        second: codec of the second moment, with the partition: each tensor has its own.
        runs: number of runs of a partition.
        columns: columns that a tile of one segment has.
        even: whether rows are multiples of 16 elements.
    """

    second: Codec = field(compare=False)
    runs: int
    columns: int
    even: bool

    @property
    def scaled(self) -> bool:
        """Whether the first moment has block exponents: it has none here."""
        return False

    @property
    def partition(self) -> Partition:
        """How this bucket's own tensor is cut."""
        assert isinstance(self.second, SegmentMean)
        return self.second.partition

    def programs(self, grid: BlockGrid) -> int:
        """Return the number of programs of this bucket's own tensor."""
        cut = self.partition
        return cut.outer * _chunks(cut) * -(-cut.length // _BLOCK)


def _chunks(cut: Partition) -> int:
    return -(-cut.reduce // _CHUNK_ROWS)


def column_bucket_of(
    param: Tensor, grad: Tensor, codecs: Mapping[str, Codec], options: Mapping[str, Any]
) -> ColumnBucket | None:
    """Return the bucket of a parameter, or ``None`` where these kernels cannot take it."""
    first, second = codecs["exp_avg"], codecs["exp_avg_sq"]
    if not isinstance(second, SegmentMean) or not isinstance(first, FP32 | BF16):
        return None
    cut = second.partition
    fits = cut.inner == 1 and cut.numel > 0 and 0 < len(cut.runs) <= _MOST_RUNS
    contiguous = param.is_contiguous() and grad.is_contiguous() and param.device == grad.device
    if not fits or not contiguous:
        return None
    widest = max(size for _, size in cut.runs)
    return ColumnBucket(
        param_dtype=param.dtype,
        grad_dtype=grad.dtype,
        first=first,
        second=second,
        ragged=False,
        aligned=all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in (param, grad)),
        skip=options["nonfinite"] != "propagate",
        round=options["stochastic_rounding"],
        maximize=options["maximize"],
        runs=len(cut.runs),
        columns=min(1 << (widest - 1).bit_length(), _MOST_COLUMNS),
        even=cut.length % 16 == 0,
    )


def column_scratch(tensors: Sequence[FusedTensor], device: torch.device) -> tuple[Tensor, ...]:
    """Return the buffers of `adam_mini_columns.py`: cuts, partials, rates, owners of segments."""
    cuts = [_partition(tensor.bucket) for tensor in tensors]
    partials = rates = 0
    table = []
    for cut in cuts:
        runs, position, segment = [], 0, 0
        for count, size in cut.runs:
            runs += [position, segment, size]
            position, segment = position + count * size, segment + count
        head = [cut.length, cut.reduce, _chunks(cut), cut.segments_per_outer]
        table.append([*head, partials, rates, rates, *runs])
        partials += cut.outer * _chunks(cut) * cut.length
        rates += cut.segments
    counts = torch.tensor([cut.segments for cut in cuts], dtype=torch.int32)
    return (
        torch.tensor(table, dtype=torch.int64).to(device),
        torch.empty(partials, dtype=torch.float32, device=device),
        torch.empty(rates, dtype=torch.float32, device=device),
        torch.repeat_interleave(counts, output_size=rates).to(device),
    )


def _partition(bucket: Bucket) -> Partition:
    assert isinstance(bucket, ColumnBucket)
    return bucket.partition


def column_constants(bucket: ColumnBucket, *, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return the compile-time parameters of all three kernels for a bucket."""
    return {
        **first_moment_constants(bucket.first),
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
        "TILE_CHUNKS": _TILE_CHUNKS,
        "TILE_COLUMNS": bucket.columns,
    }


def of_kernel(kernel: Any, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``constants`` that a kernel has."""
    return {name: constants[name] for name in kernel.arg_names if name in constants}


def column_passes(bucket: ColumnBucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return three passes: sums of squares, second moments, and all else."""
    constants = column_constants(bucket, scaler=scaler, fast=fast)
    sums, means, update = (
        KernelLaunch(kernel, of_kernel(kernel, constants), num_warps=1)
        for kernel in (column_sums_kernel, column_means_kernel, column_update_kernel)
    )
    return [Pass(sums, _sums), Pass(means, _means), Pass(update, _update)]


def _sums(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, partials, _, _ = part.scratch
    return *by_program(plan, part)[:-1], cuts, partials, part.first_tensor


def _means(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, partials, rates, owner = part.scratch
    tables = plan.table, plan.rows, owner, cuts, partials, rates, part.first_tensor
    return owner.numel(), *tables


def _update(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, _, rates, _ = part.scratch
    return *by_program(plan, part)[:-1], cuts, rates, part.first_tensor
