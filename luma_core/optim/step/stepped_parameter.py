"""One parameter that takes a step, as local tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec
from luma_core.rules import ParameterStep, Rule, StoredMoment
from luma_core.sharding import Part
from luma_core.state import field_key
from luma_core.values import has_values


class SteppedParameter(NamedTuple):
    """One parameter that takes the step.

    Attributes:
        name: the parameter's name.
        param: the parameter, or the part that this process has, with its gradient.
        rule: the update rule of its group.
        group: its parameter group; `group_index` that group's index.
        state: its state, of local tensors.
        codecs: the codec of each moment.
        part: what part it is; ``None`` of a parameter that is no DTensor.
        start: index of the first element of ``param`` in the part or parameter.
    """

    name: str
    param: Tensor
    rule: Rule
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

    @property
    def independent(self) -> bool:
        """Whether the step needs nothing of other processes."""
        if self.part is None or not self.part.groups:
            return True
        return self.blocked and not self.rule.reduces

    @property
    def fusible(self) -> bool:
        """Whether fused kernels may serve the way in which the parameter is sharded."""
        if self.part is None:
            return True
        if self.part.row_stride is not None:
            return False
        # Kernels take one upper half of indices for a whole part.
        if not self.independent:
            # What processes do together must not depend on which part they have.
            same_device = self.part.mesh.device_type == self.param.device.type
            return (
                same_device and set(self.part.cut) <= {0} and math.prod(self.whole_shape) <= 1 << 32
            )
        last = self.first_index + max(self.param.numel(), 1) - 1
        return not self.first_index or self.first_index >> 32 == last >> 32

    @property
    def shared_part(self) -> Part | None:
        """What part of the parameter this is, where the step needs the others."""
        return None if self.independent else self.part

    @property
    def first_index(self) -> int:
        """Index of the first element in the whole parameter."""
        return self.start + (0 if self.part is None else self.part.first_index)

    @property
    def row_stride(self) -> int | None:
        """Elements of a row of the whole parameter, where rows are cut by sharding."""
        return None if self.part is None else self.part.row_stride

    def parameter_step(self, step: int, grad_factor: Tensor | None) -> ParameterStep:
        """Return what a backend needs.

        Args:
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
            for spec in self.rule.moments
        }
        return ParameterStep(
            param=self.param,
            grad=self.param.grad,
            moments=moments,
            hyper=self.rule.hyper(self.group, step, coarse=self.coarse),
            keys=rounding.step_keys(int(self.state["noise_key"]), step),
            skip_nonfinite=self.group["nonfinite"] != "propagate",
            stochastic_rounding=self.group["stochastic_rounding"],
            grad_factor=grad_factor,
            first_index=self.first_index,
            whole_row=self.row_stride,
            whole_shape=None if self.part is None else self.part.shape,
        )

    @property
    def planned_step(self) -> tuple[ParameterStep, Mapping[str, Tensor], int, bool]:
        """What `Plan.build` takes of a parameter."""
        step = int(self.state["step"]) + 1
        item = self.parameter_step(step, None)
        return item, self.state, self.group_index, self.coarse

    @property
    def shape(self) -> torch.Size:
        """Shape of the local tensor."""
        return self.param.shape

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(self.shape) if self.part is None else self.part.shape
