"""Puts saved state into an optimizer: everything is checked before anything changes."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import Codec, moment_codecs
from luma_core.errors import StateMismatchError, some_names
from luma_core.state import GroupOptions, ParameterState, field_key

_POSITIONAL = re.compile(r"param\.\d+")
_SCALARS = {"step": torch.int64, "noise_key": torch.int64, "nonfinite": torch.int64}
_GROUP_IDENTITY = ("params", "param_names")

OwnParameter = tuple[str, Tensor, dict[str, Any]]
"""Name, parameter and parameter group."""


def load_states(
    optimizer: torch.optim.Optimizer,
    own: Sequence[OwnParameter],
    groups: Sequence[GroupOptions],
    states: Sequence[ParameterState],
) -> None:
    """Implement `CompressedOptimizer.load_parameter_states`."""
    matched = _match(own, states)
    options = _group_options(optimizer, own, matched, groups)
    for (name, param, group), state in zip(own, matched, strict=True):
        _check_state(name, param, options[_index(optimizer, group)], state)
    for group, chosen in zip(optimizer.param_groups, options, strict=True):
        _adopt(group, chosen)
    for (_, param, _), state in zip(own, matched, strict=True):
        if not state.codecs:
            optimizer.state.pop(param, None)
            continue
        scalars = {
            "step": torch.tensor(state.step, device=param.device),
            "noise_key": torch.tensor(state.noise_key),
            "nonfinite": torch.tensor(state.nonfinite, device=param.device),
        }
        fields = {
            key: state.fields[key].detach().to(param.device, copy=True) for key in state.fields
        }
        optimizer.state[param] = {**scalars, **fields}


def load_torch_state_dict(
    optimizer: torch.optim.Optimizer, own: Sequence[OwnParameter], state_dict: Mapping[str, Any]
) -> None:
    """Implement `CompressedOptimizer.load_state_dict`."""
    saved_groups = state_dict["param_groups"]
    groups = optimizer.param_groups
    if len(saved_groups) != len(groups):
        raise StateMismatchError(
            f"the state has {len(saved_groups)} parameter groups; the optimizer has {len(groups)}."
        )
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        _check_group(index, saved, group)
    ids = [key for saved in saved_groups for key in saved["params"]]
    saved_states = [state_dict["state"].get(key) for key in ids]
    options_of = [saved for saved in saved_groups for _ in saved["params"]]
    loaded = [
        _checked_entry(name, param, options, saved)
        for (name, param, _), options, saved in zip(own, options_of, saved_states, strict=True)
    ]
    for group, saved in zip(groups, saved_groups, strict=True):
        _adopt(group, copy.deepcopy({k: v for k, v in saved.items() if k not in _GROUP_IDENTITY}))
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


def _index(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    return next(i for i, other in enumerate(optimizer.param_groups) if other is group)


def _group_options(
    optimizer: torch.optim.Optimizer,
    own: Sequence[OwnParameter],
    matched: Sequence[ParameterState],
    groups: Sequence[GroupOptions],
) -> list[GroupOptions]:
    """Return the saved options for each of the optimizer's groups."""
    sources: list[set[int]] = [set() for _ in optimizer.param_groups]
    for (_, _, group), state in zip(own, matched, strict=True):
        sources[_index(optimizer, group)].add(state.group)
    options = []
    for index, found in enumerate(sources):
        if len(found) > 1:
            raise StateMismatchError(
                f"parameter group {index} holds parameters of the saved groups "
                f"{', '.join(map(str, sorted(found)))}; it must hold those of one.",
                hint="Group the parameters as they were grouped when the state was saved.",
            )
        options.append(copy.deepcopy(groups[found.pop()]) if found else {})
    return options


def _check_group(index: int, saved: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    if "codecs" not in saved:
        raise StateMismatchError(
            f"saved parameter group {index} has no 'codecs': it is not state of this optimizer.",
            hint="Load AdamW state with import_adamw_state().",
        )
    if len(saved["params"]) != len(group["params"]):
        raise StateMismatchError(
            f"saved parameter group {index} has {len(saved['params'])} parameters; "
            f"the optimizer's has {len(group['params'])}."
        )
    if "param_names" in saved and "param_names" in group:
        for name, expected in zip(saved["param_names"], group["param_names"], strict=True):
            if name != expected:
                raise StateMismatchError(
                    f"saved parameter group {index} has {name!r} where the optimizer has "
                    f"{expected!r}.",
                    hint="Build the optimizer over the same parameters in the same order.",
                )


def _expected(
    param: Tensor, options: Mapping[str, Any]
) -> tuple[dict[str, Codec], dict[str, tuple[torch.dtype, tuple[int, ...]]]]:
    codecs = moment_codecs(options["codecs"], param.shape, options["min_compress_elements"])
    fields = {
        field_key(moment, key): (spec.dtype, spec.shape)
        for moment, codec in codecs.items()
        for key, spec in codec.layout(param.shape).items()
    }
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
    codecs, fields = _expected(param, options)
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


def _checked_entry(
    name: str, param: Tensor, options: Mapping[str, Any], saved: Mapping[str, Any] | None
) -> dict[str, Tensor] | None:
    """Check one parameter's entry of a ``state_dict`` and copy it to the parameter's device."""
    if not saved:
        return None
    _, fields = _expected(param, options)
    expected = {**{key: (dtype, ()) for key, dtype in _SCALARS.items()}, **fields}
    _check_keys(name, saved.keys(), expected.keys())
    entry = {}
    for key, (dtype, shape) in expected.items():
        value = saved[key]
        if not isinstance(value, Tensor) or value.dtype != dtype or tuple(value.shape) != shape:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value)
            raise StateMismatchError(
                f"{name!r}: field {key!r} is {got}; it must be {dtype} {list(shape)}."
            )
        device = torch.device("cpu") if key == "noise_key" else param.device
        entry[key] = value.detach().to(device, copy=True)
    return entry


def _adopt(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key in _GROUP_IDENTITY:
            continue
        current = group.get(key)
        if isinstance(current, Tensor) and not isinstance(value, Tensor):
            current.fill_(value)
        else:
            group[key] = tuple(value) if key == "betas" else value
