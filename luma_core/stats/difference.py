"""Two optimizer states side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from luma_core.naming import match_names
from luma_core.rules.base import UpdateFormula, Wide
from luma_core.state import ParameterState, StateSource
from luma_core.stats.report import ErrorStats, MomentDiff, ParameterDiff, StateDiff, TotalDiff
from luma_core.stats.tiles import (
    MomentTile,
    Progress,
    choose,
    moment_tiles,
    update_formula,
)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def diff(
    a: StateSource,
    b: StateSource,
    *,
    pattern: str | None = None,
    progress: Progress | None = None,
) -> StateDiff:
    """Compare two optimizer states, parameter by parameter in bounded memory.

    Names match under the wrappers that ``load_state_dict`` sees through as well
    (``torch.compile``, DDP, FSDP); what is reported has its name in ``a``.

    Args:
        a: an optimizer or an opened checkpoint; errors are relative to its values.
        b: another one.
        pattern: shell pattern that chooses parameters by name; ``None`` takes all.
        progress: called with the number of parameters done and chosen, after each of them.

    Raises:
        CheckpointError: a source is a checkpoint that cannot be read.
        StateMismatchError: names differ in nothing but wrappers' parts.
    """
    names_a, names_b = a.parameter_names(), b.parameter_names()
    pairs = match_names(names_a, names_b)
    matched_b = set(pairs.values())
    chosen = choose(names_a, pattern)
    common = [name for name in chosen if name in pairs]
    only_in_a = tuple(name for name in chosen if name not in pairs)
    only_in_b = tuple(name for name in choose(names_b, pattern) if name not in matched_b)
    groups_a, groups_b = a.group_options(), b.group_options()
    total = _Pair()
    parameters = []
    for done, name in enumerate(common, start=1):
        state_a, state_b = a.parameter_state(name), b.parameter_state(pairs[name])
        formulas = (
            update_formula(a.algorithm, state_a, groups_a),
            update_formula(b.algorithm, state_b, groups_b),
        )
        parameters.append(_parameter(state_a, state_b, formulas, total))
        if progress is not None:
            progress(done, len(common))
    identical = sum(entry.identical for entry in parameters)
    return StateDiff(
        identical=not only_in_a and not only_in_b and identical == len(parameters),
        total=TotalDiff(
            parameters=len(parameters),
            identical_parameters=identical,
            update=total.update.result(),
            moments=total.moment_results(),
        ),
        parameters=tuple(parameters),
        only_in_a=only_in_a,
        only_in_b=only_in_b,
    )


class _Error:
    """Collects `ErrorStats`."""

    def __init__(self) -> None:
        self.elements = self.nonfinite = self.differing = 0
        self.square_sum = self.error_square_sum = 0.0
        self.max = self.error_max = 0.0
        self.element_max: float | None = None

    def add(self, a: Wide, b: Wide) -> None:
        finite = np.isfinite(a) & np.isfinite(b)
        self.elements += a.size
        self.nonfinite += a.size - int(np.count_nonzero(finite))
        size, error = np.abs(a[finite]), np.abs(b[finite] - a[finite])
        if not size.size:
            return
        self.differing += int(np.count_nonzero(error))
        self.square_sum += float(np.square(size).sum())
        self.error_square_sum += float(np.square(error).sum())
        self.max = max(self.max, float(size.max()))
        self.error_max = max(self.error_max, float(error.max()))
        nonzero = size > 0
        if nonzero.any():
            worst = float((error[nonzero] / size[nonzero]).max())
            self.element_max = max(self.element_max or 0.0, worst)

    def merge(self, other: _Error) -> None:
        self.elements += other.elements
        self.nonfinite += other.nonfinite
        self.differing += other.differing
        self.square_sum += other.square_sum
        self.error_square_sum += other.error_square_sum
        self.max = max(self.max, other.max)
        self.error_max = max(self.error_max, other.error_max)
        if other.element_max is not None:
            self.element_max = max(self.element_max or 0.0, other.element_max)

    def result(self) -> ErrorStats:
        compared = self.elements > self.nonfinite
        return ErrorStats(
            elements=self.elements,
            nonfinite=self.nonfinite,
            differing=self.differing,
            relative_rms=_ratio(math.sqrt(self.error_square_sum), math.sqrt(self.square_sum))
            if compared
            else None,
            relative_max=_ratio(self.error_max, self.max) if compared else None,
            element_max=self.element_max,
        )


def _ratio(error: float, size: float) -> float | None:
    if size == 0.0:
        return 0.0 if error == 0.0 else None
    return error / size


class _MomentPair:
    """Collects a `MomentDiff`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.codecs_a: set[str] = set()
        self.codecs_b: set[str] = set()
        self.error = _Error()
        self.codes = self.codes_differing = 0

    def add(self, a: MomentTile, b: MomentTile) -> None:
        self.error.add(a.values.astype(np.float64), b.values.astype(np.float64))
        codes_a, codes_b = a.codes, b.codes
        if a.codec == b.codec and codes_a is not None and codes_b is not None:
            self.codes += codes_a.numel()
            self.codes_differing += int((codes_a != codes_b).sum())

    def merge(self, other: _MomentPair) -> None:
        self.codecs_a |= other.codecs_a
        self.codecs_b |= other.codecs_b
        self.error.merge(other.error)
        self.codes += other.codes
        self.codes_differing += other.codes_differing

    def result(self) -> MomentDiff:
        return MomentDiff(
            moment=self.name,
            codec_a="+".join(sorted(self.codecs_a)),
            codec_b="+".join(sorted(self.codecs_b)),
            error=self.error.result(),
            codes_differ_share=self.codes_differing / self.codes if self.codes else None,
        )


