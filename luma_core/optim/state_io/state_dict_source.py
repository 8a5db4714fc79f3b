"""A state dict of an optimizer of this project, to be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from luma_core.codecs import Codec, parameter_codecs
from luma_core.errors import StateMismatchError
from luma_core.optim.state_io.entries import (
    StateDevices,
    check_entry,
    check_entry_kind,
    copy_entry,
    entry_fits,
    expected_fields,
    stored_fields,
)
from luma_core.optim.state_io.owner import StateOwner
from luma_core.optim.state_io.saved_groups import (
    group_names,
    members_of,
    saved_names,
    under_own_names,
)
from luma_core.optim.state_io.saved_options import check_saved_groups, find_algorithm
from luma_core.optim.state_io.sources import OwnParameter, Source
from luma_core.state import ParameterState


class StateDictSource(Source):
    """What ``state_dict()`` of an optimizer of this project returned.

    Args:
        optimizer: that is to take it.
        state_dict: with parts that `check_parts` has checked.

    Raises:
        StateMismatchError: the options are no optimizer's of this project.
    """

    def __init__(self, optimizer: StateOwner, state_dict: Mapping[str, Any]) -> None:
        groups = _with_empty(state_dict["param_groups"], optimizer)
        check_saved_groups(groups, optimizer)
        if optimizer.named:
            _check_name_counts(groups, optimizer.param_groups)
        names, named = saved_names(groups, "state")
        super().__init__(
            find_algorithm(groups, optimizer), groups, names, members_of(groups), named=named
        )
        keys = (key for group in groups for key in group["params"])
        self._entries = [state_dict["state"].get(key) for key in keys]

    def has_state(self, index: int) -> bool:
        entry = self._entries[index]
        if entry is not None:
            check_entry_kind(self.names[index], entry)
        return bool(entry)

    def fits(self, index: int, own: OwnParameter) -> bool:
        name, param, _ = own
        options, entry = self._options(index, name), self._entries[index]
        return not entry or entry_fits(name, param, options, entry)

    def codecs(self, index: int, own: OwnParameter) -> Mapping[str, Codec]:
        name, param, _ = own
        return parameter_codecs(self._options(index, name), name, param.shape)

    def entry(
        self, index: int, own: OwnParameter, options: Mapping[str, Any], devices: StateDevices
    ) -> dict[str, Tensor] | None:
        if not self.has_state(index):
            return None
        name, param, _ = own
        saved = self._options(index, name)
        check_entry(name, param, saved, self._entries[index])
        if self.codecs(index, own) != parameter_codecs(options, name, param.shape):
            return super().entry(index, own, options, devices)
        return copy_entry(name, param, options, self._entries[index], devices)

    def state(self, index: int, own: OwnParameter) -> ParameterState:
        name, param, _ = own
        entry = self._entries[index]
        return ParameterState(
            name=name,
            shape=tuple(param.shape),
            dtype=str(param.dtype).removeprefix("torch."),
            group=self.members[index],
            step=int(entry["step"]),
            noise_key=int(entry["noise_key"]),
            nonfinite=int(entry["nonfinite"]),
            codecs=self.codecs(index, own),
            fields=stored_fields(expected_fields(name, param, self._options(index, name)), entry),
        )

    def _options(self, index: int, name: str) -> Mapping[str, Any]:
        """Return the saved options of a parameter, with those of itself under its name here."""
        saved = self.groups[self.members[index]]
        return under_own_names(saved, {self.names[index]: name})


def _with_empty(
    groups: Sequence[Mapping[str, Any]], optimizer: StateOwner
) -> list[Mapping[str, Any]]:
    """Return saved groups with those options that are empty mappings in the optimizer's.

    Where PyTorch flattens a state dict, those are lost. Groups with other second moments are of
    another optimizer, which may not have them.
    """
    own = optimizer.param_groups
    return [
        {**{key: {} for key, value in here.items() if value == {}}, **group}
        if here is not None and _second(group) == _second(here)
        else group
        for group, here in zip_longest(groups, own[: len(groups)])
    ]


def _second(group: Mapping[str, Any]) -> object:
    codecs = group.get("codecs")
    config = codecs.get("exp_avg_sq") if isinstance(codecs, Mapping) else None
    return config.get("name") if isinstance(config, Mapping) else None


def _check_name_counts(
    groups: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]
) -> None:
    for index, (group, here) in enumerate(zip(groups, own, strict=False)):
        if "param_names" in group and group_names(group) is None:
            pairs = zip_longest(group["param_names"], here["param_names"])
            name, expected = next((pair for pair in pairs if None in pair), (None, None))
            raise StateMismatchError(
                f"saved parameter group {index} has {name!r} where the optimizer has "
                f"{expected!r}: it has {len(group['param_names'])} 'param_names' for "
                f"{len(group['params'])} parameters."
            )
