"""Which saved state goes where, and what of saved options is adopted."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luma_core.codecs import Codec, parameter_codecs
from luma_core.errors import StateMismatchError, some_names
from luma_core.naming import match_names, unwrapped
from luma_core.optim.options import ADAMW_KEYWORDS, KNOWN_OPTIONS
from luma_core.optim.state_io.owner import StateOwner
from luma_core.optim.state_io.saved_groups import under_own_names
from luma_core.optim.state_io.saved_options import (
    ADAMW,
    ALGORITHM_KEY,
    COUPLING,
    FOREIGN_MUON,
    MUON_OPTIONS,
    options_taken_over,
)
from luma_core.optim.state_io.sources import OwnParameter, Source
from luma_core.rules.registry import rule_of
from luma_core.state import GroupOptions, LoadReport

_NOT_ADOPTED = frozenset({"params", "param_names", ALGORITHM_KEY})
_ADAMW_ONLY = frozenset({*ADAMW_KEYWORDS, "decoupled_weight_decay"})
_OF_STORAGE = frozenset({"codecs", "parameter_codecs"})


@dataclass(frozen=True)
class Taken:
    """A parameter, and the saved state that it takes.

    Attributes:
        own: name, parameter and group; the name is the one that it will have.
        index: of the saved state; ``None`` where it starts fresh.
        options: of its group, under which its state is stored.
    """

    own: OwnParameter
    index: int | None
    options: Mapping[str, Any]

    @property
    def codecs(self) -> dict[str, Codec]:
        """The codec of each moment, as it will be stored."""
        name, param, _ = self.own
        return parameter_codecs(self.options, name, param.shape)


@dataclass(frozen=True)
class LoadPlan:
    """What loading will do.

    Attributes:
        taken: every parameter, group by group.
        adopted: the saved options that each group adopts; empty where it keeps its own.
        report: what found no counterpart.
        foreign: the algorithm of the state, if it is another one than the optimizer's.
    """

    taken: Sequence[Taken]
    adopted: Sequence[GroupOptions]
    report: LoadReport
    foreign: str | None


def _moments_of(algorithm: str) -> tuple[str, ...] | None:
    """Return the moments that an algorithm keeps; equal names have one meaning in all of them."""
    rule = rule_of({ADAMW: "adamw", FOREIGN_MUON: "muon"}.get(algorithm, algorithm))
    return None if rule is None else rule.moment_names


def plan_loading(
    optimizer: StateOwner, source: Source, *, strict: bool, rename: bool = False
) -> LoadPlan:
    """Match saved state with an optimizer's parameters, and saved groups with its groups.

    Parameters are matched by name where both sides have names, whatever wrappers these have
    (`luma_core.naming`), and by position otherwise.

    A group adopts the options of a saved group if it takes all of that one's parameters and no
    other's, leaving aside what is new or left out; without names, groups are matched by position.
    Of another algorithm's state it adopts what means the same in both. Else it keeps its own.

    Args:
        optimizer: that takes the state.
        source: the state.
        strict: whether every parameter and every saved state must have a counterpart of its shape.
        rename: whether parameters get their saved names.

    Raises:
        StateMismatchError: the state does not fit, or is of an algorithm with other moments.
    """
    foreign = None if source.algorithm == optimizer.algorithm else source.algorithm
    if foreign is not None and _moments_of(foreign) != optimizer.rule.moment_names:
        raise StateMismatchError(
            f"{source.where or 'load'}: state of {foreign!r} cannot be loaded into "
            f"{optimizer.algorithm!r}."
        )
    own = list(optimizer.parameters_by_name())
    by_name = (optimizer.named or not own) and source.named
    found = _by_name(optimizer, own, source, strict) if by_name else _by_position(optimizer, source)
    if not strict:
        found = [
            None if index is None or not source.fits(index, item) else index
            for item, index in zip(own, found, strict=True)
        ]
    names = _names(own, source, found) if rename else [name for name, _, _ in own]
    places = _places(optimizer, own)
    saved = (
        _saved_groups(optimizer, source, found, places) if by_name else range(len(source.groups))
    )
    taken_over = () if foreign is None else options_taken_over(optimizer.rule)
    naming = _Naming(own, names, source, found)
    adopted = [
        _adopted(
            group, None if index is None else source.groups[index], foreign, naming, taken_over
        )
        for group, index in zip(optimizer.param_groups, saved, strict=True)
    ]
    options = [
        {**group, **more} for group, more in zip(optimizer.param_groups, adopted, strict=True)
    ]
    taken = [
        Taken((name, param, group), index, options[place])
        for name, (_, param, group), index, place in zip(names, own, found, places, strict=True)
    ]
    taken = [_with_same_moments(item, source, strict=strict) for item in taken]
    found = [item.index for item in taken]
    return LoadPlan(taken, adopted, _report(own, source, found), foreign)


def _with_same_moments(item: Taken, source: Source, *, strict: bool) -> Taken:
    """Return what a parameter takes: nothing where other moments were saved, unless ``strict``.

    Raises:
        StateMismatchError: another rule of the optimizer stepped it, under ``strict``.
    """
    # What is stored as it is has no codecs that its group names, and is checked where it is loaded.
    if item.index is None or not source.has_state(item.index) or "codecs" not in item.options:
        return item
    saved, own = source.codecs(item.index, item.own), item.codecs
    if set(saved) == set(own):
        return item
    if not strict:
        return replace(item, index=None)
    raise StateMismatchError(
        f"{source.where or 'load'}: {item.own[0]!r} was saved with the moments "
        f"{', '.join(map(repr, saved))}; this optimizer keeps {', '.join(map(repr, own))} of it.",
        hint="Group the parameters as when the state was saved, or let such parameters start "
        "fresh with strict=False.",
    )


def _places(optimizer: StateOwner, own: Sequence[OwnParameter]) -> list[int]:
    """Return the index of each parameter's group."""
    indices = {id(group): index for index, group in enumerate(optimizer.param_groups)}
    return [indices[id(group)] for _, _, group in own]


