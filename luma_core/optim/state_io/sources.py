"""State that is to be loaded, in one form whatever it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from luma_core.codecs import Codec
from luma_core.optim.state_io.entries import StateDevices, build_entry, check_state
from luma_core.state import ParameterState

OwnParameter = tuple[str, Tensor, dict[str, Any]]
"""Name, parameter and parameter group."""


class Source(ABC):
    """State that is to be loaded.

    Args:
        algorithm: of the optimizer whose state it is; ``ADAMW`` for PyTorch's.
        groups: the options of each of its groups.
        names: of its parameters, group by group.
        members: index of each parameter's group.
        named: whether names are the parameters' own; if not, their positions count.
    """

    where: str = ""
    """What messages call the place that it comes from; empty for memory."""

    def __init__(
        self,
        algorithm: str,
        groups: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        members: Sequence[int],
        *,
        named: bool,
    ) -> None:
        self.algorithm = algorithm
        self.groups = groups
        self.names = names
        self.members = members
        self.named = named

    @property
    def sizes(self) -> list[int]:
        """Number of parameters of each group."""
        sizes = [0] * len(self.groups)
        for index in self.members:
            sizes[index] += 1
        return sizes

    @abstractmethod
    def has_state(self, index: int) -> bool:
        """Return whether a parameter was saved with state."""

    @abstractmethod
    def fits(self, index: int, own: OwnParameter) -> bool:
        """Return whether the state at an index is for the shape of a parameter here."""

    @abstractmethod
    def state(self, index: int, own: OwnParameter) -> ParameterState:
        """Return the state at an index, for the parameter here that takes it."""

    def codecs(self, index: int, own: OwnParameter) -> Mapping[str, Codec]:
        """Return the codec of each moment at an index; empty without state."""
        return self.state(index, own).codecs

    def entry(
        self, index: int, own: OwnParameter, options: Mapping[str, Any], devices: StateDevices
    ) -> dict[str, Tensor] | None:
        """Return a copy of the state at an index, as a parameter keeps it under some options.

        Raises:
            StateMismatchError: it does not fit the parameter.
        """
        name, param, _ = own
        state = self.state(index, own)
        check_state(name, param, state)
        return build_entry(name, param, options, state, devices)
