"""Tells whether the tensors that device tables name by address are still the ones to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, dict[str, Tensor]]

_OPTIONS = ("nonfinite", "stochastic_rounding", "maximize")
"""Options of a group that are compile-time parameters of kernels."""

_address = torch.Tensor.data_ptr


class Change(Enum):
    """What happened since the last look."""

    NOTHING = auto()
    GRADIENTS = auto()
    """Gradients lie elsewhere; there are as many as before, of the same dtypes, all strided."""

    ANYTHING = auto()


class Watch:
    """Remembers all that device tables were built from, and compares it with what is there now.

    It holds the parameters, which keep their identity, and of all other tensors only addresses:
    memory that is replaced is freed at once. So an address may come back with another meaning, and
    dtypes, sizes and strides are compared too. Equal addresses and numbers of elements of dense
    tensors mean the same elements in the same order, whatever their shape.

    A look is taken at every step and costs a few Python operations per tensor, so each attribute is
    read of all tensors in one comprehension.

    Args:
        groups: the optimizer's groups.
        state: its state; every value is a tensor.
    """

    def __init__(self, groups: Groups, state: State) -> None:
        self._params = _params_of(groups)
        self._owners = list(state)
        self._facts, self._gradients = _look(groups, self._params, state)

    def change(self, groups: Groups, state: State) -> Change:
        """Look again, and remember where the gradients are now."""
        params = _params_of(groups)
        if not (_identical(params, self._params) and _identical(list(state), self._owners)):
            return Change.ANYTHING
        try:
            facts, gradients = _look(groups, params, state)
        except RuntimeError:  # a sparse gradient has neither strides nor an address
            return Change.ANYTHING
        if facts != self._facts:
            return Change.ANYTHING
        if gradients == self._gradients:
            return Change.NOTHING
        self._gradients = gradients
        return Change.GRADIENTS


def _params_of(groups: Groups) -> list[Tensor]:
    return [param for group in groups for param in group["params"]]


def _identical(now: list[Tensor], before: list[Tensor]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _look(groups: Groups, params: list[Tensor], state: State) -> tuple[list[Any], list[int]]:
    """Return everything that decides about tables, and beside it the addresses of gradients."""
    gradients = [param.grad for param in params]
    present = [gradient for gradient in gradients if gradient is not None]
    facts = [
        [[len(group["params"]), *map(group.get, _OPTIONS)] for group in groups],
        [gradient is None for gradient in gradients],
        [gradient.dtype for gradient in present],
        [gradient.is_contiguous() for gradient in present],
        [param.dtype for param in params],
        [param.numel() for param in params],
        [param.is_contiguous() for param in params],
        [*map(_address, params)],
        [*map(_address, chain.from_iterable(map(dict.values, state.values())))],
    ]
    return facts, [*map(_address, present)]
