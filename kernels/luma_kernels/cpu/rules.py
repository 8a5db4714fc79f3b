"""The rules that the library knows: their numbers there, and what a step needs of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from luma_core.rules import AdamMiniRule, AdamWHyper, AdamWRule, LAMBHyper, LAMBRule, Rule
from luma_core.rules.adam import AdamRule
from luma_core.rules.adam_family import AdamFamilyHyper
from luma_core.rules.lion import LionHyper, LionRule
from luma_core.rules.nadamw import NAdamWRule
from luma_core.rules.qhadamw import QHAdamWRule
from luma_core.rules.radam import RAdamRule

ADAMW, LAMB, MINI, LION, FAMILY = range(5)
"""``RuleNumber`` of ``native.h``."""


class NativeRule(NamedTuple):
    """A rule of the library.

    Attributes:
        number: of the kernels that step its moments, where those are stored element by element.
        hyper: the class of a step's numbers, as `Rule.hyper` returns them.
        scalars: returns them in the order of the rule's own header.
    """

    number: int
    hyper: type
    scalars: Callable[[Any], Sequence[float]]


def _lerp(beta: float) -> tuple[float, bool]:
    """Return a weight, and whether it is counted from the gradient on, as torch.lerp does it."""
    weight = 1.0 - beta
    return (weight - 1.0, True) if weight >= 0.5 else (weight, False)


def _adam(hyper: AdamWHyper | LAMBHyper) -> tuple[float, ...]:
    return (
        *_lerp(hyper.beta1),
        hyper.beta2,
        1.0 - hyper.beta2,
        1.0 / math.sqrt(hyper.bias_correction2),
        hyper.eps,
    )


def _adamw_scalars(hyper: AdamWHyper) -> tuple[float, ...]:
    """Return the numbers of ``adamw.h``."""
    decay = float(1.0 - hyper.lr * hyper.weight_decay)
    rate = float(hyper.lr / hyper.bias_correction1)
    return *_adam(hyper), decay, rate, hyper.limit * hyper.bias_correction1


def _lamb_scalars(hyper: LAMBHyper) -> tuple[float, ...]:
    """Return the numbers of ``adamw.h``, without decay and rate, and those of ``LambScalar``."""
    return (
        *_adam(hyper),
        0.0,
        0.0,
        hyper.limit * hyper.bias_correction1,
        1.0 / hyper.bias_correction1,
        hyper.weight_decay,
        hyper.adapt,
        hyper.trust_clip,
        float(hyper.lr),
    )


def _lion_scalars(hyper: LionHyper) -> tuple[float, ...]:
    """Return the numbers of ``lion.h``."""
    return *_lerp(hyper.beta2), *_lerp(hyper.beta1), float(hyper.decay), float(hyper.rate)


def _family_scalars(hyper: AdamFamilyHyper) -> tuple[float, ...]:
    """Return the numbers of ``adamw.h``, and behind them those of ``family.h``."""
    factors = hyper.factors
    return (
        *_lerp(hyper.beta1),
        hyper.beta2,
        1.0 - hyper.beta2,
        factors.root_factor,
        factors.eps,
        float(hyper.decay),
        float(hyper.rate),
        hyper.limit,
        factors.moment_share,
        factors.grad_share,
        factors.root_share,
        factors.square_share,
        hyper.coupled_decay,
    )


_FAMILY = NativeRule(FAMILY, AdamFamilyHyper, _family_scalars)

RULES: dict[type[Rule], NativeRule] = {
    AdamWRule: NativeRule(ADAMW, AdamWHyper, _adamw_scalars),
    AdamMiniRule: NativeRule(ADAMW, AdamWHyper, _adamw_scalars),
    LAMBRule: NativeRule(LAMB, LAMBHyper, _lamb_scalars),
    LionRule: NativeRule(LION, LionHyper, _lion_scalars),
    AdamRule: _FAMILY,
    RAdamRule: _FAMILY,
    NAdamWRule: _FAMILY,
    QHAdamWRule: _FAMILY,
}

BY_HYPER: dict[type, NativeRule] = {rule.hyper: rule for rule in RULES.values()}
