"""Optimizer state dicts as sources, whatever file or folder they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luma_core.convert.base import MOMENTS, AdamWState, ParameterInfo
from luma_core.convert.flat import is_flat, unflattened
from luma_core.errors import ConfigurationError, ConversionError
from luma_core.optim.interchange import (
    check_moment_kind,
    check_moment_values,
    checked_step,
    shared_options,
)
from luma_core.state import GroupOptions

_NESTS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim")
_REQUIRED_OPTIONS = ("lr", "betas", "eps", "weight_decay")
_DROPPED_OPTIONS = {
    "params",
    "param_names",
    "amsgrad",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
}


@dataclass(frozen=True)
class Entry:
    """What a state dict holds for one parameter.

    Attributes:
        shape: the parameter's shape.
        dtype: dtype of the moments, without ``torch.``.
        step: completed steps.
        read: returns both moments as float32 of that shape.
    """

    shape: tuple[int, ...]
    dtype: str
    step: int
    read: Callable[[], tuple[Tensor, Tensor]]


Decoder = Callable[[str, Any], Entry | None]
"""Makes an `Entry` of a parameter's state, or None of one in another layout.

Takes the words that errors begin with, and the state.
"""

Namer = Callable[[Sequence[Sequence[tuple[int, ...]]]], Sequence[str] | None]
"""Gives the names of parameters by the shapes of each group's; None where they are not known."""


class StateDictSource:
    """AdamW state from an optimizer's state dict.

    Parameters are named by ``param_names`` where the groups have them, by their keys where those
    are strings, by ``namer`` where that knows them, else ``param.<i>``.

    Args:
        content: the state dict.
        where: what errors begin with.
        stored_bytes: size of the state where it is stored.
        format: name of the format.
        decoder: reads one parameter's state.
        namer: gives names where ``content`` has none.

    Raises:
        ConversionError: it holds no plain AdamW state; says what is wrong where.
    """

    def __init__(
        self,
        content: Any,
        *,
        where: str,
        stored_bytes: int,
        format: str,
        decoder: Decoder | None = None,
        namer: Namer | None = None,
    ) -> None:
        self.format = format
        self.stored_bytes = stored_bytes
        self._where = where
        self._entries: dict[str, Entry] = {}
        self._parameters: dict[str, ParameterInfo] = {}
        check_state_dict(content, where)
        groups = content["param_groups"]
        self._groups = [self._group_options(index, group) for index, group in enumerate(groups)]
        self.named = all(map(_has_names, groups))
        self._collect(content, decoder or adamw_entry, None if self.named else namer)

    def groups(self) -> Sequence[GroupOptions]:
        return self._groups

    def parameters(self) -> Sequence[ParameterInfo]:
        return list(self._parameters.values())

    def read(self, name: str) -> AdamWState:
        """Return one parameter's moments.

        Raises:
            ConversionError: a value is NaN or infinite, or a second moment is negative.
        """
        exp_avg, exp_avg_sq = self._entries[name].read()
        for moment, value in zip(MOMENTS, (exp_avg, exp_avg_sq), strict=True):
            check_moment_values(f"{self._where}: {name!r}", moment, value)
        return AdamWState(self._parameters[name], exp_avg, exp_avg_sq)

    def _group_options(self, index: int, group: Mapping[str, Any]) -> GroupOptions:
        place = f"{self._where}: param_groups[{index}]"
        for key in _REQUIRED_OPTIONS:
            if key not in group:
                raise ConversionError(
                    f"{place} has no {key!r}; it has {', '.join(map(repr, group))}.",
                    hint="Only the state of torch.optim.AdamW can be read.",
                )
        if group.get("decoupled_weight_decay", True) is False and group["weight_decay"] != 0:
            raise ConversionError(
                f"{place} is Adam with weight_decay={group['weight_decay']} added to the gradient, "
                "which AdamW cannot continue.",
                hint="Only the state of torch.optim.AdamW can be read.",
            )
        plain = {
            key: _plain_option(value, f"{place}[{key!r}]")
            for key, value in group.items()
            if key not in _DROPPED_OPTIONS
        }
        try:
            shared_options({**plain, "amsgrad": group.get("amsgrad")})
        except (ConfigurationError, ConversionError) as error:
            raise ConversionError(f"{place}: {error.message}", hint=error.hint) from error
        return {"maximize": False, **plain, "betas": list(plain["betas"])}

    def _collect(self, content: Mapping[str, Any], decoder: Decoder, namer: Namer | None) -> None:
        state, known = content["state"], set()
        found: list[tuple[str, int, Entry]] = []
        for index, group in enumerate(content["param_groups"]):
            names = group.get("param_names")
            for position, key in enumerate(group["params"]):
                name = names[position] if names else _name_of(key, len(found))
                known.add(key)
                found.append((name, index, self._entry(name, state.get(key), decoder)))
        stray = [key for key in state if key not in known]
        if stray:
            raise ConversionError(
                f"{self._where}: there is state for {stray[0]!r}, which no parameter group lists."
            )
        given = None
        if namer is not None:
            shapes: list[list[tuple[int, ...]]] = [[] for _ in content["param_groups"]]
            for _, index, entry in found:
                shapes[index].append(entry.shape)
            given = namer(shapes)
        self.named = self.named or given is not None
        for position, (own, index, entry) in enumerate(found):
            name = own if given is None else given[position]
            if name in self._parameters:
                raise ConversionError(f"{self._where}: the name {name!r} is used twice.")
            self._entries[name] = entry
            self._parameters[name] = ParameterInfo(
                name, entry.shape, entry.dtype, index, entry.step, has_state=True
            )

    def _entry(self, name: str, state: Any, decoder: Decoder) -> Entry:
        place = f"{self._where}: {name!r}"
        if not state:
            raise ConversionError(
                f"{place} has no state, so its shape is not known.",
                hint="Give the optimizer only parameters that get gradients, and take a step.",
            )
        if not isinstance(state, dict):
            raise ConversionError(f"{place}: the state is a {type(state).__name__}, not a dict.")
        entry = decoder(place, state)
        return entry if entry is not None else adamw_entry(place, state)