def _by_name(
    optimizer: StateOwner, own: Sequence[OwnParameter], source: Source, strict: bool
) -> list[int | None]:
    names = [name for name, _, _ in own]
    matched = match_names(names, source.names)
    indices = {name: index for index, name in enumerate(source.names)}
    found = [indices[matched[name]] if name in matched else None for name in names]
    if strict and not len(matched) == len(names) == len(source.names):
        taken = set(matched.values())
        missing = sorted(name for name in names if name not in matched)
        unexpected = sorted(name for name in source.names if name not in taken)
        lacking, holding = (f" from {source.where}", " in it") if source.where else ("", "")
        raise StateMismatchError(
            f"the state has other names than the optimizer's{_first_difference(optimizer, source)}:"
            f" missing{lacking} {some_names(missing)}, unexpected{holding} "
            f"{some_names(unexpected)}.",
            hint="Build the optimizer over the same model as when the state was saved, or load "
            "what there is with strict=False.",
        )
    return found


def _first_difference(optimizer: StateOwner, source: Source) -> str:
    """Say where names begin to differ, for groups of the same sizes."""
    if source.sizes != [len(group["params"]) for group in optimizer.param_groups]:
        return ""
    rows = zip(source.members, source.names, optimizer.parameter_names(), strict=True)
    index, saved, own = next(row for row in rows if unwrapped(row[1]) != unwrapped(row[2]))
    return f" (saved parameter group {index} has {saved!r} where the optimizer has {own!r})"


