"""What saving and loading state needs of an optimizer."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from luma_core.optim.step.contracts import Steppable
from luma_core.state import GroupOptions, ParameterState

if TYPE_CHECKING:
    from luma_core.optim.offload.offloader import Offloader
    from luma_core.optim.state_io.entries import StateDevices


class StateOwner(Steppable, Protocol):
    """An optimizer whose state is saved or loaded."""

    @property
    def algorithm(self) -> str:
        """Name of the optimizer's algorithm."""
        ...

    @property
    def named(self) -> bool:
        """Whether parameters were given with names, so that state is matched by name."""
        ...

    @property
    def state(self) -> MutableMapping[Tensor, dict[str, Tensor]]:
        """The state of parameters that have any."""
        ...

    @property
    def offloader(self) -> Offloader | None:
        """Where state lives that is not beside its parameter."""
        ...

    def parameter_names(self) -> list[str]:
        """Return the parameters' names, group by group; ``param.<i>`` where none were given."""
        ...

    def parameter_state(self, name: str) -> ParameterState:
        """Return one parameter's state; its tensors are references, not copies."""
        ...

    def parameter_states(self) -> list[ParameterState]:
        """Return the state of every parameter, group by group."""
        ...

    def group_options(self) -> list[GroupOptions]:
        """Return the options of each parameter group."""
        ...

    def state_devices(self, param: Tensor) -> StateDevices:
        """Return where a parameter's state is to be."""
        ...

    def forget_names(self) -> None:
        """Look up parameters' names anew, as is done where groups change."""
        ...
