"""Which tensors a fused step takes, in which buckets, and the device tables that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import FP32, BlockGrid, Codec, Luma16M, Luma16V
from luma_core.codecs.loggrid import LogGridCodec

WIDTH = 14
"""Columns of the pointer table; `tables.py` names them."""

LANE = 8
"""Neighbouring elements per thread: 16 bytes of codes."""

ALIGNMENT_BYTES = 16
_LARGEST_BLOCK = 1024
_SMALLEST_BLOCK = 16

StateTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Tuning:
    """A launch configuration. One warp per program keeps reductions and loops free of barriers.

    Attributes:
        tile_elements: elements stepped at once.
        tiles: tiles that a program steps one after the other, to amortise reading its tables.
        registers: bound on registers per thread, which sets how many warps share a processor.
    """

    tile_elements: int
    tiles: int
    registers: int


_WIDE = Tuning(tile_elements=512, tiles=4, registers=128)
_NARROW = Tuning(tile_elements=256, tiles=32, registers=64)


@dataclass(frozen=True)
class Bucket:
    """What the tensors of one launch have in common: the kernel's compile-time parameters.

    Attributes:
        param_dtype: dtype of the parameters.
        grad_dtype: dtype of the gradients.
        first: codec of the first moment; `second` that of the second.
        ragged: whether rows end within a block, so that blocks are addressed row by row.
        aligned: whether all pointers are multiples of ``ALIGNMENT_BYTES``.
        skip: whether blocks with non-finite moments are left untouched.
        round: whether bfloat16 parameters are rounded stochastically.
        maximize: whether gradients are negated.
    """

    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    first: Codec
    second: Codec
    ragged: bool
    aligned: bool
    skip: bool
    round: bool
    maximize: bool

    @property
    def scaled(self) -> bool:
        """Whether the codecs keep block exponents."""
        return isinstance(self.first, LogGridCodec)

    @property
    def whole(self) -> bool:
        """Whether one block holds a whole tensor, so that a step takes two passes."""
        return self.first.block_size is None

    @property
    def block(self) -> int:
        """Elements per block, or per reduction where one block holds the whole tensor."""
        return self.first.block_size or 128

    @property
    def tile_blocks(self) -> int:
        """Blocks of a program's tile."""
        return max(1, self.tuning.tile_elements // self.block)

    @property
    def tuning(self) -> Tuning:
        """The launch configuration measured fastest for these types."""
        return _WIDE if self.param_dtype == torch.float32 else _NARROW

    def programs(self, grid: BlockGrid) -> int:
        """Return the number of tiles of a tensor."""
        blocks = -(-grid.numel // self.block)
        if self.ragged:
            blocks = grid.rows * grid.blocks_per_row
        return -(-blocks // (self.tile_blocks * self.tuning.tiles))


@dataclass(frozen=True)
class FusedTensor:
    """One parameter of a fused step with all its tensors."""

    param: Tensor
    grad: Tensor
    state: StateTensors
    group: int
    grid: BlockGrid
    bucket: Bucket


def bucket_of(
    param: Tensor, grad: Tensor, codecs: Mapping[str, Codec], options: Mapping[str, Any]
) -> Bucket | None:
    """Return the bucket of a parameter, or ``None`` where the kernels cannot take it."""
    first, second = codecs["exp_avg"], codecs["exp_avg_sq"]
    supported = (
        (isinstance(first, Luma16M) and isinstance(second, Luma16V))
        or (isinstance(first, FP32) and isinstance(second, FP32))
    ) and first.block_size == second.block_size
    if isinstance(first, LogGridCodec) and isinstance(second, LogGridCodec):
        supported = supported and first.octaves == second.octaves
    block = first.block_size
    if block is not None:
        in_range = _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK
        supported = supported and in_range and block & (block - 1) == 0
    if not supported or not param.is_contiguous() or not grad.is_contiguous():
        return None
    grid = BlockGrid.of(param.shape, block)
    pointers = (param.data_ptr(), grad.data_ptr())
    return Bucket(
        param_dtype=param.dtype,
        grad_dtype=grad.dtype,
        first=first,
        second=second,
        ragged=block is not None and not grid.flat and grid.cols % block != 0,
        aligned=all(pointer % ALIGNMENT_BYTES == 0 for pointer in pointers),
        skip=options["nonfinite"] != "propagate",
        round=options["stochastic_rounding"],
        maximize=options["maximize"],
    )


@dataclass(frozen=True)
class Launch:
    """One bucket's part of the tables.

    Attributes:
        bucket: the compile-time parameters.
        first_tensor: its first row of the pointer table.
        tensors: its rows.
        owner: int32 ``[programs]``, the table row of each program.
    """

    bucket: Bucket
    first_tensor: int
    tensors: int
    owner: Tensor


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Plan:
    """The device tables of a fused step over a list of tensors."""

    def __init__(self, tensors: Sequence[FusedTensor], device: torch.device) -> None:
        order: dict[Bucket, list[FusedTensor]] = {}
        for tensor in tensors:
            order.setdefault(tensor.bucket, []).append(tensor)
        self.device = device
        self.tensors = [tensor for part in order.values() for tensor in part]
        self.launches: list[Launch] = []
        self._staging: list[Tensor] = []
        rows: list[list[int]] = []
        for bucket, part in order.items():
            counts = [bucket.programs(tensor.grid) for tensor in part]
            indices = torch.arange(len(rows), len(rows) + len(part), dtype=torch.int32)
            owner = torch.repeat_interleave(indices, torch.tensor(counts))
            self.launches.append(Launch(bucket, len(rows), len(part), self.upload(owner)))
            first = 0
            for tensor, count in zip(part, counts, strict=True):
                rows.append(_row(tensor, first))
                first += count
        self._table = torch.tensor(rows, dtype=torch.int64).view(-1, WIDTH)
        self.table = self.upload(self._table)
        count = len(self.tensors)
        self.rows = torch.zeros(count, 16, dtype=torch.int32, device=device)
        self.maxima = torch.zeros(count, 2, dtype=torch.int32, device=device)

    def upload(self, host: Tensor) -> Tensor:
        """Copy a host tensor to the device without waiting for it."""
        if self.device.type != "cuda":
            return host.clone()
        pinned = host.pin_memory()
        if is_capturing(self.device):
            self._staging.append(pinned)  # a graph copies from it at every replay
        return pinned.to(self.device, non_blocking=True)


def _row(tensor: FusedTensor, first_program: int) -> list[int]:
    state = tensor.state
    scaled = tensor.bucket.scaled
    field = "codes" if scaled else "value"
    return [
        tensor.param.data_ptr(),
        tensor.grad.data_ptr(),
        state[f"exp_avg.{field}"].data_ptr(),
        state["exp_avg.exponent"].data_ptr() if scaled else 0,
        state[f"exp_avg_sq.{field}"].data_ptr(),
        state["exp_avg_sq.exponent"].data_ptr() if scaled else 0,
        state["nonfinite"].data_ptr(),
        state["step"].data_ptr(),
        tensor.grid.numel,
        first_program,
        int(state["noise_key"]),
        tensor.group,
        max(tensor.grid.cols, 1),
        max(tensor.grid.blocks_per_row, 1),
    ]


def option_row(options: Mapping[str, Any]) -> list[float]:
    """Return a group's row of the options table; `prepare_kernel` names its columns."""
    beta1, beta2 = options["betas"]
    lr = options["lr"]
    on_device = isinstance(lr, Tensor) and lr.is_cuda
    return [
        0.0 if on_device else float(lr),
        math.log(beta1) if beta1 else -math.inf,
        math.log(beta2) if beta2 else -math.inf,
        beta1,
        beta2,
        float(options["eps"]),
        float(options["weight_decay"]),
        -1.0 if options["maximize"] else 1.0,
    ]


def lr_pointer(options: Mapping[str, Any]) -> int:
    """Return the device address of a group's lr, or 0 where it is a host number."""
    lr = options["lr"]
    return lr.data_ptr() if isinstance(lr, Tensor) and lr.is_cuda else 0
