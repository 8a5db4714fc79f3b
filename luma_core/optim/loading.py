"""Puts saved state into an optimizer: everything is checked before anything changes."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luma_core.codecs import Codec, parameter_codecs
from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.optim.options import (
    KNOWN_OPTIONS,
    check_codecs,
    check_options,
    check_parameter_codecs,
)
from luma_core.state import GroupOptions, ParameterState, field_key

if TYPE_CHECKING:
    from luma_core.optim.base import CompressedOptimizer

_POSITIONAL = re.compile(r"param\.\d+")
_SCALARS = {"step": torch.int64, "noise_key": torch.int64, "nonfinite": torch.int64}
_GROUP_IDENTITY = ("params", "param_names")
_REQUIRED_OPTIONS = ("codecs", "min_compress_elements")

OwnParameter = tuple[str, Tensor, dict[str, Any]]
"""Name, parameter and parameter group."""


def load_states(
    optimizer: CompressedOptimizer,
    own: Sequence[OwnParameter],
    groups: Sequence[GroupOptions],
    states: Sequence[ParameterState],
) -> None:
    """Implement `CompressedOptimizer.load_parameter_states`.

    The old and the new state are both in memory for a moment: every field is read and copied
    before the first is replaced, so that a failure to read one leaves the optimizer unchanged.
    """
    matched = _match(own, states)
    for index, saved in enumerate(groups):
        _check_group_options(index, saved, optimizer)
    options = _group_options(optimizer, own, matched, groups)
    chosen = [options[_index(optimizer, group)] for _, _, group in own]
    for (name, param, _), wanted, state in zip(own, chosen, matched, strict=True):
        _check_state(name, param, wanted, state)
    loaded = [
        _built_entry(name, param, wanted, state)
        for (name, param, _), wanted, state in zip(own, chosen, matched, strict=True)
    ]
    _replace(optimizer, own, options, loaded)


def load_torch_state_dict(
    optimizer: CompressedOptimizer, own: Sequence[OwnParameter], state_dict: Mapping[str, Any]
) -> None:
    """Implement `CompressedOptimizer.load_state_dict`.

    As in `load_states`, the old and the new state are both in memory for a moment.
    """
    entries, saved_groups, ids = matched_parts(optimizer, state_dict, "state")
    for index, (saved, group) in enumerate(zip(saved_groups, optimizer.param_groups, strict=True)):
        _check_group_options(index, saved, optimizer)
        _check_names(index, saved, group)
    names = dict(zip(_saved_names(saved_groups), (name for name, _, _ in own), strict=True))
    saved_groups = [_under_own_names(saved, names) for saved in saved_groups]
    options_of = [saved for saved in saved_groups for _ in saved["params"]]
    loaded = [
        _checked_entry(name, param, options, entries.get(key))
        for (name, param, _), options, key in zip(own, options_of, ids, strict=True)
    ]
    options = [
        copy.deepcopy({k: v for k, v in saved.items() if k not in _GROUP_IDENTITY})
        for saved in saved_groups
    ]
    _replace(optimizer, own, options, loaded)


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


def check_entry_kind(name: str, entry: object) -> None:
    """Check that a parameter's entry of a ``state_dict`` is a mapping.

    Raises:
        StateMismatchError: naming the parameter and what it has.
    """
    if not isinstance(entry, Mapping):
        raise StateMismatchError(
            f"{name!r}: the state is a {type(entry).__name__}; it must be a mapping."
        )


def _replace(
    optimizer: CompressedOptimizer,
    own: Sequence[OwnParameter],
    options: Sequence[GroupOptions],
    loaded: Sequence[dict[str, Tensor] | None],
) -> None:
    """Put checked options and entries in place; nothing here fails."""
    for group, adopted in zip(optimizer.param_groups, options, strict=True):
        _adopt(group, adopted)
    for (_, param, _), entry in zip(own, loaded, strict=True):
        if entry is None:
            optimizer.state.pop(param, None)
        else:
            optimizer.state[param] = entry


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
        names += group.get("param_names") or [
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
    if "param_names" in saved and "param_names" in group:
        for name, expected in zip_longest(saved["param_names"], group["param_names"]):
            if name != expected:
                raise StateMismatchError(
                    f"saved parameter group {index} has {name!r} where the optimizer has "
                    f"{expected!r}.",
                    hint="Build the optimizer over the same parameters in the same order.",
                )


def _expected(
    name: str, param: Tensor, options: Mapping[str, Any]
) -> tuple[dict[str, Codec], dict[str, tuple[torch.dtype, tuple[int, ...]]]]:
    codecs = parameter_codecs(options, name, param.shape)
    try:
        fields = {
            field_key(moment, key): (spec.dtype, spec.shape)
            for moment, codec in codecs.items()
            for key, spec in codec.layout(param.shape).items()
        }
    except ConfigurationError as error:
        raise StateMismatchError(f"{name!r}: {error.message}", hint=error.hint) from error
    return codecs, fields


def _check_state(
    name: str, param: Tensor, options: Mapping[str, Any], state: ParameterState
) -> None:
    if state.shape != tuple(param.shape):
        raise StateMismatchError(
            f"{name!r}: the state is for shape {list(state.shape)}; "
            f"the parameter has {list(param.shape)}."
        )
    if not state.codecs:
        return
    codecs, fields = _expected(name, param, options)
    if dict(state.codecs) != codecs:
        raise StateMismatchError(
            f"{name!r}: the state is stored by {_describe(state.codecs)}; "
            f"its group asks for {_describe(codecs)}."
        )
    _check_keys(name, state.fields.keys(), fields.keys())


def _describe(codecs: Mapping[str, Codec]) -> str:
    return ", ".join(f"{moment}={codec!r}" for moment, codec in codecs.items())


def _check_keys(name: str, found: Any, expected: Any) -> None:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if missing or unknown:
        hint = ""
        if "exp_avg" in unknown:
            hint = "Load AdamW state with import_adamw_state()."
        raise StateMismatchError(
            f"{name!r}: missing fields {some_names(missing)}, "
            f"unknown fields {some_names(unknown)}.",
            hint=hint,
        )


def _built_entry(
    name: str, param: Tensor, options: Mapping[str, Any], state: ParameterState
) -> dict[str, Tensor] | None:
    """Copy one parameter's state, known to fit by its keys, to the parameter's device."""
    if not state.codecs:
        return None
    scalars = {
        "step": torch.tensor(state.step, device=param.device),
        "noise_key": torch.tensor(state.noise_key),
        "nonfinite": torch.tensor(state.nonfinite, device=param.device),
    }
    _, fields = _expected(name, param, options)
    # Tensors that were read for this call alone need no second copy.
    fresh = bool(getattr(state.fields, "fresh", False))
    copies = {
        key: _copied(name, key, state.fields[key], dtype, shape, param.device, share=fresh)
        for key, (dtype, shape) in fields.items()
    }
    return {**scalars, **copies}


def _checked_entry(
    name: str, param: Tensor, options: Mapping[str, Any], saved: Any
) -> dict[str, Tensor] | None:
    """Check one parameter's entry of a ``state_dict`` and copy it to the parameter's device."""
    if saved is None:
        return None
    check_entry_kind(name, saved)
    if not saved:
        return None
    _, fields = _expected(name, param, options)
    expected = {**{key: (dtype, ()) for key, dtype in _SCALARS.items()}, **fields}
    _check_keys(name, saved.keys(), expected.keys())
    cpu = torch.device("cpu")
    return {
        key: _copied(
            name, key, saved[key], dtype, shape, cpu if key == "noise_key" else param.device
        )
        for key, (dtype, shape) in expected.items()
    }


def _copied(
    name: str,
    key: str,
    value: object,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    share: bool = False,
) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != dtype or tuple(value.shape) != shape:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value)
        raise StateMismatchError(
            f"{name!r}: field {key!r} is {got}; it must be {dtype} {list(shape)}."
        )
    return value.detach().to(device, copy=not share)


def _adopt(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key in _GROUP_IDENTITY:
            continue
        current = group.get(key)
        if isinstance(current, Tensor) and not isinstance(value, Tensor):
            current.fill_(value)
        else:
            group[key] = tuple(value) if key == "betas" else value
