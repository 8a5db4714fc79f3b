"""The bound on the norm of all gradients, for fused steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from luma_core.rules import collective
from luma_kernels.triton.fused.norms import gradient_kernel
from luma_kernels.triton.runtime.exact import DIGITS
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import Bucket, Groups, Plan
from luma_kernels.triton.schedules.one_pass_launch import TYPES
from luma_kernels.triton.schedules.reduce_apply_launch import LambBucket


class FusedClip:
    """Keeps the factors of the groups' gradients where kernels read them.

    Attributes:
        factors: float32 ``[groups]`` on the device, rewritten in place by `update`.
        bounds: float64 ``[groups]`` on the device; what a captured `update` reads.
    """

    def __init__(self) -> None:
        self.factors: Tensor | None = None
        self.bounds: Tensor | None = None
        self._bound_values: list[float] = []
        self._kernels: dict[Bucket, KernelLaunch] = {}
        self._units: Tensor | None = None

    def square_sum(self, plan: Plan) -> Tensor:
        """Return the sum of the finite squares of a plan's gradients, float64 0-d.

        Of parameters that are cut it is that of all parts, for which all processes must call this.
        """
        if not plan.launches:
            return torch.zeros((), dtype=torch.float64, device=plan.device)
        found: dict[Groups, Tensor] = {}
        for part in plan.launches:
            if part.bucket not in self._kernels:
                self._kernels[part.bucket] = _kernel(part.bucket)
            if part.groups not in found:
                found[part.groups] = torch.zeros(
                    DIGITS.value, dtype=torch.int64, device=plan.device
                )
            if part.programs:
                tables = plan.table, plan.rows, part.owner, found[part.groups]
                self._kernels[part.bucket](part.programs, *tables)
        for groups, digits in found.items():
            for group in groups:
                collective.all_reduce(digits, "sum", group)
        if self._units is None:
            self._units = plan.upload(
                torch.exp2(torch.arange(DIGITS.value, device="cpu").double() * 32 - 149)
            )
        return (torch.stack([*found.values()]).sum(dim=0).double() * self._units).sum()

    def update(
        self,
        plan: Plan,
        groups: Sequence[Mapping[str, Any]],
        grad_norm: Tensor,
        grad_scale: Tensor | None,
    ) -> None:
        """Write the factors that bound the norm.

        Args:
            plan: where to.
            groups: with ``max_grad_norm``, or without a bound.
            grad_norm: float64 0-d, of the gradients as they are.
            grad_scale: float32 0-d, what gradients were multiplied by, or ``None`` for 1.
        """
        bounds = [_bound(group) for group in groups]
        if self.factors is None or len(self.factors) != len(bounds):
            self.factors = torch.ones(len(bounds), dtype=torch.float32, device=plan.device)
        if self.bounds is None or bounds != self._bound_values:
            self._bound_values = bounds
            self.bounds = plan.upload(torch.tensor(bounds, dtype=torch.float64, device="cpu"))
        norm = grad_norm if grad_scale is None else grad_norm / grad_scale
        self.factors.copy_((self.bounds / norm).clamp_(max=1.0))

    def pointer(self, index: int, group: Mapping[str, Any]) -> int:
        """Return the address of a group's factor, or 0 where it has no bound."""
        if self.factors is None or _bound(group) == math.inf:
            return 0
        return self.factors.data_ptr() + index * self.factors.element_size()


def _bound(group: Mapping[str, Any]) -> float:
    bound = group.get("max_grad_norm")
    return math.inf if bound is None else bound


def gradient_constants(bucket: Bucket) -> dict[str, tl.dtype | bool | int]:
    """Return the compile-time parameters of `gradient_kernel` for a bucket."""
    return {
        "G": TYPES[bucket.grad_dtype],
        "ALIGNED": bucket.aligned,
        "FLAT": bucket.ragged or not isinstance(bucket, LambBucket) or bucket.flat,
        "BLOCK": bucket.block,
        "TILE_BLOCKS": bucket.tile_blocks,
        "TILES": bucket.tuning.tiles,
        "LANE": bucket.tuning.lane,
    }


def _kernel(bucket: Bucket) -> KernelLaunch:
    return KernelLaunch(gradient_kernel, gradient_constants(bucket), num_warps=bucket.tuning.warps)
