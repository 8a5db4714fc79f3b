"""Puts saved state into an optimizer: everything is checked before anything changes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, zip_longest
from typing import TYPE_CHECKING, Any

from torch import Tensor

from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.optim.entries import (
    StateDevices,
    built_entry,
    check_state,
    checked_entry,
    expected_fields,
)
from luma_core.optim.offload.incoming import Awaited, Incoming
from luma_core.optim.options import (
    ADAMW_KEYWORDS,
    KNOWN_OPTIONS,
    check_codecs,
    check_options,
    check_parameter_codecs,
)
from luma_core.sharding import field_places
from luma_core.state import GroupOptions, ParameterState, field_key

if TYPE_CHECKING:
    from luma_core.optim.base import CompressedOptimizer

_POSITIONAL = re.compile(r"param\.\d+")
_GROUP_IDENTITY = ("params", "param_names")
_REQUIRED_OPTIONS = ("codecs", "min_compress_elements")

OwnParameter = tuple[str, Tensor, dict[str, Any]]
"""Name, parameter and parameter group."""


def load_states(
    optimizer: CompressedOptimizer,
    own: Sequence[OwnParameter],
    groups: Sequence[GroupOptions],
    states: Sequence[ParameterState],
    incoming: Incoming | None = None,
) -> None:
    """Implement `CompressedOptimizer.load_parameter_states`.

    Every field is read and copied before the first is replaced, so that a failure to read one
    leaves the optimizer unchanged. So the old and the new state are both there for a moment: in
    memory, or in files with state on disk.
    """
    matched = _match(own, states)
    for index, saved in enumerate(groups):
        _check_group_options(index, saved, optimizer)
    options = _group_options(optimizer, own, matched, groups)
    chosen = [options[_index(optimizer, group)] for _, _, group in own]
    for (name, param, _), wanted, state in zip(own, chosen, matched, strict=True):
        check_state(name, param, wanted, state)
    if incoming is None:
        stored = [bool(state.codecs) for state in matched]
        incoming = _incoming(optimizer, compress(zip(own, chosen, strict=True), stored))
    loaded = [
        built_entry(name, param, wanted, state, _home(optimizer, param, incoming))
        for (name, param, _), wanted, state in zip(own, chosen, matched, strict=True)
    ]
    _replace(optimizer, own, options, loaded, incoming)


def load_torch_state_dict(
    optimizer: CompressedOptimizer, own: Sequence[OwnParameter], state_dict: Mapping[str, Any]
) -> None:
    """Implement `CompressedOptimizer.load_state_dict`.

    As in `load_states`, the old and the new state are both there for a moment.
    """
    entries, saved_groups, ids = matched_parts(optimizer, state_dict, "state")
    # Where PyTorch flattens a state dict, options that are empty mappings are lost.
    saved_groups = [
        {**{key: {} for key, value in group.items() if value == {}}, **saved}
        for saved, group in zip(saved_groups, optimizer.param_groups, strict=True)
    ]
    for index, (saved, group) in enumerate(zip(saved_groups, optimizer.param_groups, strict=True)):
        _check_group_options(index, saved, optimizer)
        _check_names(index, saved, group)
    names = dict(zip(_saved_names(saved_groups), (name for name, _, _ in own), strict=True))
    saved_groups = [_under_own_names(saved, names) for saved in saved_groups]
    options_of = [saved for saved in saved_groups for _ in saved["params"]]
    stored = [isinstance(found := entries.get(key), Mapping) and bool(found) for key in ids]
    incoming = _incoming(optimizer, compress(zip(own, options_of, strict=True), stored))
    loaded = [
        checked_entry(name, param, options, entries.get(key), _home(optimizer, param, incoming))
        for (name, param, _), options, key in zip(own, options_of, ids, strict=True)
    ]
    options = [
        copy.deepcopy({k: v for k, v in saved.items() if k not in _GROUP_IDENTITY})
        for saved in saved_groups
    ]
    _replace(optimizer, own, options, loaded, incoming)


def incoming_state(
    optimizer: CompressedOptimizer,
    own: Sequence[OwnParameter],
    states: Sequence[tuple[str, ParameterState]],
) -> Incoming | None:
    """Implement `CompressedOptimizer.incoming_state`."""
    offloader = optimizer.offloader
    if offloader is None:
        return None
    params = {name: param for name, param, _ in own}
    return offloader.incoming(
        [
            Awaited(name, field_key(moment, field), place.spec.dtype, place.local_shape)
            for name, state in states
            if offloader.takes(params[name])
            for moment, codec in state.codecs.items()
            for field, place in field_places(params[name], codec).items()
        ]
    )


def _home(optimizer: CompressedOptimizer, param: Tensor, incoming: Incoming | None) -> StateDevices:
    return optimizer.state_devices(param)._replace(incoming=incoming)


def _incoming(
    optimizer: CompressedOptimizer, wanted: Iterable[tuple[OwnParameter, Mapping[str, Any]]]
) -> Incoming | None:
    """Return a new block for the state of parameters, with the options that it is loaded with."""
    offloader = optimizer.offloader
    if offloader is None:
        return None
    return offloader.incoming(
        [
            Awaited(name, key, place.spec.dtype, place.local_shape)
            for (name, param, _), options in wanted
            if offloader.takes(param)
            for key, place in expected_fields(name, param, options).items()
        ]
    )


def matched_parts(
    optimizer: CompressedOptimizer, state_dict: Mapping[str, Any], what: str
) -> tuple[Mapping[Any, Any], Sequence[Mapping[str, Any]], list[Any]]:
    """Return the entries, groups and parameter ids of a ``state_dict`` that fits the optimizer.

    Args:
        optimizer: gives the groups and how many parameters each has.
        state_dict: of any optimizer of PyTorch's layout.
        what: the kind of state, for messages.

    Raises:
        StateMismatchError: a part is missing, or groups or parameters do not fit.
    """
    for key, kind in (("state", Mapping), ("param_groups", list | tuple)):
        if not isinstance(state_dict.get(key), kind):
            found = f"is a {type(state_dict[key]).__name__}" if key in state_dict else "is missing"
            raise StateMismatchError(
                f"{key!r} of the {what} {found}; a state dict has a mapping 'state' and a list "
                "'param_groups'.",
                hint="Give what an optimizer's state_dict() returned.",
            )
    entries, saved_groups = state_dict["state"], state_dict["param_groups"]
    groups = optimizer.param_groups
    if len(saved_groups) != len(groups):
        raise StateMismatchError(
            f"the {what} has {len(saved_groups)} parameter groups; the optimizer has {len(groups)}."
        )
    ids: list[Any] = []
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        place = f"parameter group {index} of the {what}"
        if not isinstance(saved, Mapping) or not isinstance(saved.get("params"), list | tuple):
            raise StateMismatchError(f"{place} has no 'params', a list of its parameters' ids.")
        if len(saved["params"]) != len(group["params"]):
            raise StateMismatchError(
                f"{place} has {len(saved['params'])} parameters; "
                f"the optimizer's has {len(group['params'])}."
            )
        ids.extend(saved["params"])
    listed = set(ids)
    stray = [str(key) for key in entries if key not in listed]
    if stray:
        raise StateMismatchError(
            f"the {what} has entries for {some_names(stray)}, which no parameter group lists."
        )
    return entries, saved_groups, ids


def _replace(
    optimizer: CompressedOptimizer,
    own: Sequence[OwnParameter],
    options: Sequence[GroupOptions],
    loaded: Sequence[dict[str, Tensor] | None],
    incoming: Incoming | None,
) -> None:
    """Put checked options and entries in place; nothing here fails."""
    for group, adopted in zip(optimizer.param_groups, options, strict=True):
        _adopt(group, adopted)
    for (_, param, _), entry in zip(own, loaded, strict=True):
        if entry is None:
            optimizer.state.pop(param, None)
        else:
            optimizer.state[param] = entry
    if incoming is not None and optimizer.offloader is not None:
        optimizer.offloader.take(incoming)


def _match(own: Sequence[OwnParameter], states: Sequence[ParameterState]) -> list[ParameterState]:
    names = [name for name, _, _ in own]
    by_name = {state.name: state for state in states}
    if set(names) == set(by_name):
        return [by_name[name] for name in names]
    positional = all(_POSITIONAL.fullmatch(name) for name in names) or all(
        _POSITIONAL.fullmatch(name) for name in by_name
    )
    if positional and len(names) == len(states):
        return list(states)
    missing = [name for name in names if name not in by_name]
    unexpected = [name for name in by_name if name not in set(names)]
    raise StateMismatchError(
        f"the state is for {len(states)} parameters, the optimizer has {len(names)}: "
        f"missing {some_names(missing)}, unexpected {some_names(unexpected)}.",
        hint="Build the optimizer over the same model as when the state was saved.",
    )


def group_names(group: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a group's parameters, or ``None`` where it has none for them.

    DeepSpeed's ZeRO leaves names in a group whose parameters it replaces by a flat one.
    """
    names = group.get("param_names")
    return names if names is not None and len(names) == len(group["params"]) else None


