"""What a step needs of an optimizer, of offloaded state, and of what takes parameters together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from luma_core.codecs import Codec
from luma_core.optim.step.clipping import GradientClip
from luma_core.optim.step.stepped_parameter import SteppedParameter
from luma_core.rules import Rule


class Steppable(Protocol):
    """What a step needs of an optimizer."""

    @property
    def backend(self) -> str:
        """The backend that was asked for."""
        ...

    @property
    def rule(self) -> Rule:
        """The update rule; `Rule.for_group` gives that of a group."""
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


class StepPlan(Protocol):
    """Steps parameters together; `ResidentPlan` where their state is on their device."""

    @property
    def keeps(self) -> bool:
        """Whether what `build` found holds for the next step, if no tensor changes."""
        ...

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step."""
        ...

    def build(self, parameters: Sequence[SteppedParameter]) -> None:
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

    def step_plan(self, optimizer: Steppable) -> StepPlan:
        """Return what steps parameters of ``optimizer``, all or one of this one's."""
        ...
