"""The states of an optimizer or of a checkpoint, to be loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luma_core.errors import StateMismatchError
from luma_core.optim.state_io.owner import StateOwner
from luma_core.optim.state_io.saved_options import (
    SAME_RULE,
    check_saved_groups,
    find_algorithm,
    has_same_rule_and_codecs,
)
from luma_core.optim.state_io.sources import OwnParameter, Source
from luma_core.state import ParameterState

_GENERATED = re.compile(r"param\.\d+")


class StatesSource(Source):
    """The states of an optimizer of this project, or of a checkpoint.

    Args:
        optimizer: that is to take them.
        groups: options of the groups that they come from.
        states: one for each parameter.
        algorithm: of the optimizer that they come from; found from its options by default.
        named: whether names are the parameters' own; found from them by default.
        where: what messages call the place that they come from.

    Raises:
        StateMismatchError: the options are no optimizer's of this project, or a state is of a
            group that is not there.
    """

    def __init__(
        self,
        optimizer: StateOwner,
        groups: Sequence[Mapping[str, Any]],
        states: Sequence[ParameterState],
        *,
        algorithm: str | None = None,
        named: bool | None = None,
        where: str = "",
    ) -> None:
        for state in states:
            if not 0 <= state.group < len(groups):
                raise StateMismatchError(
                    f"{state.name!r} is of the saved group {state.group}; "
                    f"the state has {len(groups)} groups, counted from 0."
                )
        check_saved_groups(groups, optimizer)
        names = [state.name for state in states]
        if named is None:
            named = not all(map(_GENERATED.fullmatch, names))
        if algorithm is None:
            algorithm = find_algorithm(groups, optimizer)
        elif algorithm in SAME_RULE and has_same_rule_and_codecs(groups, optimizer):
            algorithm = optimizer.algorithm
        super().__init__(algorithm, groups, names, [s.group for s in states], named=named)
        self.where = where
        self._states = states

    def has_state(self, index: int) -> bool:
        return bool(self._states[index].codecs)

    def fits(self, index: int, own: OwnParameter) -> bool:
        return self._states[index].shape == tuple(own[1].shape)

    def state(self, index: int, own: OwnParameter) -> ParameterState:
        return self._states[index]