def _index(optimizer: CompressedOptimizer, group: dict[str, Any]) -> int:
    return next(i for i, other in enumerate(optimizer.param_groups) if other is group)


def _group_options(
    optimizer: CompressedOptimizer,
    own: Sequence[OwnParameter],
    matched: Sequence[ParameterState],
    groups: Sequence[GroupOptions],
) -> list[GroupOptions]:
    """Return the saved options for each of the optimizer's groups."""
    sources: list[set[int]] = [set() for _ in optimizer.param_groups]
    for (_, _, group), state in zip(own, matched, strict=True):
        if not 0 <= state.group < len(groups):
            raise StateMismatchError(
                f"{state.name!r} is of the saved group {state.group}; "
                f"the state has {len(groups)} groups, counted from 0."
            )
        sources[_index(optimizer, group)].add(state.group)
    names = {state.name: name for (name, _, _), state in zip(own, matched, strict=True)}
    options = []
    for index, found in enumerate(sources):
        if len(found) > 1:
            raise StateMismatchError(
                f"parameter group {index} holds parameters of the saved groups "
                f"{', '.join(map(str, sorted(found)))}; it must hold those of one.",
                hint="Group the parameters as they were grouped when the state was saved.",
            )
        saved = groups[found.pop()] if found else {}
        options.append(copy.deepcopy(_under_own_names(saved, names)))
    return options