def adamw_entry(place: str, state: Any) -> Entry:
    """Read the state that ``torch.optim.AdamW`` keeps for a parameter.

    Raises:
        ConversionError: it is not that; the message begins with ``place``.
    """
    _check_keys(place, state)
    return moments_entry(place, state["step"], [state[moment] for moment in MOMENTS])


def moments_entry(
    place: str,
    step: object,
    moments: Sequence[Any],
    read: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> Entry:
    """Return an entry of two moments, which are float tensors or look like such.

    Raises:
        ConversionError: they are something else, or differ in shape.
    """
    shapes = [check_moment_kind(place, *pair) for pair in zip(MOMENTS, moments, strict=True)]
    if shapes[0] != shapes[1]:
        raise ConversionError(
            f"{place}: exp_avg has shape {list(shapes[0])}, exp_avg_sq {list(shapes[1])}; "
            "they must be equal."
        )
    dtype = str(moments[0].dtype).removeprefix("torch.")
    exp_avg, exp_avg_sq = moments
    return Entry(
        shapes[0],
        dtype,
        checked_step(place, step),
        read or (lambda: (exp_avg.float(), exp_avg_sq.float())),
    )


def find_state_dict(content: Any, where: str) -> Mapping[str, Any]:
    """Return the state dict of the one optimizer in what a training program saved.

    It may lie there as it is or under ``optimizer``, ``optimizer_state_dict``,
    ``optimizer_states`` (a list of one) or ``optim``.

    Raises:
        ConversionError: there is none.
    """
    found = content
    if isinstance(content, dict) and "param_groups" not in content:
        found = next((content[key] for key in _NESTS if key in content), content)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if is_flat(found):
        found = unflattened(found)
    if not (
        isinstance(found, dict)
        and isinstance(found.get("state"), dict)
        and isinstance(found.get("param_groups"), list)
    ):
        keys = ", ".join(map(repr, list(content)[:8])) if isinstance(content, dict) else "no keys"
        raise ConversionError(
            f"{where}: no optimizer state dict ('state' and 'param_groups') in it: {keys}.",
            hint="Save it with torch.save(optimizer.state_dict(), ...).",
        )
    return found


def check_state_dict(content: Mapping[str, Any], where: str) -> None:
    """Check the parameter groups of a state dict.

    Raises:
        ConversionError: one is not as PyTorch makes them.
    """
    for index, group in enumerate(content["param_groups"]):
        params = group.get("params") if isinstance(group, dict) else None
        names = group.get("param_names") if isinstance(group, dict) else None
        if not _are_keys(params) or (names is not None and not _fits(names, params)):
            raise ConversionError(
                f"{where}: param_groups[{index}] must be a dict with a list 'params' of integers "
                "or strings and, if it has 'param_names', one string for each."
            )


def _are_keys(params: Any) -> bool:
    return isinstance(params, list) and all(isinstance(key, int | str) for key in params)


def _fits(names: Any, params: Any) -> bool:
    return (
        isinstance(names, list)
        and len(names) == len(params)
        and all(isinstance(name, str) for name in names)
    )


def _has_names(group: Mapping[str, Any]) -> bool:
    return bool(group.get("param_names")) or all(isinstance(key, str) for key in group["params"])


def _name_of(key: Any, position: int) -> str:
    return key if isinstance(key, str) else f"param.{position}"


def _plain_option(value: Any, place: str) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{place} is {value!r}; it must be a plain finite value.") from error


def _check_keys(place: str, entry: Mapping[str, Any]) -> None:
    if "max_exp_avg_sq" in entry:
        raise ConversionError(
            f"{place} has 'max_exp_avg_sq': amsgrad's running maximum cannot be represented.",
            hint="Only plain AdamW state can be converted.",
        )
    expected = {"step", *MOMENTS}
    if set(entry) != expected:
        raise ConversionError(
            f"{place} has {', '.join(sorted(map(repr, entry)))}; AdamW's state is "
            f"{', '.join(sorted(map(repr, expected)))}."
        )
