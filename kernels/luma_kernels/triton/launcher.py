"""Launches the fused step of all tensors of an optimizer on one GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from luma_core.codecs import BlockGrid, Codec
from luma_core.codecs.loggrid import LogGridCodec
from luma_kernels.triton import codecs as device_codecs
from luma_kernels.triton.adamw import finish_kernel, maxima_kernel, step_kernel
from luma_kernels.triton.plan import (
    LANE,
    Bucket,
    FusedTensor,
    Launch,
    Plan,
    bucket_of,
    is_capturing,
    lr_pointer,
    option_row,
)
from luma_kernels.triton.tables import prepare_kernel

_LANES = 128
_WARPS = 1
_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

Item = tuple[Tensor, Mapping[str, Tensor], Mapping[str, Codec], int]
"""Parameter, its state, its codecs, and the index of its group."""


class FusedStep:
    """The fused step of one optimizer on one device.

    Its tables name tensors by address: whoever calls `launch` has made sure that the tensors
    given to `build` are still the ones to step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._plan: Plan | None = None
        self._option_rows: list[list[float]] = []
        self._lr_pointers: list[int] = []
        self._captured: list[Any] = []

    def build(self, items: Sequence[Item], groups: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Build the tables over ``items``; return which of them the kernels take."""
        tensors = []
        taken = []
        for param, state, codecs, group in items:
            assert param.grad is not None
            bucket = bucket_of(param, param.grad, codecs, groups[group])
            taken.append(bucket is not None)
            if bucket is not None:
                grid = BlockGrid.of(param.shape, codecs["exp_avg"].block_size)
                tensors.append(FusedTensor(param, param.grad, state, group, grid, bucket))
        with self._current():
            self._plan = Plan(tensors, self.device)
        self._option_rows = []
        return taken

    def launch(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Take the step of every tensor in the tables, on their device's current stream."""
        plan = self._plan
        if plan is None or not plan.tensors:
            return
        with self._current():
            self._launch(plan, groups, self._here(grad_scale), self._here(found_inf))
        # Writing through pointers, unlike PyTorch's own operations, is not seen by autograd.
        torch.autograd.graph.increment_version([tensor.param for tensor in plan.tensors])

    def _current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _here(self, scalar: Tensor | None) -> Tensor | None:
        return None if scalar is None else scalar.to(self.device, non_blocking=True)

    def _launch(
        self,
        plan: Plan,
        groups: Sequence[Mapping[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        self._upload_options(plan, groups)
        if is_capturing(self.device):
            # The graph may be replayed as long as the optimizer lives, and reads these.
            self._captured.append((plan, self._options, self._lr_table))
        scaler = found_inf is not None
        count = len(plan.tensors)
        one = torch.ones((), device=self.device) if scaler and grad_scale is None else grad_scale
        prepare_kernel[(triton.cdiv(count, _LANES),)](
            plan.table,
            plan.rows,
            self._options,
            self._lr_table,
            plan.maxima,
            found_inf if scaler else plan.rows,
            one if scaler else plan.rows,
            count,
            HAS_SCALER=scaler,
            LANES=_LANES,
        )
        for launch in plan.launches:
            if launch.owner.numel():
                _launch_bucket(plan, launch, scaler)

    def _upload_options(self, plan: Plan, groups: Sequence[Mapping[str, Any]]) -> None:
        rows = [option_row(group) for group in groups]
        pointers = [lr_pointer(group) for group in groups]
        if rows != self._option_rows or pointers != self._lr_pointers:
            self._option_rows, self._lr_pointers = rows, pointers
            self._options = plan.upload(torch.tensor(rows, dtype=torch.float64))
            self._lr_table = plan.upload(torch.tensor(pointers, dtype=torch.int64))


@cache
def _has_fast_math(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None


def codec_constants(bucket: Bucket) -> dict[str, Any]:
    """Return the compile-time parameters that a bucket's codecs give to the kernels."""
    first = bucket.first
    if isinstance(first, LogGridCodec):
        return {
            "STATE": tl.int16,
            "M_DECODE": device_codecs.luma16_m_decode,
            "M_ENCODE": device_codecs.luma16_m_encode,
            "V_DECODE": device_codecs.luma16_v_decode,
            "V_ENCODE": device_codecs.luma16_v_encode,
            "M_BITS": first.log_grid.mantissa_bits,
            "OCTAVES": first.log_grid.octaves,
            "SCALED": True,
        }
    return {
        "STATE": tl.float32,
        "M_DECODE": device_codecs.plain_decode,
        "M_ENCODE": device_codecs.plain_encode,
        "V_DECODE": device_codecs.plain_decode,
        "V_ENCODE": device_codecs.plain_encode,
        "M_BITS": 10,
        "OCTAVES": 29,
        "SCALED": False,
    }


def step_constants(bucket: Bucket, *, scaler: bool, fast: bool) -> dict[str, Any]:
    """Return all compile-time parameters of `step_kernel` for a bucket."""
    return {
        **codec_constants(bucket),
        "P": _TYPES[bucket.param_dtype],
        "G": _TYPES[bucket.grad_dtype],
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
        "LANE": LANE,
    }


_MAXIMA_CONSTANTS = (
    *("G", "STATE", "M_DECODE", "V_DECODE", "M_BITS", "OCTAVES"),
    *("SCALED", "FACTOR", "HAS_SCALER", "ALIGNED", "BLOCK", "TILE_BLOCKS", "TILES"),
)


def _launch_bucket(plan: Plan, launch: Launch, scaler: bool) -> None:
    constants = step_constants(launch.bucket, scaler=scaler, fast=_has_fast_math(plan.device))
    tables = (plan.table, plan.rows, launch.owner, plan.maxima)
    grid = (launch.owner.numel(),)
    if launch.bucket.whole:
        first_pass = {key: constants[key] for key in _MAXIMA_CONSTANTS}
        maxima_kernel[grid](*tables, **first_pass, num_warps=_WARPS)
    limits = {"maxnreg": launch.bucket.tuning.registers} if constants["FAST"] else {}
    step_kernel[grid](*tables, **constants, num_warps=_WARPS, **limits)
    if launch.bucket.whole:
        finish_kernel[(triton.cdiv(launch.tensors, _LANES),)](
            plan.table,
            plan.rows,
            plan.maxima,
            launch.tensors,
            launch.first_tensor,
            OCTAVES=constants["OCTAVES"],
            SCALED=launch.bucket.scaled,
            SKIP=launch.bucket.skip,
            LANES=_LANES,
        )
