"""Buckets and buffers of Adam-mini's launches that add up squares by position first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import FP8E4M3, Codec, Luma16M, Partition, SegmentMean
from luma_kernels.triton.runtime.exchange import Sums
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import Bucket, FusedTensor, Launch, Plan
from luma_kernels.triton.schedules.columns import column_means_kernel
from luma_kernels.triton.schedules.one_pass_launch import Pass

_MOST_RUNS = 8
_MOST_COLUMNS = 64
_TILE_CHUNKS = 16
_CHUNK_ROWS = 64
_EVEN = 16


@dataclass(frozen=True)
class PositionBucket(Bucket):
    """A bucket of tensors whose second moments follow from sums by position.

    Attributes:
        second: codec of the second moment, with the partition: each tensor has its own.
        here: what of the partition a tensor has: all of it, or fewer rows.
        start: first index of ``outer`` that it has, or first position where those are rows.
        cut: whether other processes have other parts.
        runs: number of runs of a partition.
        columns: positions of a segment that are added up at once.
        even: whether a run of elements that is read at once is a multiple of 16.
    """

    second: Codec = field(compare=False)
    here: Partition = field(compare=False)
    start: int = field(compare=False)
    cut: bool
    runs: int
    columns: int
    even: bool

    @property
    def scaled(self) -> bool:
        """Whether the first moment has block exponents."""
        return isinstance(self.first, Luma16M | FP8E4M3)

    @property
    def partition(self) -> Partition:
        """How this bucket's own tensor is cut into segments, as a whole."""
        assert isinstance(self.second, SegmentMean)
        return self.second.partition


def own_bucket(bucket: Bucket) -> PositionBucket:
    """Return a tensor's bucket, which is one of positions."""
    assert isinstance(bucket, PositionBucket)
    return bucket


def position_options(cut: Partition, width: int) -> dict[str, Any] | None:
    """Return what a bucket has of a partition; ``None`` where these kernels cannot take it.

    Args:
        cut: of the whole tensor.
        width: elements that are read at once.
    """
    if cut.numel == 0 or not 0 < len(cut.runs) <= _MOST_RUNS:
        return None
    widest = max(size for _, size in cut.runs)
    return {
        "runs": len(cut.runs),
        "columns": min(1 << (widest - 1).bit_length(), _MOST_COLUMNS),
        "even": width % _EVEN == 0,
    }


def chunks(cut: Partition) -> int:
    """Return the number of runs of rows."""
    return -(-cut.reduce // _CHUNK_ROWS)


def position_scratch(tensors: Sequence[FusedTensor], device: torch.device) -> tuple[Tensor, ...]:
    """Return the buffers of `columns.py`: cuts, partials, sums, rates, segments' owners.

    There are sums only of tensors that are cut.
    """
    table = []
    partials = sums = rates = 0
    for tensor in tensors:
        bucket = own_bucket(tensor.bucket)
        cut, here = bucket.partition, bucket.here
        runs, position, segment = [], 0, 0
        for count, size in cut.runs:
            runs += [position, segment, size]
            position, segment = position + count * size, segment + count
        head = [cut.length, here.reduce, chunks(here), cut.segments_per_outer]
        elements = cut.reduce * cut.inner
        table.append(
            [*head, partials, rates, rates, elements, sums, bucket.start, cut.inner, *runs]
        )
        partials += here.outer * chunks(here) * cut.length if cut.inner == 1 else 0
        sums += cut.outer * cut.length if bucket.cut else 0
        rates += cut.segments
    counts = torch.tensor([own_bucket(t.bucket).partition.segments for t in tensors], device="cpu")
    return (
        torch.tensor(table, dtype=torch.int64, device="cpu").to(device),
        torch.empty(partials, dtype=torch.float64, device=device),
        torch.zeros(sums, dtype=torch.float64, device=device),
        torch.empty(rates, dtype=torch.float32, device=device),
        torch.repeat_interleave(counts, output_size=rates).to(device, torch.int32),
    )


def position_sums(part: Launch) -> Sums | None:
    """Return the sums of a launch whose tensors are cut."""
    if not own_bucket(part.bucket).cut:
        return None
    cuts = [own_bucket(tensor.bucket).partition for tensor in part.members]
    return Sums(part.scratch[2], [cut.outer * cut.length for cut in cuts])


def means_pass(bucket: PositionBucket, *, scaler: bool, fast: bool) -> Pass:
    """Return the launch that steps the second moments."""
    constants = means_constants(bucket, scaler=scaler, fast=fast)
    kernel = KernelLaunch(column_means_kernel, constants, num_warps=1)
    return Pass(kernel, _means, after_sums=True)


def means_constants(bucket: PositionBucket, *, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return the compile-time parameters of `column_means_kernel`."""
    return {
        "CUT": bucket.cut,
        "SKIP": bucket.skip,
        "FAST": fast,
        "HAS_SCALER": scaler,
        "RUNS": bucket.runs,
        "TILE_CHUNKS": _TILE_CHUNKS,
        "TILE_COLUMNS": bucket.columns,
    }


def _means(plan: Plan, part: Launch) -> tuple[Any, ...]:
    cuts, partials, sums, rates, owner = part.scratch
    source = sums if own_bucket(part.bucket).cut else partials
    return owner.numel(), plan.table, plan.rows, owner, cuts, source, rates, part.first_tensor


def of_kernel(kernel: Any, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``constants`` that a kernel has."""
    return {name: constants[name] for name in kernel.arg_names if name in constants}
