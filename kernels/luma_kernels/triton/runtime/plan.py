"""Which tensors a fused step takes, in which buckets, and the device tables that say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luma_core.codecs import BlockGrid, Codec
from luma_core.codecs.loggrid import LogGridCodec
from luma_core.codecs.packed import PackedCodec
from luma_kernels.triton.runtime.configuration import first_moment, fits_whole, second_moment

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from luma_core.sharding import Part

Groups = tuple["ProcessGroup", ...]
"""The processes that parts of a parameter are on, by dimension of their mesh."""

WIDTH = 16
"""Columns of the pointer table; `tables.py` names them."""

ROW = 17
"""Numbers of a tensor in a step; `tables.py` names them."""

GRAD = 1
"""The column of the gradients' addresses."""

TENSORS_PER_PROGRAM = 128
"""Tensors that a program of a kernel that works tensor by tensor takes."""

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
        lane: neighbouring elements per thread.
        warps: per program.
    """

    tile_elements: int
    tiles: int
    registers: int
    lane: int = 8
    warps: int = 1


_WIDE = Tuning(tile_elements=512, tiles=4, registers=128)
_NARROW = Tuning(tile_elements=256, tiles=32, registers=64)
_PACKED = Tuning(tile_elements=256, tiles=16, registers=96)


@dataclass(frozen=True)
class Bucket:
    """What the tensors of one launch have in common: the kernel's compile-time parameters.

    Attributes:
        param_dtype: dtype of the parameters.
        grad_dtype: dtype of the gradients.
        first: codec of the first moment; `second` that of the second, ``None`` of rules with one.
        ragged: whether rows end within a block, so that blocks are addressed row by row.
        aligned: whether all pointers are multiples of ``ALIGNMENT_BYTES``.
        skip: whether blocks with non-finite moments are left untouched.
        round: whether bfloat16 parameters are rounded stochastically.
        maximize: whether gradients are negated.
    """

    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    first: Codec
    second: Codec | None
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
        if any(isinstance(codec, PackedCodec) for codec in (self.first, self.second)):
            return _PACKED
        return _WIDE if self.param_dtype == torch.float32 else _NARROW

    def programs(self, grid: BlockGrid) -> int:
        """Return the number of tiles of a tensor."""
        blocks = -(-grid.numel // self.block)
        if self.ragged:
            blocks = grid.rows * grid.blocks_per_row
        return -(-blocks // (self.tile_blocks * self.tuning.tiles))


@dataclass(frozen=True)
class FusedTensor:
    """One parameter of a fused step. Its gradient is held by nobody but the parameter.

    Attributes:
        param: the parameter, or a part of one.
        state: its state.
        group: index of its group.
        grid: its blocks.
        bucket: its launch.
        first_index: index of the first element in the whole parameter; selects the noise.
        groups: the processes that have the other parts, where a step needs something of them.
        place: its place among the tensors of the step, before they are put into buckets.
    """

    param: Tensor
    state: StateTensors
    group: int
    grid: BlockGrid
    bucket: Bucket
    first_index: int = 0
    groups: Groups = ()
    place: int = 0


def bucket_of(
    param: Tensor,
    grad: Tensor,
    codecs: Mapping[str, Codec],
    options: Mapping[str, Any],
    part: Part | None = None,
) -> Bucket | None:
    """Return the bucket of a parameter, or ``None`` where the kernels cannot take it.

    ``part`` is what it is of a parameter that is cut; with one scale for all, kernels take none.
    """
    first, second = codecs["exp_avg"], codecs.get("exp_avg_sq")
    block = first.block_size
    supported = first_moment(first) is not None
    if second is not None:
        supported = supported and block == second.block_size and second_moment(second) is not None
    if block is None:
        supported = supported and fits_whole(first, second) and part is None
    if block is not None:
        in_range = _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK
        supported = supported and in_range and block & (block - 1) == 0
    if not supported or not param.is_contiguous() or not grad.is_contiguous():
        return None
    if param.device != grad.device:
        return None
    grid = BlockGrid.of(param.shape, block)
    return Bucket(
        param_dtype=param.dtype,
        grad_dtype=grad.dtype,
        first=first,
        second=second,
        ragged=block is not None and not grid.flat and grid.cols % block != 0,
        aligned=_is_aligned(param.data_ptr()) and _is_aligned(grad.data_ptr()),
        skip=options["nonfinite"] != "propagate",
        round=options["stochastic_rounding"],
        maximize=options["maximize"],
    )


def _is_aligned(address: int) -> bool:
    return address % ALIGNMENT_BYTES == 0


@dataclass(frozen=True)
class Launch:
    """One bucket's part of the tables.

    Attributes:
        bucket: the compile-time parameters.
        first_tensor: its first row of the pointer table.
        tensors: its rows.
        owner: int32 ``[programs]``, the table row of each program.
        programs: their number.
        scratch: buffers of the rule's kernels.
        members: the tensors; `groups` is that of all of them.
    """

    bucket: Bucket
    first_tensor: int
    tensors: int
    owner: Tensor
    programs: int
    scratch: tuple[Tensor, ...]
    members: Sequence[FusedTensor]

    @property
    def groups(self) -> Groups:
        """The processes that have the other parts of the tensors."""
        return self.members[0].groups


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def no_scratch(
    tensors: Sequence[FusedTensor], programs: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return the buffers of a rule whose kernels need none beside the tables."""
    return ()


