"""State that is to be loaded, in one form whatever it comes from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from luma_core.codecs import Codec, parameter_codecs
from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.optim.options import (
    check_codecs,
    check_options,
    check_parameter_codecs,
)
from luma_core.optim.state_io.entries import (
    StateDevices,
    built_entry,
    check_entry,
    check_entry_kind,
    check_state,
    copied_entry,
    entry_fits,
    expected_fields,
    stored_fields,
)
from luma_core.optim.state_io.owner import StateOwner
from luma_core.rules import Rule
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.registry import algorithm_with
from luma_core.state import GroupOptions, ParameterState

ADAMW = "torch.optim.AdamW"
"""The algorithm of PyTorch's AdamW and Adam."""

SHARED_OPTIONS = ("lr", "betas", "eps", "weight_decay", "maximize")
"""The options that AdamW and its compressed forms share."""

_GENERATED = re.compile(r"param\.\d+")
_REQUIRED_OPTIONS = ("codecs", "min_compress_elements")
_LAMB_OPTIONS = frozenset({"max_grad_norm", "trust_clip", "always_adapt", "bias_correction"})
_LUMA_CODECS = {"exp_avg": "luma16_m", "exp_avg_sq": "luma16_v"}
_SAME_GROUPS = (
    "Group the parameters as when the state was saved; with names on both sides, strict=False "
    "takes them from any groups."
)
_SAME_RULE = ("adamw", "luma", "turbo_adam")
"""The algorithms of `AdamW` and of those that are it with codecs chosen."""

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
        return built_entry(name, param, options, state, devices)


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
        _check_groups(groups, optimizer)
        names = [state.name for state in states]
        if named is None:
            named = not all(map(_GENERATED.fullmatch, names))
        if algorithm is None:
            algorithm = algorithm_of(groups, optimizer)
        elif algorithm in _SAME_RULE and _is_own(groups, optimizer):
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
        _check_groups(groups, optimizer)
        if optimizer.named:
            _check_name_counts(groups, optimizer.param_groups)
        names, named = saved_names(groups, "state")
        super().__init__(
            algorithm_of(groups, optimizer), groups, names, members_of(groups), named=named
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
        return copied_entry(name, param, options, self._entries[index], devices)

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


def group_names(group: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a group's parameters, or ``None`` where it has none for them.

    DeepSpeed's ZeRO leaves names in a group whose parameters it replaces by a flat one.
    """
    names = group.get("param_names")
    return names if names is not None and len(names) == len(group["params"]) else None


def under_own_names(options: Mapping[str, Any], names: Mapping[str, str]) -> GroupOptions:
    """Return a saved group's options with those of single parameters under this side's names."""
    codecs = options.get("parameter_codecs")
    if codecs is None:
        return dict(options)
    own = {names[name]: config for name, config in codecs.items() if name in names}
    return {**options, "parameter_codecs": own}


def members_of(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the index of each parameter's group."""
    return [index for index, group in enumerate(groups) for _ in group["params"]]


def saved_names(
    groups: Sequence[Mapping[str, Any]], what: str, *, keys: bool = False
) -> tuple[list[str], bool]:
    """Return the names of a state dict's parameters, and whether those are their own.

    Args:
        groups: with ``param_names``, or without.
        what: the kind of state, for messages.
        keys: whether ``params`` that are strings are names too.

    Raises:
        StateMismatchError: names are used twice, or are no strings.
    """
    names: list[str] = []
    named = True
    for group in groups:
        found = group_names(group)
        if found is None and keys and all(isinstance(key, str) for key in group["params"]):
            found = group["params"]
        named = named and found is not None
        names += found or [f"param.{len(names) + i}" for i in range(len(group["params"]))]
    if not all(isinstance(name, str) for name in names):
        raise StateMismatchError(f"'param_names' of the {what} must be strings.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise StateMismatchError(
            f"the {what} has other names than the optimizer's: it has {some_names(twice)} twice."
        )
    return names, named


def check_parts(
    state_dict: Mapping[str, Any], what: str, own: Sequence[Mapping[str, Any]] | None
) -> None:
    """Check that a ``state_dict`` of any optimizer of PyTorch's layout has all parts.

    Args:
        state_dict: to check.
        what: the kind of state, for messages.
        own: groups of an optimizer, which it must have as well, each with as many parameters;
            ``None`` if any will do.

    Raises:
        StateMismatchError: a part is missing, groups do not fit, or there is state that none lists.
    """
    for key, kind in (("state", Mapping), ("param_groups", list | tuple)):
        if not isinstance(state_dict.get(key), kind):
            found = f"is a {type(state_dict[key]).__name__}" if key in state_dict else "is missing"
            raise StateMismatchError(
                f"{key!r} of the {what} {found}; a state dict has a mapping 'state' and a list "
                "'param_groups'.",
                hint="Give what an optimizer's state_dict() returned.",
            )
    groups = state_dict["param_groups"]
    if own is not None and len(groups) != len(own):
        raise StateMismatchError(
            f"the {what} has {len(groups)} parameter groups; the optimizer has {len(own)}.",
            hint=_SAME_GROUPS,
        )
    listed: set[Any] = set()
    for index, group in enumerate(groups):
        place = f"parameter group {index} of the {what}"
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
            raise StateMismatchError(f"{place} has no 'params', a list of its parameters' ids.")
        if own is not None and len(group["params"]) != len(own[index]["params"]):
            raise StateMismatchError(
                f"{place} has {len(group['params'])} parameters; "
                f"the optimizer's has {len(own[index]['params'])}.",
                hint=_SAME_GROUPS,
            )
        listed.update(group["params"])
    stray = [str(key) for key in state_dict["state"] if key not in listed]
    if stray:
        raise StateMismatchError(
            f"the {what} has entries for {some_names(stray)}, which no parameter group lists."
        )


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


def _check_groups(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> None:
    """Check that saved options are those of groups of an optimizer of this project."""
    for index, group in enumerate(groups):
        _check_group(index, group, optimizer.rule)


def _check_group(index: int, saved: Mapping[str, Any], rule: Rule) -> None:
    for key in _REQUIRED_OPTIONS:
        if key not in saved:
            raise StateMismatchError(
                f"saved parameter group {index} has no {key!r}: it is not state of this optimizer.",
                hint="Load AdamW state with import_adamw_state().",
            )
    moments = saved["codecs"]
    if isinstance(moments, Mapping) and set(moments) != set(rule.moment_names):
        raise StateMismatchError(
            f"saved parameter group {index} has the moments {', '.join(map(repr, moments))}; this "
            f"optimizer keeps {', '.join(map(repr, rule.moment_names))}.",
            hint="It is state of an optimizer with another update rule.",
        )
    try:
        check_options(saved)
        check_codecs(saved["codecs"], rule.moments)
        check_parameter_codecs(saved.get("parameter_codecs", {}), rule.moment_names)
    except ConfigurationError as error:
        raise StateMismatchError(
            f"saved parameter group {index}: {error.message}", hint=error.hint
        ) from error


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


def _is_own(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> bool:
    """Return whether state of AdamW's rule is in the codecs of an optimizer that has this rule."""
    own = [group["codecs"] for group in optimizer.param_groups]
    return optimizer.algorithm in _SAME_RULE and all(group["codecs"] in own for group in groups)


def algorithm_of(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> str:
    """Return the algorithm whose options some groups have.

    Moments tell rules apart. Options of AdamW, LUMA and TurboAdam are the same, so there codecs
    decide; the optimizer's own codecs are its own state's.
    """
    moments = {moment for group in groups for moment in group["codecs"]}
    if moments != set(MOMENTS):
        return algorithm_with(moments)
    keys = {key for group in groups for key in group}
    if keys & _LAMB_OPTIONS:
        return "lamb"
    if "parameter_codecs" in keys:
        return "adam_mini"
    if _is_own(groups, optimizer):
        return optimizer.algorithm
    kinds = [{moment: c["name"] for moment, c in group["codecs"].items()} for group in groups]
    return "luma" if all(kind == _LUMA_CODECS for kind in kinds) else "turbo_adam"
