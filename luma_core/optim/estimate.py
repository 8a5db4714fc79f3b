"""How much memory an optimizer's state will take, without taking it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luma_core.optim.base import CompressedOptimizer


@dataclass(frozen=True)
class StateEstimate:
    """What the state of a model's parameters takes.

    Attributes:
        elements: numbers in all parameters.
        state_bytes: of all tensors of the state, counters among them.
        state_bytes_by_parameter: the same by the parameter's name.
    """

    elements: int
    state_bytes: int
    state_bytes_by_parameter: Mapping[str, int]

    @property
    def bits_per_parameter(self) -> float:
        """Bits of state for each number; 0 where there are none."""
        return 8 * self.state_bytes / self.elements if self.elements else 0.0


def estimate_state(
    parameters: Iterable[tuple[str, tuple[int, ...] | Tensor]],
    optimizer: type[CompressedOptimizer],
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> StateEstimate:
    """Return what an optimizer's state will take.

    The optimizer is built over parameters without memory (device ``meta``), and its tensors are
    counted: there is no formula beside it that could differ.

    Args:
        parameters: names with shapes, or with tensors, of which shape and dtype count.
        optimizer: its class.
        dtype: of parameters that are given as shapes.
        options: of the optimizer, as its constructor takes them.

    Raises:
        ConfigurationError: the optimizer refuses parameters or options.
    """
    named = [(name, _without_memory(value, dtype)) for name, value in parameters]
    made = optimizer(named, **options)
    made.init_state()
    sizes = {name: _nbytes(made.state[param].values()) for name, param in named}
    return StateEstimate(
        elements=sum(param.numel() for _, param in named),
        state_bytes=sum(sizes.values()),
        state_bytes_by_parameter=sizes,
    )


def _without_memory(value: tuple[int, ...] | Tensor, dtype: torch.dtype) -> nn.Parameter:
    shape, kind = (value.shape, value.dtype) if isinstance(value, Tensor) else (value, dtype)
    grad = kind.is_floating_point or kind.is_complex
    return nn.Parameter(torch.empty(shape, dtype=kind, device="meta"), requires_grad=grad)


def _nbytes(values: Iterable[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