class Plan:
    """The device tables of a fused step over a list of tensors.

    Attributes:
        tensors: in the order of the tables' rows, bucket by bucket.
        launches: one for each bucket.
        table: the pointer table: see `tables.py`.
        rows: what each step's preparation writes for the tensors.
        maxima: scratch of two-pass steps.
    """

    def __init__(
        self,
        tensors: Sequence[FusedTensor],
        device: torch.device,
        scratch: Callable[[Sequence[FusedTensor], int, torch.device], tuple[Tensor, ...]],
    ) -> None:
        order: dict[tuple[Bucket, Groups], list[FusedTensor]] = {}
        for tensor in tensors:
            order.setdefault((tensor.bucket, tensor.groups), []).append(tensor)
        self.device = device
        self.tensors = [tensor for part in order.values() for tensor in part]
        self.params = [tensor.param for tensor in self.tensors]
        self._device_indices = [*map(Tensor.get_device, self.params)]
        self._aligned = [tensor.bucket.aligned for tensor in self.tensors]
        self.launches: list[Launch] = []
        self._staging: list[Tensor] = []
        rows: list[list[int]] = []
        for (bucket, _), part in order.items():
            counts = [tensor.bucket.programs(tensor.grid) for tensor in part]
            total = sum(counts)
            repeats = self.upload(torch.tensor(counts, dtype=torch.int32, device="cpu"))
            owner = torch.repeat_interleave(repeats, output_size=total).add_(len(rows))
            buffers = scratch(part, total, device)
            launch = Launch(bucket, len(rows), len(part), owner, total, buffers, part)
            self.launches.append(launch)
            first = 0
            for tensor, count in zip(part, counts, strict=True):
                rows.append(_row(tensor, first))
                first += count
        self._host_table = torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, WIDTH)
        self.table = self.upload(self._host_table)
        count = len(self.tensors)
        self.rows = torch.zeros(count, ROW, dtype=torch.int32, device=device)
        self.maxima = torch.zeros(count, 2, dtype=torch.int32, device=device)

    def follow_gradients(self) -> bool:
        """Enter where the gradients are now; ``False`` where that takes a new plan.

        Everything else about them is as it was when the plan was made.
        """
        found = [param.grad for param in self.params]
        grads = [grad for grad in found if grad is not None]
        if len(grads) < len(found) or [*map(Tensor.get_device, grads)] != self._device_indices:
            return False
        addresses = [*map(Tensor.data_ptr, grads)]
        if any(map(ALIGNMENT_BYTES.__rmod__, compress(addresses, self._aligned))):
            return False
        self._host_table[:, GRAD] = torch.tensor(addresses, dtype=torch.int64, device="cpu")
        # A captured graph may read the old table as long as it lives.
        self.table = self.upload(self._host_table)
        return True

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
    assert tensor.param.grad is not None
    return [
        tensor.param.data_ptr(),
        tensor.param.grad.data_ptr(),
        *_moment_pointers(state, "exp_avg"),
        *_moment_pointers(state, "exp_avg_sq"),
        state["nonfinite"].data_ptr(),
        state["step"].data_ptr(),
        tensor.grid.numel,
        first_program,
        int(state["noise_key"]),
        tensor.group,
        max(tensor.grid.cols, 1),
        max(tensor.grid.blocks_per_row, 1),
        _address(state, "exp_avg_sq.mantissa"),
        tensor.first_index,
    ]


def _moment_pointers(state: StateTensors, moment: str) -> tuple[int, int]:
    """Return the addresses of a moment's values, and of its exponents or scales or 0."""
    values = _address(state, f"{moment}.codes", f"{moment}.value")
    return values, _address(state, f"{moment}.exponent", f"{moment}.scale")


def _address(state: StateTensors, *names: str) -> int:
    """Return the address of the first of the fields that there is, or 0."""
    return next((state[name].data_ptr() for name in names if name in state), 0)


def option_row(options: Mapping[str, Any]) -> list[float]:
    """Return a group's row of the options table; `prepare_kernel` names its columns."""
    beta1, beta2 = map(float, options["betas"])
    return [
        0.0 if lr_pointer(options) else float(options["lr"]),
        math.log(beta1) if beta1 else -math.inf,
        math.log(beta2) if beta2 else -math.inf,
        beta1,
        beta2,
        float(options["eps"]),
        float(options["weight_decay"]),
        -1.0 if options["maximize"] else 1.0,
        0.0,
    ]


def one_moment_option_row(options: Mapping[str, Any]) -> list[float]:
    """Return a group's row of the options table of a rule with one moment and no correction.

    The logarithms of both betas say that nothing is corrected: powers of e to them are 0.
    """
    return [
        *option_row({**options, "betas": (0.0, 0.0), "eps": 0.0})[:3],
        *map(float, options["betas"]),
        0.0,
        float(options["weight_decay"]),
        -1.0 if options["maximize"] else 1.0,
        0.0,
    ]


def lr_pointer(options: Mapping[str, Any]) -> int:
    """Return the device address of a group's lr, or 0 where the host reads it.

    Kernels read float32; what has another dtype is waited for.
    """
    lr = options["lr"]
    on_device = isinstance(lr, Tensor) and lr.is_cuda and lr.dtype == torch.float32
    return lr.data_ptr() if on_device else 0
