"""Puts options of a saved group into a group, never through a tensor that others hold too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

_LIVE: WeakSet[torch.optim.Optimizer] = WeakSet()
"""All optimizers of this project that there are."""


def register(optimizer: torch.optim.Optimizer) -> None:
    """Remember an optimizer, whose options may share tensors with those of others."""
    _LIVE.add(optimizer)


def adopt(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Put options, which nobody else holds, into a group.

    Where the group has a tensor of one element, it has one of the same kind afterwards: a new one,
    because others may hold that of now: other groups, the defaults, another optimizer, the caller.
    Under ``capturable`` a tensor that no optimizer holds but here is written in place, so that it
    stays the one that a CUDA graph reads.
    """
    for key, value in options.items():
        current = group.get(key)
        if not (_is_number(current) and isinstance(current, Tensor) and _is_number(value)):
            group[key] = tuple(value) if key == "betas" else value
        elif group.get("capturable") and current.is_floating_point() and _holders(current) == 1:
            current.fill_(value)
        else:
            dtype = current.dtype if current.is_floating_point() else torch.float32
            group[key] = torch.full_like(current, float(value), dtype=dtype)


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holders(tensor: Tensor) -> int:
    """Return how many options of optimizers have a tensor's memory."""
    return sum(_place(value) == _place(tensor) for value in _tensors())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def _tensors() -> Iterator[Tensor]:
    for optimizer in list(_LIVE):
        for options in (optimizer.defaults, *optimizer.param_groups):
            yield from (value for value in options.values() if isinstance(value, Tensor))
