"""What coding changed: in each moment, and in the update that the rule makes of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from luma_core.convert.base import MOMENTS, MomentError
from luma_core.rules.adamw import AdamFormula
from luma_core.rules.base import UpdateFormula
from luma_core.rules.registry import rule_of
from luma_core.state import GroupOptions, ParameterState

UPDATE = "update"

_PIECE_ELEMENTS = 1 << 16

_CHANGED = 0.1
"""Share of its value by which an element must change to be counted."""

_COARSE = 1e-3
"""Share of the squares from which on errors surely have something to count."""

_WRONG = 1.0
"""Relative error of the update from which on it is more wrong than right."""

_HUGE = 1e37
_SAFE = (1e-15, 1e15)
"""Largest values between which squares of errors worth telling fit into float32."""

_log = logging.getLogger(__name__)


class ErrorSums(NamedTuple):
    """What is added up of one moment, or the update: of a piece of a parameter, or all of it."""

    errors: float = 0.0
    squares: float = 0.0
    largest_error: float = 0.0
    largest: float = 0.0
    elements: int = 0
    zeroed: int = 0
    changed: int = 0


ErrorSumsByMoment = dict[tuple[str, str], ErrorSums]
"""By parameter, and moment or update."""


class CodingErrors:
    """Adds up what coding changed; a parameter that is coded twice counts once.

    A parameter is compared on a thread of its own while it is written, and never two at a time.

    Args:
        algorithm: whose state it is.
    """

    def __init__(self, algorithm: str = "adamw") -> None:
        self._rule = rule_of(algorithm)
        self._parts: ErrorSumsByMoment = {}
        self._thread = ThreadPoolExecutor(1, "luma-coding-errors")
        self._running: Future[None] | None = None

    def measure(
        self, state: ParameterState, moments: Mapping[str, Tensor], options: GroupOptions
    ) -> None:
        """Compare a coded parameter with the float32 ``moments`` it was made of.

        Args:
            state: the parameter.
            moments: what it was made of.
            options: its group's, with what the rule's update needs.
        """
        self._wait()
        formula = None if self._rule is None else self._rule.update_formula(options, state.step)
        self._running = self._thread.submit(self._measure, state, moments, formula)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None

    def _measure(
        self,
        state: ParameterState,
        moments: Mapping[str, Tensor],
        formula: UpdateFormula | None,
    ) -> None:
        pieces: dict[str, list[ErrorSums]] = {kind: [] for kind in (*moments, UPDATE)}
        got, want = (
            {name: x.reshape(-1).split(_PIECE_ELEMENTS) for name, x in values.items()}
            for values in ({name: state.decode(name) for name in moments}, moments)
        )
        for index, piece in enumerate(next(iter(want.values()))):
            if not piece.numel():
                continue
            coded, true = ({name: x[index] for name, x in part.items()} for part in (got, want))
            for name in moments:
                pieces[name].append(_compared(coded[name], true[name]))
            if formula is not None:
                pieces[UPDATE].append(_compared(_update(formula, coded), _update(formula, true)))
        for kind, parts in pieces.items():
            self._parts[state.name, kind] = _sum(parts)

    def parts(self) -> ErrorSumsByMoment:
        """Return the sums of each parameter measured so far."""
        self._wait()
        return dict(self._parts)

    def add(self, parts: ErrorSumsByMoment) -> None:
        """Count what another process measured."""
        self._parts |= parts

    def by_moment(self) -> dict[str, MomentError]:
        """Return the errors of all parameters measured so far."""
        self._wait()
        names = MOMENTS if self._rule is None else self._rule.moment_names
        seen = [kind for _, kind in self._parts if kind != UPDATE]
        return {moment: self._total(moment) for moment in dict.fromkeys((*names, *seen))}

    def update(self) -> MomentError:
        """Return the errors of all updates measured so far."""
        return self._total(UPDATE)

    def _total(self, kind: str) -> MomentError:
        self._wait()
        parts = [part for (_, key), part in self._parts.items() if key == kind]
        total = _sum(parts)
        return MomentError(
            math.sqrt(total.errors / total.squares) if total.squares else 0.0,
            max((p.largest_error / p.largest for p in parts if p.largest), default=0.0),
            elements=total.elements,
            zeroed=total.zeroed,
            changed=total.changed,
        )


def _update(formula: UpdateFormula, moments: Mapping[str, Tensor]) -> Tensor:
    values = [moments[name] for name in formula.moments]
    if isinstance(formula, AdamFormula):
        # In float32, and but for a factor that is the same for all elements.
        eps = max(formula.eps * math.sqrt(formula.correction2), 1e-30)
        return values[0] / values[1].sqrt().add_(eps)
    return torch.from_numpy(formula.apply(*(value.numpy() for value in values))).float()


def _compared(got: Tensor, want: Tensor) -> ErrorSums:
    """Compare a piece of decoded values with what they were."""
    largest = _magnitude(want)
    error = got - want
    largest_error = _magnitude(error)
    if not (math.isfinite(largest) and math.isfinite(largest_error)):
        return _compared(got.nan_to_num(), want.nan_to_num().clamp_(-_HUGE, _HUGE))
    errors, squares = _squares(error, largest_error), _squares(want, largest)
    zeroed = changed = 0
    # Counting takes longer than to find that there is nothing to count, as with 16 bits.
    if errors > _COARSE * squares or not _all_near(got, want):
        # NumPy counts and compares several times as fast.
        bound = want.abs().mul_(_CHANGED).numpy()
        moved = np.greater(error.abs_().numpy(), bound)
        changed = int(np.count_nonzero(moved))
        zeroed = int(np.count_nonzero(moved & np.equal(got.numpy(), 0))) if changed else 0
    return ErrorSums(errors, squares, largest_error, largest, want.numel(), zeroed, changed)


def _all_near(got: Tensor, want: Tensor) -> bool:
    """Whether no element changed by more than a tenth; False too where one was 0."""
    low, high = (float(end) for end in (got / want).aminmax())
    return 1 - _CHANGED < low <= high < 1 + _CHANGED


def _squares(x: Tensor, largest: float) -> float:
    """Return the sum of squares, in units of the largest where those do not fit into float32."""
    if not largest or _SAFE[0] < largest < _SAFE[1]:
        return float(torch.dot(x, x))
    share = x / largest
    return float(torch.dot(share, share)) * largest**2


def _magnitude(x: Tensor) -> float:
    low, high = x.aminmax()
    return max(-float(low), float(high))


def _sum(parts: Sequence[ErrorSums]) -> ErrorSums:
    if not parts:
        return ErrorSums()
    columns = list(zip(*parts, strict=True))
    return ErrorSums(
        math.fsum(columns[0]),
        math.fsum(columns[1]),
        max(columns[2]),
        max(columns[3]),
        *(sum(column) for column in columns[4:]),
    )


def warn_of_errors(errors: Mapping[str, MomentError], update: MomentError) -> None:
    """Warn where the next step would be far from the one that was coded."""
    second = errors.get("exp_avg_sq")
    if second is not None and second.zeroed:
        _log.warning(
            "%s of %s second moments became 0 that were not: their next steps can be far too "
            "large. Use a finer codec: fp32 changes nothing.",
            f"{second.zeroed:,}",
            f"{second.elements:,}",
        )
    if update.relative_rms > _WRONG:
        _log.warning(
            "The error of the next update is %.3g times the update: %s of %s elements change by "
            "more than a tenth. Use a finer codec: fp32 changes nothing.",
            update.relative_rms,
            f"{update.changed:,}",
            f"{update.elements:,}",
        )
