"""Optimizer state dicts in what a training program saved, wherever it put them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from luma_core.convert.flat import is_flat, unflattened
from luma_core.convert.state_dict import has_parts
from luma_core.errors import ConversionError, some_names

_MAX_DEPTH = 8


def find_state_dict(content: Any, where: str, choice: str = "") -> Mapping[str, Any]:
    """Return the state dict of an optimizer in what a training program saved.

    Args:
        content: the state dict, or dicts, lists and tuples around it.
        where: what errors begin with.
        choice: the place of one of several, such as ``optimizers.0``, or its number, from 0.

    Raises:
        ConversionError: there is none, or there are several and none is chosen.
    """
    return find_place(content, where, choice)[1]


def find_place(content: Any, where: str, choice: str = "") -> tuple[str, Mapping[str, Any]]:
    """Return the place of an optimizer's state dict as well; see `find_state_dict`."""
    found = list(_state_dicts(content, (), set()))
    if not found:
        keys = ", ".join(map(repr, list(content)[:8])) if isinstance(content, dict) else "no keys"
        raise ConversionError(
            f"{where}: no optimizer state dict ('state' and 'param_groups') in it: {keys}.",
            hint="Save it with torch.save(optimizer.state_dict(), ...).",
        )
    places = [place for place, _ in found]
    if not choice and len(found) == 1:
        index = 0
    elif choice in places:
        index = places.index(choice)
    elif choice.isdecimal() and int(choice) < len(found):
        index = int(choice)
    elif choice:
        raise ConversionError(
            f"{where}: no optimizer state dict at {choice!r}; there are {some_names(places)}."
        )
    else:
        raise ConversionError(
            f"{where} holds the state of {len(found)} optimizers: {some_names(places)}.",
            hint=f"Convert one at a time: '{where}#{places[0]}', or '{where}#0' by its number.",
        )
    place, state_dict = found[index]
    return place, unflattened(state_dict) if is_flat(state_dict) else state_dict


def _state_dicts(
    value: Any, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield state dicts with their places; what is in ``seen`` is not looked into again."""
    if has_parts(value) or is_flat(value):
        yield ".".join(path), cast(Mapping[str, Any], value)
        return
    if len(path) == _MAX_DEPTH or id(value) in seen or not isinstance(value, dict | list | tuple):
        return
    seen.add(id(value))
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _state_dicts(child, (*path, str(key)), seen)
