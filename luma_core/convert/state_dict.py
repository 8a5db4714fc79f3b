"""Optimizer state dicts as sources, whatever file or folder they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from luma_core.convert.alignment import Shape, Wanted
from luma_core.convert.base import MOMENTS, OptimizerState, ParameterInfo
from luma_core.errors import ConfigurationError, ConversionError
from luma_core.optim.state_io.adamw_entry import (
    check_moment_values,
    checked_entry,
    checked_parts,
    scalar,
)
from luma_core.optim.state_io.adamw_source import shared_options
from luma_core.rules.registry import algorithm_with
from luma_core.state import GroupOptions

_REQUIRED_OPTIONS = ("lr", "betas", "weight_decay")
_CHECKED_OPTIONS = ("amsgrad", "decoupled_weight_decay")
_DROPPED_OPTIONS = {
    "params",
    "param_names",
    "amsgrad",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
    # apex' FusedAdam counts steps here: see `_with_step`.
    "step",
}


@dataclass(frozen=True)
class Entry:
    """What a state dict holds for one parameter.

    Attributes:
        shape: the parameter's shape.
        dtype: dtype of the moments, without ``torch.``.
        step: completed steps.
        read: returns the moments as float32 of that shape.
        moments: their names.
    """

    shape: tuple[int, ...]
    dtype: str
    step: int
    read: Callable[[], Sequence[Tensor]]
    moments: tuple[str, ...] = MOMENTS


Decoder = Callable[[str, Any], Entry | None]
"""Makes an `Entry` of a parameter's state, or None of one in another layout.

Takes the words that errors begin with, and the state.
"""


class Namer(Protocol):
    """Knows the model that a state belongs to."""

    def names(self, groups: Sequence[Sequence[Wanted]], /) -> Sequence[str] | None:
        """Return the names of parameters by the shapes of each group's; None if not known."""
        ...

    def shape(self, name: str, /) -> Shape | None:
        """Return the shape of the parameter of a name; None if not known."""
        ...


