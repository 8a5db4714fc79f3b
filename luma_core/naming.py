"""Parameters' names under wrappers: the one place that knows what wrapping a model adds to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile

from luma_core.errors import StateMismatchError, some_names

_PRIVATE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What ``torch.compile``, FSDP1 and activation checkpointing add; no model has such submodules."""

_MODULE = "module"
"""What ``DataParallel`` and DDP add; a model may have a submodule of that name."""

WRAPPERS = _PRIVATE | {_MODULE}
"""Parts of dotted names that wrappers add."""


def unwrapped(name: str) -> str:
    """Return a parameter's name without the parts that wrappers add, wherever they stand."""
    return _without(WRAPPERS, name)


def _without(parts: frozenset[str], name: str) -> str:
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if part not in parts), last])


def _as_it_is(names: Sequence[str]) -> list[str]:
    return list(names)


def without_private(names: Sequence[str]) -> list[str]:
    """Take off parts that no model has, wherever they stand."""
    return [_without(_PRIVATE, name) for name in names]


def without_root(names: Sequence[str]) -> list[str]:
    """Take off these, and ``module.`` as often as all names begin with it."""
    split = [name.split(".") for name in without_private(names)]
    counts = [sum(1 for _ in takewhile(_MODULE.__eq__, parts[:-1])) for parts in split]
    common = min(counts, default=0)
    return [".".join(parts[common:]) for parts in split]


def _without_any(names: Sequence[str]) -> list[str]:
    return [unwrapped(name) for name in names]


_READINGS: tuple[Callable[[Sequence[str]], list[str]], ...] = (
    _as_it_is,
    without_private,
    without_root,
    _without_any,
)
"""How names are compared, the closest to the letter first."""


def match_names(own: Sequence[str], saved: Sequence[str]) -> dict[str, str]:
    """Return which saved name is which of one's own, whatever wrappers each side has.

    Names are compared as they are, then without what wrappers add: parts that no model has, a
    ``module.`` that all begin with, and at last every known part. The reading that finds most
    counterparts decides for all names, and the first one of equals.

    Args:
        own: names, all different.
        saved: names, all different.

    Returns:
        Saved names by own ones, in the order of ``own``; names without counterpart are left out.

    Raises:
        StateMismatchError: names differ in nothing but wrappers' parts, so that it is not known
            which is which.
    """
    best: dict[str, str] = {}
    unclear: list[str] = []
    for read in _READINGS:
        mine, theirs = read(own), read(saved)
        by_key = dict(zip(theirs, saved, strict=True))
        counts_mine, counts_theirs = Counter(mine), Counter(theirs)
        pairs = [(name, key) for name, key in zip(own, mine, strict=True) if key in by_key]
        doubled = [name for name, key in pairs if counts_mine[key] + counts_theirs[key] > 2]
        if len({key for _, key in pairs}) <= len(best):
            continue
        if doubled:
            unclear = unclear or doubled
        else:
            best, unclear = {name: by_key[key] for name, key in pairs}, []
        if len(best) == min(len(own), len(saved)):
            break
    if unclear:
        raise StateMismatchError(
            f"without the parts that wrappers add, the names {some_names(unclear)} are those of "
            "other parameters as well, so it is not known whose state is whose.",
            hint="Wrap the model as it was when the state was saved.",
        )
    return best
