"""The rules that the library knows: their numbers there, and what a step needs of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from luma_core.rules import AdamMiniRule, AdamWHyper, AdamWRule, LAMBHyper, LAMBRule, Rule
from luma_core.rules.lion import LionHyper, LionRule

ADAMW, LAMB, MINI, LION = range(4)
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


RULES: dict[type[Rule], NativeRule] = {
    AdamWRule: NativeRule(ADAMW, AdamWHyper, _adamw_scalars),
    AdamMiniRule: NativeRule(ADAMW, AdamWHyper, _adamw_scalars),
    LAMBRule: NativeRule(LAMB, LAMBHyper, _lamb_scalars),
    LionRule: NativeRule(LION, LionHyper, _lion_scalars),
}

BY_HYPER: dict[type, NativeRule] = {rule.hyper: rule for rule in RULES.values()}