def _by_position(optimizer: StateOwner, source: Source) -> list[int | None]:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if source.sizes == sizes:
        return list(range(len(source.names)))
    raise StateMismatchError(
        f"{source.where or 'the saved state'}: state of {len(source.names)} parameters; the "
        f"optimizer has {sum(sizes)}: without names on both sides, parameters are matched by "
        f"position, which needs groups of the same sizes: {_listed(source.sizes)} were saved, "
        f"{_listed(sizes)} are here.",
        hint="Group the parameters as when the state was saved, or build both optimizers over "
        "named_parameters().",
    )


def _listed(sizes: Sequence[int]) -> str:
    return str(sizes[:8])[:-1] + (", ...]" if len(sizes) > 8 else "]")


def _names(own: Sequence[OwnParameter], source: Source, found: Sequence[int | None]) -> list[str]:
    """Return the names that parameters will have: saved ones, where there are."""
    now = [name for name, _, _ in own]
    names = [
        name if index is None else source.names[index]
        for name, index in zip(now, found, strict=True)
    ]
    return names if len(set(names)) == len(names) else now


def _saved_groups(
    optimizer: StateOwner,
    source: Source,
    found: Sequence[int | None],
    places: Sequence[int],
) -> list[int | None]:
    """Return the saved group that each group is, leaving aside what is new or left out."""
    pairs = Counter(
        (place, source.members[index])
        for place, index in zip(places, found, strict=True)
        if index is not None
    )
    here = Counter(place for place, _ in pairs)
    there = Counter(saved for _, saved in pairs)
    of = {place: saved for place, saved in pairs if here[place] == there[saved] == 1}
    return [of.get(place) for place in range(len(optimizer.param_groups))]


class _Naming:
    """Which name of before is which of afterwards."""

    def __init__(
        self,
        own: Sequence[OwnParameter],
        names: Sequence[str],
        source: Source,
        found: Sequence[int | None],
    ) -> None:
        rows = list(zip((name for name, _, _ in own), names, found, strict=True))
        self.own = {before: name for before, name, _ in rows}
        self.fresh = {before: name for before, name, index in rows if index is None}
        self.saved = {source.names[index]: name for _, name, index in rows if index is not None}


def _adopted(
    group: Mapping[str, Any],
    saved: Mapping[str, Any] | None,
    foreign: str | None,
    naming: _Naming,
    taken_over: Collection[str],
) -> GroupOptions:
    """Return what a group adopts of a saved group, as copies."""
    own = under_own_names(group, naming.own)
    kept = {key: own[key] for key in own.keys() & {"parameter_codecs"}}
    if saved is None:
        return kept
    if foreign is not None:
        adopted = (*taken_over, *MUON_OPTIONS)
        shared = {key: saved[key] for key in adopted if key in saved and key in group}
        if COUPLING in taken_over:
            shared.setdefault(COUPLING, True)
        return copy.deepcopy({**kept, **_own_values(saved), **shared})
    options = {**_own_values(saved), **{key: saved[key] for key in saved.keys() & group.keys()}}
    if kept:
        fresh = under_own_names(group, naming.fresh)["parameter_codecs"]
        there = under_own_names(saved, naming.saved).get("parameter_codecs", {})
        options["parameter_codecs"] = {**fresh, **there}
    return copy.deepcopy({key: options[key] for key in options.keys() - _NOT_ADOPTED})


def _own_values(group: Mapping[str, Any]) -> GroupOptions:
    """Return what a user, or a scheduler, put into a group beside an optimizer's options."""
    known = KNOWN_OPTIONS | _ADAMW_ONLY | _OF_STORAGE | _NOT_ADOPTED
    return {key: value for key, value in group.items() if key not in known}


def _report(own: Sequence[OwnParameter], source: Source, found: Sequence[int | None]) -> LoadReport:
    pairs = [(name, index) for (name, _, _), index in zip(own, found, strict=True)]
    used = {index for index in found if index is not None}
    return LoadReport(
        new=tuple(name for name, index in pairs if index is None),
        missing=tuple(n for n, index in pairs if index is not None and not source.has_state(index)),
        left_out=tuple(name for index, name in enumerate(source.names) if index not in used),
    )