class _Pair:
    """Collects the differences of the update and of all moments."""

    def __init__(self) -> None:
        self.update = _Error()
        self.moments: dict[str, _MomentPair] = {}

    def moment(self, name: str) -> _MomentPair:
        return self.moments.setdefault(name, _MomentPair(name))

    def merge(self, other: _Pair) -> None:
        self.update.merge(other.update)
        for name, pair in other.moments.items():
            self.moment(name).merge(pair)

    def moment_results(self) -> tuple[MomentDiff, ...]:
        return tuple(pair.result() for pair in self.moments.values())


def _parameter(
    a: ParameterState,
    b: ParameterState,
    formulas: tuple[UpdateFormula | None, UpdateFormula | None],
    total: _Pair,
) -> ParameterDiff:
    pair = _Pair()
    reason = _incomparable(a, b)
    identical = (a.shape, a.step, a.noise_key, a.nonfinite, a.codecs) == (
        (b.shape, b.step, b.noise_key, b.nonfinite, b.codecs)
    )
    if reason is None:
        identical = identical and _same_others(a, b)
        for name in a.moments:
            moment = pair.moment(name)
            moment.codecs_a.add(a.codecs[name].name)
            moment.codecs_b.add(b.codecs[name].name)
        for tile_a, tile_b in moment_tiles(a, b):
            for name, part in tile_a.items():
                pair.moment(name).add(part, tile_b[name])
                identical = identical and _same_bits(part, tile_b[name])
            if formulas[0] is not None and formulas[1] is not None:
                pair.update.add(_update(formulas[0], tile_a), _update(formulas[1], tile_b))
        total.merge(pair)
    return ParameterDiff(
        name=a.name,
        step_a=a.step,
        step_b=b.step,
        identical=identical,
        not_compared=reason,
        update=pair.update.result(),
        moments=pair.moment_results(),
    )


def _update(formula: UpdateFormula, tile: Mapping[str, MomentTile]) -> Wide:
    return formula.apply(*(tile[moment].values for moment in formula.moments))


def _incomparable(a: ParameterState, b: ParameterState) -> str | None:
    if a.shape != b.shape:
        return f"a has shape {list(a.shape)}, b has {list(b.shape)}"
    if a.codecs.keys() != b.codecs.keys():
        have_a, have_b = (", ".join(sorted(x.codecs)) or "no state" for x in (a, b))
        return f"a has {have_a}; b has {have_b}"
    return None


def _same_others(a: ParameterState, b: ParameterState) -> bool:
    """Return whether tensors that are no moments have the same bits."""
    others = a.codecs.keys() - a.moments.keys()
    pairs = ((a.moment_fields(name), b.moment_fields(name)) for name in others)
    return all(
        torch.equal(_bits(value.reshape(-1)), _bits(there[key].reshape(-1)))
        for here, there in pairs
        for key, value in here.items()
    )


def _same_bits(a: MomentTile, b: MomentTile) -> bool:
    return all(torch.equal(_bits(part), _bits(b.fields[name])) for name, part in a.fields.items())


def _bits(x: Tensor) -> Tensor:
    return x.view(_BITS[x.element_size()])