class StateDictSource:
    """The state of AdamW, or of a rule with other moments, from an optimizer's state dict.

    Parameters are named by ``param_names`` where the groups have them, by their keys where those
    are strings, by ``namer`` where that knows them, else ``param.<i>``.

    Args:
        content: the state dict.
        where: what errors begin with.
        stored_bytes: size of the state where it is stored.
        format: name of the format.
        decoder: reads one parameter's state.
        namer: gives names where ``content`` has none, and shapes of parameters without state.

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
        self._collect(content, decoder or adamw_entry, namer)
        self.algorithm = self._algorithm()

    def groups(self) -> Sequence[GroupOptions]:
        return self._groups

    def parameters(self) -> Sequence[ParameterInfo]:
        return list(self._parameters.values())

    def read(self, name: str) -> OptimizerState:
        """Return one parameter's moments.

        Raises:
            ConversionError: a value is NaN or infinite, or a second moment is negative.
        """
        entry = self._entries[name]
        moments = dict(zip(entry.moments, entry.read(), strict=True))
        for moment, value in moments.items():
            check_moment_values(f"{self._where}: {name!r}", moment, value)
        return OptimizerState(self._parameters[name], moments)

    def _group_options(self, index: int, group: Mapping[str, Any]) -> GroupOptions:
        place = f"{self._where}: param_groups[{index}]"
        for key in _REQUIRED_OPTIONS:
            if key not in group:
                raise ConversionError(
                    f"{place} has no {key!r}; it has {', '.join(map(repr, group))}.",
                    hint="Only the state of torch.optim.AdamW can be read.",
                )
        plain = {
            key: _plain_option(value, f"{place}[{key!r}]")
            for key, value in group.items()
            if key in _CHECKED_OPTIONS or key not in _DROPPED_OPTIONS
        }
        try:
            shared_options(plain)
        except (ConfigurationError, ConversionError) as error:
            raise ConversionError(f"{place}: {error.message}", hint=error.hint) from error
        for key in _CHECKED_OPTIONS:
            plain.pop(key, None)
        return {"maximize": False, **plain, "betas": list(plain["betas"])}

    def _collect(self, content: Mapping[str, Any], decoder: Decoder, namer: Namer | None) -> None:
        state, known = content["state"], set()
        found: list[tuple[str, int, Entry | None]] = []
        for index, group in enumerate(content["param_groups"]):
            names = group.get("param_names")
            for position, key in enumerate(group["params"]):
                name = names[position] if names else _name_of(key, len(found))
                known.add(key)
                own = _with_step(state.get(key), group)
                found.append((name, index, self._entry(name, own, decoder)))
        given = None
        if namer is not None and not self.named:
            shapes: list[list[Wanted]] = [[] for _ in content["param_groups"]]
            for _, index, entry in found:
                shapes[index].append(None if entry is None else entry.shape)
            given = namer.names(shapes)
        self.named = self.named or given is not None
        for position, (own_name, index, entry) in enumerate(found):
            name = own_name if given is None else given[position]
            if name in self._parameters:
                raise ConversionError(f"{self._where}: the name {name!r} is used twice.")
            self._parameters[name] = self._info(name, index, entry, namer)
            if entry is not None:
                self._entries[name] = entry
        stray = [key for key in state if key not in known]
        if stray:
            raise ConversionError(
                f"{self._where}: there is state for {stray[0]!r}, which no parameter group lists."
            )

    def _algorithm(self) -> str:
        """Return the algorithm that keeps these moments."""
        kept = {entry.moments for entry in self._entries.values()} or {MOMENTS}
        if len(kept) > 1:
            one, other = sorted(kept)[:2]
            raise ConversionError(
                f"{self._where}: some parameters have {' and '.join(one)}, others "
                f"{' and '.join(other)}: state of two algorithms is not converted together."
            )
        moments = kept.pop()
        for index, group in enumerate(self._groups):
            if (moments == MOMENTS) != bool(group.get("eps")):
                has = "no 'eps'" if moments == MOMENTS else f"eps={group['eps']}"
                raise ConversionError(
                    f"{self._where}: param_groups[{index}] has {has}, and its parameters have the "
                    f"moments {' and '.join(moments)}.",
                    hint="AdamW has eps and two moments; rules with one moment have neither.",
                )
        return algorithm_with(moments)

    def _info(
        self, name: str, group: int, entry: Entry | None, namer: Namer | None
    ) -> ParameterInfo:
        if entry is not None:
            return ParameterInfo(name, entry.shape, entry.dtype, group, entry.step, has_state=True)
        shape = namer.shape(name) if namer is not None else None
        if shape is None:
            raise ConversionError(
                f"{self._where}: {name!r} has no state, so its shape is not known.",
                hint="Give the model with --model (model= in Python): its weights tell the shape.",
            )
        return ParameterInfo(name, shape, "float32", group, 0, has_state=False)

    def _entry(self, name: str, state: Any, decoder: Decoder) -> Entry | None:
        place = f"{self._where}: {name!r}"
        if state is not None and not isinstance(state, dict):
            raise ConversionError(f"{place}: the state is a {type(state).__name__}, not a dict.")
        if not state:
            return None
        for value in state.values():
            for part in value.values() if isinstance(value, dict) else (value,):
                check_held(place, part)
        entry = decoder(place, state)
        return entry if entry is not None else adamw_entry(place, state)


def adamw_entry(place: str, state: Any) -> Entry:
    """Read the state that ``torch.optim.AdamW`` keeps for a parameter.

    Raises:
        ConversionError: it is not that; the message begins with ``place``.
    """
    found = checked_entry(place, state)
    return moments_entry(place, found.step, list(found.moments.values()))


def moments_entry(
    place: str,
    step: object,
    moments: Sequence[Any],
    read: Callable[[], Sequence[Tensor]] | None = None,
    *,
    names: tuple[str, ...] = MOMENTS,
) -> Entry:
    """Return an entry of moments, which are float tensors or look like such.

    Raises:
        ConversionError: they are something else, or differ in shape.
    """
    found = checked_parts(place, step, moments, names=names)
    tensors = list(found.moments.values())
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    read = read or (lambda: [value.float() for value in tensors])
    return Entry(found.shape, dtype, found.step, read, names)


def check_held(place: str, value: object) -> None:
    """Check that a tensor is not larger than what it was stored as.

    One that repeats its values takes no room in a file and all of it once they are used.

    Raises:
        ConversionError: it is larger; the message begins with ``place``.
    """
    if type(value) is not Tensor or value.layout != torch.strided or value.is_meta:
        return
    if value.numel() * value.itemsize > value.untyped_storage().nbytes():
        raise ConversionError(
            f"{place}: a tensor of shape {list(value.shape)} repeats its values.",
            hint="Save it again with its tensors made contiguous().",
        )


def check_state_dict(content: Mapping[str, Any], where: str) -> None:
    """Check the parts of a state dict, and its parameter groups.

    Raises:
        ConversionError: one is not as PyTorch makes them.
    """
    if not has_parts(content):
        raise ConversionError(f"{where}: no dict 'state' and list 'param_groups' in it.")
    for index, group in enumerate(content["param_groups"]):
        params = group.get("params") if isinstance(group, dict) else None
        names = group.get("param_names") if isinstance(group, dict) else None
        if not _are_keys(params) or (names is not None and not _fits(names, params)):
            raise ConversionError(
                f"{where}: param_groups[{index}] must be a dict with a list 'params' of integers "
                "or strings and, if it has 'param_names', one string for each."
            )


def has_parts(content: Any) -> bool:
    """Whether it has the parts of an optimizer's state dict."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("state"), dict)
        and isinstance(content.get("param_groups"), list)
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


def _with_step(state: Any, group: Mapping[str, Any]) -> Any:
    """Return a parameter's state with its group's step, where only that has one, as in apex."""
    if not isinstance(state, dict) or not state or "step" in state or "step" not in group:
        return state
    return {**state, "step": group["step"]}


def _name_of(key: Any, position: int) -> str:
    return key if isinstance(key, str) else f"param.{position}"


def _plain_option(value: Any, place: str) -> Any:
    value = scalar(value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversionError(f"{place} is {value!r}; it must be a plain finite value.") from error
