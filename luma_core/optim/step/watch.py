"""Tells whether the tensors that device tables name by address are still the ones to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from luma_core.sharding import is_sharded, local_tensor

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, dict[str, Tensor]]

_OPTIONS = ("nonfinite", "stochastic_rounding", "maximize")
"""Options of a group that are compile-time parameters of kernels."""


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

    Args:
        groups: the optimizer's groups.
        state: its state; every value is a tensor.
    """

    def __init__(self, groups: Groups, state: State) -> None:
        self._params = _params_of(groups)
        self._owners = list(state)
        self._options = _options_of(groups)
        gradients = [param.grad for param in self._params]
        held = [*self._params, *_values_of(state), *(x for x in gradients if x is not None)]
        # Asking every tensor at every step whether it is a DTensor would take as long as the rest.
        self._local = _local if any(map(is_sharded, held)) else list
        params = self._local(self._params)
        self._missing = [gradient is None for gradient in gradients]
        present = self._local([gradient for gradient in gradients if gradient is not None])
        self._metadata = _metadata(params, present)
        self._same_metadata = metadata_comparison([*params, *present])
        self._places = Places([*params, *self._local(_values_of(state))])
        self._gradient_places = Places(present)

    def change(self, groups: Groups, state: State) -> Change:
        """Look again, and remember where the gradients are now."""
        params = _params_of(groups)
        if not (_identical(params, self._params) and _identical(list(state), self._owners)):
            return Change.ANYTHING
        gradients = [param.grad for param in params]
        present = self._local([gradient for gradient in gradients if gradient is not None])
        params = self._local(params)
        try:
            if not (
                self._missing == [gradient is None for gradient in gradients]
                and self._options == _options_of(groups)
                and self._places.hold([*params, *self._local(_values_of(state))])
                and self._has_metadata(params, present)
            ):
                return Change.ANYTHING
            if self._gradient_places.hold(present):
                return Change.NOTHING
            self._gradient_places = Places(present)
        except RuntimeError:  # a sparse gradient has neither strides nor an address
            return Change.ANYTHING
        return Change.GRADIENTS

    def _has_metadata(self, params: list[Tensor], gradients: list[Tensor]) -> bool:
        if self._same_metadata(*params, *gradients):
            return True
        return _metadata(params, gradients) == self._metadata


class Places:
    """The addresses of tensors.

    PyTorch compares them in one call where it is built for CUDA, several times as fast as Python.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._addresses = _addresses_of(tensors)
        self._indices = list(range(len(tensors)))
        self._equal: Any = getattr(torch._C, "_tensors_data_ptrs_at_indices_equal", None)

    def hold(self, tensors: list[Tensor]) -> bool:
        """Return whether there are as many tensors, and all lie where these did."""
        if len(tensors) != len(self._addresses):
            return False
        if self._equal is None:
            return _addresses_of(tensors) == self._addresses
        same: bool = self._equal(tensors, self._addresses, self._indices)
        return same


def metadata_comparison(tensors: list[Tensor]) -> Callable[..., bool]:
    """Return a function of as many tensors that finds the same dtypes, sizes and strides quickly.

    Its ``True`` is certain. It may answer ``False`` of what is the same, and always does where
    PyTorch lacks the guards of compiled functions.
    """
    try:
        from torch._C._dynamo.guards import TensorGuards

        guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    except (ImportError, TypeError, ValueError, RuntimeError, SystemError):
        return _never
    check: Callable[..., bool] = guards.check
    return check


def _never(*_: Tensor) -> bool:
    return False


def _params_of(groups: Groups) -> list[Tensor]:
    return [param for group in groups for param in group["params"]]


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [*map(local_tensor, tensors)]


def _values_of(state: State) -> Iterator[Tensor]:
    return chain.from_iterable(map(dict.values, state.values()))


def _options_of(groups: Groups) -> list[list[Any]]:
    return [[len(group["params"]), *map(group.get, _OPTIONS)] for group in groups]


def _identical(now: list[Tensor], before: list[Tensor]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _addresses_of(tensors: list[Tensor]) -> list[int]:
    return [*map(torch.Tensor.data_ptr, tensors)]


def _metadata(params: list[Tensor], gradients: list[Tensor]) -> list[Any]:
    """Return what decides, beside addresses, whether tables hold."""
    return [
        [gradient.dtype for gradient in gradients],
        [gradient.is_contiguous() for gradient in gradients],
        [param.dtype for param in params],
        [param.numel() for param in params],
        [param.is_contiguous() for param in params],
    ]
