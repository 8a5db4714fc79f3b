"""Launches of the Adam-mini step where segments lie in one piece each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    BlockGrid,
    Codec,
    Luma16M,
    Partition,
    SegmentMean,
)
from luma_kernels.triton.runtime.configuration import first_moment
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import (
    ALIGNMENT_BYTES,
    Bucket,
    FusedTensor,
    Launch,
    Plan,
    Tuning,
)
from luma_kernels.triton.schedules.one_pass_launch import (
    TYPES,
    Pass,
    by_program,
)
from luma_kernels.triton.schedules.segments import mini_kernel

_MOST_RUNS = 8
_LONGEST_SEGMENT = 1 << 22
"""One program takes a segment alone, so a longer one would hold up the step."""

_LARGEST_TILE = 2048
_SMALLEST_TILE = 256
_ELEMENTS_PER_WARP = 512
_REGISTERS = 128
SPAN = 4096
"""Elements that make it worth while for a program to read its tables."""

BLOCK = 128
"""Elements per scale of first moments that have scales."""

_EVEN = 16


@dataclass(frozen=True)
class MiniBucket(Bucket):
    """A bucket of tensors that are cut into segments of neighbouring elements.

    Attributes:
        second: codec of the second moment, with the partition: each tensor has its own.
        runs: number of runs of a partition.
        tile: elements stepped at once.
        single: whether a tile holds any segment.
        full: whether tiles fill segments exactly.
        even: whether segments are multiples of 16 elements.
        grouped: whether positions are whole lanes: see `square_sums`.
    """

    second: Codec = field(compare=False)
    runs: int
    tile: int
    single: bool
    full: bool
    even: bool
    grouped: bool

    @property
    def scaled(self) -> bool:
        """Whether the first moment has block exponents."""
        return isinstance(self.first, Luma16M | FP8E4M3)

    @property
    def tuning(self) -> Tuning:
        """The launch configuration."""
        return tuning_of(self.tile)

    def programs(self, grid: BlockGrid) -> int:
        """Return the number of programs of this bucket's own tensor."""
        partition = _partition(self)
        return partition.outer * sum(_programs_by_run(partition))


def _partition(bucket: Bucket) -> Partition:
    assert isinstance(bucket.second, SegmentMean)
    return bucket.second.partition


def _lengths(partition: Partition) -> list[int]:
    """Return the elements of a segment, by run."""
    return [size * partition.inner for _, size in partition.runs]


def _programs_by_run(partition: Partition) -> list[int]:
    """Return the programs of each run of one index of ``outer``."""
    each = [max(SPAN // length, 1) for length in _lengths(partition)]
    return [-(-count // n) for (count, _), n in zip(partition.runs, each, strict=True)]


def tuning_of(tile: int) -> Tuning:
    """Return the launch configuration of kernels that step ``tile`` elements at once."""
    warps = max(1, tile // _ELEMENTS_PER_WARP)
    return Tuning(tile_elements=tile, tiles=1, registers=_REGISTERS, warps=warps)


def tile_of(lengths: Sequence[int]) -> int:
    """Return the elements to step at once: as wide as the shortest segment, within bounds."""
    return min(max(1 << (min(lengths) - 1).bit_length(), _SMALLEST_TILE), _LARGEST_TILE)


def first_moment_fits(codec: Codec, shape: Sequence[int], lengths: Sequence[int]) -> bool:
    """Return whether there are functions for a first moment, and blocks fill all of ``lengths``."""
    if isinstance(codec, FP8E4M3 | Luma16M):
        cols = codec.grid(tuple(shape)).cols
        full = all(length % BLOCK == 0 for length in (cols, *lengths))
        return codec.block_size == BLOCK and full
    return isinstance(codec, FP32 | BF16)


def common_fields(
    param: Tensor, grad: Tensor, codecs: Mapping[str, Codec], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a bucket has of a parameter however it is cut into segments."""
    return {
        "param_dtype": param.dtype,
        "grad_dtype": grad.dtype,
        "first": codecs["exp_avg"],
        "second": codecs["exp_avg_sq"],
        "ragged": False,
        "aligned": all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in (param, grad)),
        "skip": options["nonfinite"] != "propagate",
        "round": options["stochastic_rounding"],
        "maximize": options["maximize"],
    }


def mini_bucket_of(
    param: Tensor, grad: Tensor, codecs: Mapping[str, Codec], options: Mapping[str, Any]
) -> MiniBucket | None:
    """Return the bucket of a parameter, or ``None`` where the kernel cannot take it."""
    first, second = codecs["exp_avg"], codecs["exp_avg_sq"]
    if not isinstance(second, SegmentMean):
        return None
    partition = second.partition
    lengths = _lengths(partition)
    supported = (
        first_moment_fits(first, param.shape, lengths)
        and partition.reduce == 1
        and 0 < len(partition.runs) <= _MOST_RUNS
        and all(0 < length <= _LONGEST_SEGMENT for length in lengths)
        and param.is_contiguous()
        and grad.is_contiguous()
        and param.device == grad.device
    )
    if not supported:
        return None
    tile = tile_of(lengths)
    return MiniBucket(
        **common_fields(param, grad, codecs, options),
        runs=len(lengths),
        tile=tile,
        single=max(lengths) <= tile,
        full=all(length % tile == 0 for length in lengths),
        even=all(length % _EVEN == 0 for length in lengths),
        grouped=partition.inner % tuning_of(tile).lane == 0,
    )


def mini_constants(bucket: MiniBucket, *, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return all compile-time parameters of `mini_kernel` for a bucket."""
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
        "BLOCK": BLOCK,
        "TILE_BLOCKS": bucket.tile // BLOCK,
        "LANE": bucket.tuning.lane,
        "RUNS": bucket.runs,
        "SINGLE": bucket.single,
        "FULL": bucket.full,
        "EVEN": bucket.even,
        "GROUPED": bucket.grouped,
        "SPAN": SPAN,
    }


def mini_scratch(tensors: Sequence[FusedTensor], device: torch.device) -> tuple[Tensor, ...]:
    """Return ``runs`` of `segments.py` for the tensors of a bucket."""
    table = [_runs(_partition(tensor.bucket)) for tensor in tensors]
    return (torch.tensor(table, dtype=torch.int64, device="cpu").to(device),)


def _runs(cut: Partition) -> list[list[int]]:
    by_run = _programs_by_run(cut)
    rows = [[sum(by_run), cut.length * cut.inner, cut.segments_per_outer, 0]]
    program = element = segment = 0
    for (count, _), length, own in zip(cut.runs, _lengths(cut), by_run, strict=True):
        rows.append([program, element, segment, length])
        program, element, segment = program + own, element + count * length, segment + count
    return rows


def mini_passes(bucket: MiniBucket, scaler: bool, fast: bool) -> list[Pass]:
    """Return the one pass of a bucket."""
    constants = mini_constants(bucket, scaler=scaler, fast=fast)
    limits = {"maxnreg": bucket.tuning.registers} if fast else {}
    launch = KernelLaunch(mini_kernel, constants, num_warps=bucket.tuning.warps, **limits)
    return [Pass(launch, _by_program)]


def _by_program(plan: Plan, part: Launch) -> tuple[Any, ...]:
    return *by_program(plan, part), *part.scratch, part.first_tensor
