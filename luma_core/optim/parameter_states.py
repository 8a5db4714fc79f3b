"""An optimizer's parameters by their names, and the state of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec, parameter_codecs
from luma_core.errors import ConfigurationError
from luma_core.optim.offload import Offloader
from luma_core.optim.options import KNOWN_OPTIONS, flattened_error
from luma_core.optim.state_io.entries import StateDevices
from luma_core.optim.state_io.saved_groups import group_names
from luma_core.rules import Rule
from luma_core.sharding import local_tensor, part_of, state_of_part
from luma_core.state import GroupOptions, ParameterState, field_key
from luma_core.values import has_values, mode_of


class ParameterStates(torch.optim.Optimizer):
    """Finds an optimizer's parameters by their names; makes and describes the state of each.

    Attributes:
        offloader: where state lives that is not beside its parameter, if any does.
    """

    rule: ClassVar[Rule]
    elementwise: ClassVar[bool] = True
    """Whether it may take a parameter for any run of its elements, as those of FSDP1 are."""
    offloader: Offloader | None
    _shapes: set[tuple[int, ...]]

    def state_devices(self, param: Tensor) -> StateDevices:
        """Return where the state of a parameter is kept."""
        here = local_tensor(param).device
        if self.offloader is None or here.type == "meta" or not self.offloader.takes(param):
            return StateDevices(here, here)
        return StateDevices(self.offloader.counter_device(param), torch.device("cpu"))

    def forget_names(self) -> None:
        """Look up parameters' names anew, as is done where groups change."""
        self._by_name: dict[str, tuple[str, Tensor, dict[str, Any]]] = {}
        self._names: dict[Tensor, str] = {}
        self._indices: dict[int, int] = {}

    def _index_of(self, group: dict[str, Any]) -> int:
        """Return the index of a group, in one look-up however many groups there are."""
        index = self._indices.get(id(group), len(self.param_groups))
        if index >= len(self.param_groups) or self.param_groups[index] is not group:
            self._indices = {id(item): i for i, item in enumerate(self.param_groups)}
        return self._indices[id(group)]

    def _settle(self) -> None:
        """Wait until state that is offloaded may be read."""
        if self.offloader is not None:
            self.offloader.settle()

    def codecs(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Codec]:
        """Return the codec of each moment of a parameter of a group."""
        name = self._name_of(param) if "parameter_codecs" in group else ""
        return parameter_codecs(group, name, param.shape)

    def _name_of(self, param: Tensor) -> str:
        if param not in self._names:
            self._names = {item[1]: item[0] for item in self.parameters_by_name()}
        return self._names[param]

    def state_of(self, name: str, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a parameter's state, created if there is none yet."""
        state: dict[str, Tensor] = self.state[param]
        if state:
            return state
        if not self.elementwise and tuple(param.shape) not in self._shapes:
            raise flattened_error(name, type(self).__name__)
        with mode_of(param):
            state.update(self._new_state(name, param, group))
        return state

    def _new_state(
        self, name: str, param: Tensor, group: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        key = rounding.parameter_key(group["seed"], name)
        part, devices = part_of(param), self.state_devices(param)
        yield "step", torch.zeros((), dtype=torch.int64, device=devices.counters)
        yield "noise_key", torch.tensor(key, dtype=torch.int64, device="cpu")
        yield "nonfinite", torch.zeros((), dtype=torch.int64, device=devices.counters)
        for moment, codec in self.codecs(param, group).items():
            if part is not None:
                fields = state_of_part(part, codec, devices.stored)
            elif self.offloader is not None and self.offloader.takes(param) and has_values(param):
                fields = self.offloader.new_fields(codec, param.shape)
            else:
                fields = codec.init(param.shape, devices.stored)
            for field, tensor in fields.items():
                yield field_key(moment, field), tensor

    @property
    def named(self) -> bool:
        """Whether parameters were given with names, so that state is matched by name."""
        return all(group_names(group) is not None for group in self.param_groups)

    def parameters_by_name(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yield every parameter with its name and group, group by group."""
        index = 0
        for group in self.param_groups:
            names = group_names(group)
            for position, param in enumerate(group["params"]):
                yield names[position] if names else f"param.{index}", param, group
                index += 1

    def parameter_names(self) -> list[str]:
        """Return the parameters' names, group by group; ``param.<i>`` where none were given."""
        return [name for name, _, _ in self.parameters_by_name()]

    def parameter_state(self, name: str) -> ParameterState:
        """Return one parameter's state; its tensors are references, not copies.

        Raises:
            KeyError: no parameter has that name.
        """
        if name not in self._by_name:
            self._by_name = {item[0]: item for item in self.parameters_by_name()}
        return self._state_of(*self._by_name[name])

    def parameter_states(self) -> list[ParameterState]:
        """Return every parameter's state, group by group; tensors are references."""
        return [self._state_of(*item) for item in self.parameters_by_name()]

    def _state_of(self, name: str, param: Tensor, group: dict[str, Any]) -> ParameterState:
        head = ParameterState(
            name=name,
            shape=tuple(param.shape),
            dtype=str(param.dtype).removeprefix("torch."),
            group=self._index_of(group),
        )
        state = self.state.get(param)
        if not state:
            return head
        if not has_values(state["step"]):
            raise ConfigurationError(
                f"the state of {name!r} has no values: the parameter is on 'meta' or fake.",
                hint="optimizer.state[p] and state_dict() have its shapes and dtypes.",
            )
        self._settle()
        codecs = self.codecs(param, group)
        return replace(
            head,
            step=int(state["step"]),
            noise_key=int(state["noise_key"]),
            nonfinite=int(state["nonfinite"]),
            codecs=codecs,
            fields={
                field_key(moment, key): state[field_key(moment, key)]
                for moment, codec in codecs.items()
                for key in codec.layout(param.shape)
            },
        )

    def group_options(self) -> list[GroupOptions]:
        """Return each group's options, without its parameters; those of ours as JSON values."""
        return [
            {
                key: _plain(key, value)
                for key, value in group.items()
                if key not in ("params", "param_names")
            }
            for group in self.param_groups
        ]


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    if key in KNOWN_OPTIONS and isinstance(value, np.generic):
        return value.item()
    if key in KNOWN_OPTIONS and isinstance(value, tuple | list):
        return [_plain(key, item) for item in value]
    return value
