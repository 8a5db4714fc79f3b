"""What goes on between a step's kernels: sums are cleared, and added up over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from luma_core.rules import collective

if TYPE_CHECKING:
    from luma_kernels.triton.runtime.plan import FusedTensor, Groups


class Sums(NamedTuple):
    """What the first passes of a launch add up, for its tensors one after the other.

    Attributes:
        values: contiguous, int64 or float64.
        sizes: numbers of each tensor.
    """

    values: Tensor
    sizes: Sequence[int]


class Call:
    """A function in the place of a `KernelLaunch`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __call__(self) -> None:
        """Call it."""
        self._function()

    def repeated(self) -> Callable[[], Any]:
        """Return it."""
        return self._function


def clearing(sums: Sequence[Sums]) -> Callable[[], None]:
    """Return a function that sets sums to zero."""
    buffers = [part.values for part in sums]

    def clear() -> None:
        for buffer in buffers:
            buffer.zero_()

    return clear


def adding(sums: Sequence[tuple[Sums, Sequence[FusedTensor]]]) -> Callable[[], None] | None:
    """Return a function that replaces sums of parts by those of whole parameters.

    It takes one collective for all tensors that are cut over the same processes; ``None`` where
    none is cut.

    Args:
        sums: with the tensors that they are of.
    """
    found = [
        (tensor, values)
        for part, tensors in sums
        for tensor, values in zip(
            tensors, part.values.view(-1).split(list(part.sizes)), strict=True
        )
        if tensor.groups
    ]
    batches: dict[tuple[Groups, torch.dtype], list[Tensor]] = {}
    # In an order that is the same on all processes, as that of buckets need not be.
    for tensor, values in sorted(found, key=lambda item: item[0].place):
        batches.setdefault((tensor.groups, values.dtype), []).append(values)

    def add() -> None:
        for (groups, _), pieces in batches.items():
            together = torch.cat(pieces)
            for group in groups:
                collective.all_reduce(together, "sum", group)
            whole = together.split([piece.numel() for piece in pieces])
            torch._foreach_copy_(pieces, list(whole))

    return add if batches else None