def _saved_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    names: list[str] = []
    for group in groups:
        first = len(names)
        names += group_names(group) or [
            f"param.{index}" for index in range(first, first + len(group["params"]))
        ]
    return names


def _under_own_names(options: Mapping[str, Any], names: Mapping[str, str]) -> GroupOptions:
    """Return a saved group's options with single parameters' under this optimizer's names."""
    codecs = options.get("parameter_codecs")
    if codecs is None:
        return dict(options)
    own = {names[name]: config for name, config in codecs.items() if name in names}
    return {**options, "parameter_codecs": own}


def _check_group_options(
    index: int, saved: Mapping[str, Any], optimizer: CompressedOptimizer
) -> None:
    moments, single = optimizer.rule.moments, "parameter_codecs"
    single_needed = single in optimizer.param_groups[0]
    if single in saved and not single_needed:
        raise StateMismatchError(
            f"saved parameter group {index} has {single!r}, which only AdamMini has: it is not "
            "state of this optimizer."
        )
    foreign = sorted((KNOWN_OPTIONS & saved.keys()) - optimizer.param_groups[0].keys())
    if foreign:
        raise StateMismatchError(
            f"saved parameter group {index} has {foreign[0]!r}, an option that "
            f"{type(optimizer).__name__} does not have: it is another optimizer's state.",
            hint="export_adamw_state() and import_adamw_state() carry moments across.",
        )
    for key in (*_REQUIRED_OPTIONS, *[single] * single_needed):
        if key not in saved:
            raise StateMismatchError(
                f"saved parameter group {index} has no {key!r}: it is not state of this optimizer.",
                hint="Load AdamW state with import_adamw_state().",
            )
    try:
        check_options(saved)
        check_codecs(saved["codecs"], moments)
        check_parameter_codecs(saved.get(single, {}), moments)
    except ConfigurationError as error:
        raise StateMismatchError(
            f"saved parameter group {index}: {error.message}", hint=error.hint
        ) from error


def _check_names(index: int, saved: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    own = group_names(group)
    if "param_names" in saved and own is not None:
        for name, expected in zip_longest(saved["param_names"], own):
            if name != expected:
                raise StateMismatchError(
                    f"saved parameter group {index} has {name!r} where the optimizer has "
                    f"{expected!r}.",
                    hint="Build the optimizer over the same parameters in the same order.",
                )


def _adopt(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key in _GROUP_IDENTITY or key in ADAMW_KEYWORDS:
            continue
        current = group.get(key)
        if isinstance(current, Tensor) and not isinstance(value, Tensor):
            current.fill_(value)
        else:
            group[key] = tuple(value) if key == "betas" else value
