"""What a step works on: parameters with gradients, as local tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.backends.registry import check_codecs_of_backend, check_device
from luma_core.codecs import Codec
from luma_core.errors import (
    BackendUnavailableError,
    StateMismatchError,
    UnsupportedParameterError,
)
from luma_core.optim.options import check_gradient
from luma_core.optim.step.clipping import GradientClip
from luma_core.rules import ParameterStep, Rule, StoredMoment
from luma_core.sharding import Part, is_sharded, local_tensor, part_of, used_fields
from luma_core.state import field_key
from luma_core.values import has_values


class Steppable(Protocol):
    """What a step needs of an optimizer."""

    @property
    def backend(self) -> str:
        """The backend that was asked for."""
        ...

    @property
    def rule(self) -> Rule:
        """The update rule."""
        ...

    @property
    def offloader(self) -> StateElsewhere | None:
        """Where state lives that is not beside its parameter."""
        ...

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups."""
        ...

    @property
    def state(self) -> Mapping[Tensor, dict[str, Tensor]]:
        """The state of parameters that have any."""
        ...

    def parameters_by_name(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yield every parameter with its name and group, group by group."""
        ...

    def codecs(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Codec]:
        """Return the codec of each moment of a parameter of a group."""
        ...

    def state_of(self, name: str, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a parameter's state, created if there is none yet."""
        ...


class StepBatch(Protocol):
    """Parameters that take a step together: `Batch`, or one that brings their state first."""

    @property
    def keeps(self) -> bool:
        """Whether what `build` found holds for the next step, if no tensor changes."""
        ...

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step."""
        ...

    def build(self, work: Sequence[Work]) -> None:
        """Take other parameters, and decide where each goes."""
        ...

    def clear(self) -> None:
        """Forget the parameters."""
        ...

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        ...

    def square_sums(self) -> list[Tensor]:
        """Return sums of squares of the gradients, float64 0-d, which add up to that of all."""
        ...

    def launch(
        self, *, grad_scale: Tensor | None, found_inf: Tensor | None, clip: GradientClip | None
    ) -> None:
        """Take the step."""
        ...


class StateElsewhere(Protocol):
    """What a step needs of state that is not beside its parameter."""

    @property
    def mode(self) -> str:
        """``"host"``, ``"disk"`` or ``"cpu-step"``."""
        ...

    def takes(self, param: Tensor) -> bool:
        """Return whether a parameter's state is kept away from it."""
        ...

    def adopt(self) -> bool:
        """Place state that is not there yet, such as what was loaded; return whether any was."""
        ...

    def batch(self, optimizer: Steppable) -> StepBatch:
        """Return what steps parameters of ``optimizer``, all or one of this one's."""
        ...


class Work(NamedTuple):
    """One parameter that takes the step.

    Attributes:
        name: the parameter's name.
        param: the parameter, or the part that this process has, with its gradient.
        group: its parameter group; `group_index` that group's index.
        state: its state, of local tensors.
        codecs: the codec of each moment.
        part: what part it is; ``None`` of a parameter that is no DTensor.
        start: index of the first element of ``param`` in the part or parameter.
    """

    name: str
    param: Tensor
    group: dict[str, Any]
    group_index: int
    state: Mapping[str, Tensor]
    codecs: Mapping[str, Codec]
    part: Part | None
    start: int = 0

    @property
    def has_values(self) -> bool:
        """Whether there is anything to step: not on ``meta``, nor with fake tensors."""
        return (
            has_values(self.param) and self.param.grad is not None and has_values(self.param.grad)
        )

    @property
    def blocked(self) -> bool:
        """Whether blocks bound the scales, so that an element's step needs no others'."""
        return all(c.block_size is not None and c.tiled for c in self.codecs.values())

    @property
    def coarse(self) -> bool:
        """Whether a moment is stored by a coarse codec."""
        return any(codec.coarse for codec in self.codecs.values())

    def independent(self, rule: Rule) -> bool:
        """Return whether the step needs nothing of other processes."""
        if self.part is None or not self.part.groups:
            return True
        return self.blocked and not rule.reduces

    def fusible(self, rule: Rule) -> bool:
        """Return whether fused kernels may serve the way in which the parameter is sharded."""
        if self.part is None:
            return True
        if self.part.row_stride is not None:
            return False
        # Kernels take one upper half of indices for a whole part.
        if not self.independent(rule):
            # What processes do together must not depend on which part they have.
            same_device = self.part.mesh.device_type == self.param.device.type
            return (
                same_device and set(self.part.cut) <= {0} and math.prod(self.whole_shape) <= 1 << 32
            )
        last = self.first_index + max(self.param.numel(), 1) - 1
        return not self.first_index or self.first_index >> 32 == last >> 32

    def shared_part(self, rule: Rule) -> Part | None:
        """Return what part of the parameter this is, where the step needs the others."""
        return None if self.independent(rule) else self.part

    @property
    def first_index(self) -> int:
        """Index of the first element in the whole parameter."""
        return self.start + (0 if self.part is None else self.part.first_index)

    @property
    def row_stride(self) -> int | None:
        """Elements of a row of the whole parameter, where rows are cut by sharding."""
        return None if self.part is None else self.part.row_stride

    def parameter_step(self, rule: Rule, step: int, grad_factor: Tensor | None) -> ParameterStep:
        """Return what a backend needs.

        Args:
            rule: the update rule.
            step: the step's number, 1 for the first.
            grad_factor: what the gradient is multiplied by; ``None`` for 1.
        """
        assert self.param.grad is not None
        moments = {
            spec.name: StoredMoment(
                codec := self.codecs[spec.name],
                {
                    key: self.state[field_key(spec.name, key)]
                    for key in codec.layout(self.whole_shape if not codec.tiled else self.shape)
                },
            )
            for spec in rule.moments
        }
        return ParameterStep(
            param=self.param,
            grad=self.param.grad,
            moments=moments,
            hyper=rule.hyper(self.group, step, coarse=self.coarse),
            keys=rounding.step_keys(int(self.state["noise_key"]), step),
            skip_nonfinite=self.group["nonfinite"] != "propagate",
            stochastic_rounding=self.group["stochastic_rounding"],
            grad_factor=grad_factor,
            first_index=self.first_index,
            whole_row=self.row_stride,
        )

    def planned_step(self, rule: Rule) -> tuple[ParameterStep, Mapping[str, Tensor], int, bool]:
        """Return what `Plan.build` takes of a parameter."""
        step = int(self.state["step"]) + 1
        item = self.parameter_step(rule, step, None)
        return item, self.state, self.group_index, self.coarse

    @property
    def shape(self) -> torch.Size:
        """Shape of the local tensor."""
        return self.param.shape

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(self.shape) if self.part is None else self.part.shape


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
        """Return the parameter itself, or what stands for its part, with the gradient of now."""
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


def collect(optimizer: Steppable, tensors: LocalTensors) -> list[Work]:
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
    work = []
    for name, param, group in found:
        codecs = optimizer.codecs(param, group)
        check_codecs_of_backend(optimizer.backend, optimizer.rule, name, codecs)
        part = part_of(param)
        _check_cut(name, codecs, part)
        state = optimizer.state_of(name, param, group)
        _check_shapes(name, param, state, codecs, part)
        index = indices[id(group)]
        here = local_state(state, codecs, part)
        item = Work(name, tensors.of(param), group, index, here, codecs, part)
        _check_native(optimizer, item)
        work.append(item)
    return work


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


def _check_native(optimizer: Steppable, work: Work) -> None:
    if optimizer.backend != "native" or work.part is None:
        return
    if work.part.row_stride is not None or not work.independent(optimizer.rule):
        raise BackendUnavailableError(
            f"backend='native' cannot step {work.name!r}: it does not serve the way in which it "
            f"is sharded ({', '.join(map(repr, work.part.placements))}).",
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
