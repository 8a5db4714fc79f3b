"""Groups of a state dict of PyTorch's layout: whether all is there, and names of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from luma_core.errors import StateMismatchError, some_names
from luma_core.state import GroupOptions

_SAME_GROUPS = (
    "Group the parameters as when the state was saved; with names on both sides, strict=False "
    "takes them from any groups."
)


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
