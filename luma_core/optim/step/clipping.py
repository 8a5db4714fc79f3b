"""The bound on the norm of all gradients together, without a host synchronisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from luma_core.backends.native import native_cpu
from luma_core.codecs import BlockGrid
from luma_core.rules.norms import DIGITS, square_digits


class GradientClip:
    """The norm of all gradients of a step together, and the factors that bound it.

    Args:
        square_sums: of every gradient or of several together, float64 0-d, on any devices; with
            more than one device among them, adding up waits for those.

    Attributes:
        norm: float64 0-d, on the device of the first.
    """

    def __init__(self, square_sums: Iterable[Tensor]) -> None:
        total: Tensor | None = None
        for part in square_sums:
            total = part if total is None else total + part.to(total.device)
        self.norm = (
            torch.zeros((), dtype=torch.float64, device="cpu") if total is None else total.sqrt()
        )

    def factor(self, max_grad_norm: float | None, device: torch.device) -> Tensor | None:
        """Return what gradients are multiplied by: 1, or less where their norm is above the bound.

        Args:
            max_grad_norm: the bound; ``None`` for none.
            device: where the result lives.

        Returns:
            float32 0-d, or ``None`` without a bound.
        """
        if max_grad_norm is None:
            return None
        return (max_grad_norm / self.norm).clamp(max=1.0).to(device, torch.float32)


def gradient_square_digits(grad: Tensor) -> Tensor:
    """Return the sum of a gradient's squares: by the native library, or tile by tile.

    Elements whose square is not finite in float32 do not count: what becomes of them is for the
    option ``nonfinite`` to say, and other gradients are not scaled by them.

    Args:
        grad: float tensor of any shape.

    Returns:
        int64 ``[DIGITS]`` on its device; see `norms.total`.
    """
    cpu = native_cpu() if grad.device.type == "cpu" else None
    found: Tensor | None = None if cpu is None else cpu.square_digits(grad)
    if found is not None:
        return found
    digits = torch.zeros(DIGITS, dtype=torch.int64, device=grad.device)
    grid = BlockGrid.of(grad.shape, 128)
    for tile in grid.tiles():
        digits += square_digits(tile.read(grad).float(), flat=grid.flat)
    return digits
