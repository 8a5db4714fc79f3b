"""Finds what a step works on: parameters with gradients, checked, as local tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luma_core.backends.registry import check_codecs_of_backend, check_device
from luma_core.codecs import Codec
from luma_core.errors import (
    BackendUnavailableError,
    StateMismatchError,
    UnsupportedParameterError,
)
from luma_core.optim.options import check_gradient
from luma_core.optim.step.contracts import Steppable
from luma_core.optim.step.stepped_parameter import SteppedParameter
from luma_core.sharding import Part, is_sharded, local_tensor, part_of, used_fields
from luma_core.state import field_key
from luma_core.values import has_values


class LocalTensors:
    """Plain tensors that stand for the local parts of DTensors, and hold their gradients.

    They are the same objects from step to step as long as the memory is the same. Their gradients
    are contiguous, or copied: whether a part's is differs between processes, and what they do
    together must not.

    Attributes:
        copied: whether a gradient was copied since the last `follow`.
    """

    def __init__(self) -> None:
        self._aliases: dict[Tensor, Tensor] = {}
        self.copied = False

    def of(self, param: Tensor) -> Tensor:
        """Return the parameter itself, or a tensor that stands for its part, with its gradient."""
        if not is_sharded(param):
            return param
        local, alias = local_tensor(param), self._aliases.get(param)
        if alias is None or not _same_memory(alias, local):
            alias = self._aliases[param] = local.detach()
        grad = None if param.grad is None else local_tensor(param.grad)
        if grad is not None and grad.layout is torch.strided and not grad.is_contiguous():
            grad, self.copied = grad.contiguous(), True
        alias.grad = grad
        return alias

    def follow(self) -> None:
        """Bring the gradients up to date."""
        self.copied = False
        for param in self._aliases:
            self.of(param)

    def release(self) -> None:
        """Forget the gradients, so that their memory is free when the parameters drop them."""
        for alias in self._aliases.values():
            alias.grad = None

    def clear(self) -> None:
        """Forget everything."""
        self._aliases.clear()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        has_values(a)
        and has_values(b)
        and a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )


def collect(optimizer: Steppable, tensors: LocalTensors) -> list[SteppedParameter]:
    """Return all parameters that have gradients, checked, with state.

    Raises:
        UnsupportedGradientError: a gradient is sparse or complex, or of a parameter of a kind that
            cannot be stepped.
        UnsupportedParameterError: a parameter whose second moment is a mean over segments is cut
            along another dimension than 0 and 1.
        BackendUnavailableError: the backend was asked for by name and cannot step a parameter.
        StateMismatchError: a parameter's state is for another shape.
    """
    found = [item for item in optimizer.parameters_by_name() if item[1].grad is not None]
    for name, param, _ in found:
        assert param.grad is not None
        check_gradient(name, param, param.grad)
        check_device(optimizer.backend, name, _step_device(optimizer, param))
    indices = {id(group): index for index, group in enumerate(optimizer.param_groups)}
    stepped = []
    for name, param, group in found:
        codecs, rule = optimizer.codecs(param, group), optimizer.rule.for_group(group)
        check_codecs_of_backend(optimizer.backend, rule, name, codecs)
        part = part_of(param)
        _check_cut(name, codecs, part)
        state = optimizer.state_of(name, param, group)
        _check_shapes(name, param, state, codecs, part)
        index = indices[id(group)]
        here = local_state(state, codecs, part)
        item = SteppedParameter(name, tensors.of(param), rule, group, index, here, codecs, part)
        _check_native(optimizer, item)
        stepped.append(item)
    return stepped


def _step_device(optimizer: Steppable, param: Tensor) -> torch.device:
    """Return where a parameter is stepped."""
    offloader = optimizer.offloader
    if offloader is not None and offloader.mode == "cpu-step" and offloader.takes(param):
        return torch.device("cpu")
    return param.device


def _check_cut(name: str, codecs: Mapping[str, Codec], part: Part | None) -> None:
    """Refuse what would be stepped with the means of other elements."""
    deep = [] if part is None else sorted(set(part.cut) - {0, 1})
    if deep and not all(codec.tiled for codec in codecs.values()):
        raise UnsupportedParameterError(
            f"{name!r} is cut along dimension {deep[0]}; a parameter whose second moment is a mean "
            "over segments must be cut along dimensions 0 and 1 only.",
            hint="Shard it along dimension 0 or 1, or use LUMA or TurboAdam.",
        )


def _check_native(optimizer: Steppable, stepped: SteppedParameter) -> None:
    if optimizer.backend != "native" or stepped.part is None:
        return
    if stepped.part.row_stride is not None or not stepped.independent:
        raise BackendUnavailableError(
            f"backend='native' cannot step {stepped.name!r}: it does not serve the way in which it "
            f"is sharded ({', '.join(map(repr, stepped.part.placements))}).",
            hint="Use backend='auto', which takes PyTorch's slower path for it.",
        )


def local_state(
    state: Mapping[str, Tensor], codecs: Mapping[str, Codec], part: Part | None
) -> Mapping[str, Tensor]:
    """Return a parameter's state with local tensors for DTensors."""
    if part is None:
        return state
    found = dict(state)
    for moment, codec in codecs.items():
        fields = {key: state[field_key(moment, key)] for key in part.fields(codec)}
        for key, value in used_fields(part, codec, fields).items():
            found[field_key(moment, key)] = value
    return found


def _check_shapes(
    name: str,
    param: Tensor,
    state: Mapping[str, Tensor],
    codecs: Mapping[str, Codec],
    part: Part | None,
) -> None:
    for moment, codec in codecs.items():
        if part is None:
            specs = codec.layout(param.shape)
        else:
            specs = {key: place.spec for key, place in part.fields(codec).items()}
        for key, spec in specs.items():
            found = tuple(state[field_key(moment, key)].shape)
            if found != spec.shape:
                raise StateMismatchError(
                    f"{name!r}: its state {field_key(moment, key)!r} has shape {list(found)}, but "
                    f"a parameter of shape {list(param.shape)} needs {list(spec.shape)}.",
                    hint="The parameter changed its shape: drop its state with "
                    "optimizer.state.pop(param), or build a new optimizer.",
                )
