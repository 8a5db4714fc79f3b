"""What Adam's relatives share: Adam's two moments, and an update that differs by a few factors.

g  = g + coupled_decay * p
m  = beta1 * m + (1 - beta1) * g
v  = beta2 * v + (1 - beta2) * g**2
d  = moment_share * m + grad_share * g
r  = sqrt(v), or with a square_share sqrt(root_share * v + square_share * g**2)
p  = p * (1 - lr * weight_decay) - lr * rate_factor * d / (root_factor * r + eps)

A rule says what the factors of a step are: `AdamFamilyRule.factors`. So all of them take one
kernel, and their state is AdamW's. Where a codec of the moments is coarse, the quotient is bounded
as `luma_core.rules.adamw.update_limit` bounds AdamW's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from luma_core.rules.adamw import MOMENT_SPECS, MOMENTS, running_averages, update_limit
from luma_core.rules.base import Values, Wide
from luma_core.rules.elementwise import ElementwiseRule

_LONG_AGO = 1 << 40
"""Steps after which nothing is biased any more."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What makes a rule of Adam's family this one, for one step; see the head of this file.

    Attributes:
        rate_factor: of the update, beside ``lr``.
        root_factor: of the root.
        eps: added to the root.
        moment_share: of the first moment in the update.
        grad_share: of the gradient in the update.
        root_share: of the second moment in the square of the root.
        square_share: of the gradient's square in the square of the root.
    """

    rate_factor: float
    root_factor: float
    eps: float
    moment_share: float = 1.0
    grad_share: float = 0.0
    root_share: float = 1.0
    square_share: float = 0.0


@dataclass(frozen=True)
class AdamFamilyHyper:
    """The numbers one step of one parameter needs.

    Attributes:
        lr: learning rate, a float or a 0-d tensor.
        weight_decay: decoupled weight decay.
        coupled_decay: weight decay that is added to the gradient (L2).
        factors: the rule's own.
        maximize: whether to ascend the objective.
        limit: bound on the quotient that ``lr * rate_factor`` is multiplied by.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    weight_decay: float
    coupled_decay: float
    factors: Factors
    maximize: bool
    limit: float = math.inf

    @property
    def decay(self) -> float | Tensor:
        """Factor on the parameter: decoupled weight decay."""
        return 1.0 - self.lr * self.weight_decay

    @property
    def rate(self) -> float | Tensor:
        """Factor on the quotient."""
        return self.lr * self.factors.rate_factor


@dataclass(frozen=True)
class FamilyFormula:
    """The update of stored moments in a step whose gradient is zero, in units of ``lr``."""

    factors: Factors

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments that it takes."""
        return MOMENTS

    def apply(self, *moments: Values) -> Wide:
        first, second = (moment.astype(np.float64) for moment in moments)
        now = self.factors
        with np.errstate(all="ignore"):
            divisor = np.sqrt(second * now.root_share) * now.root_factor + now.eps
            update: Wide = first * (now.moment_share * now.rate_factor) / divisor
        return update


class AdamFamilyRule(ElementwiseRule):
    """A rule that keeps Adam's moments.

    Attributes:
        required: options of a group that its factors depend on.
    """

    moments = MOMENT_SPECS
    required: ClassVar[frozenset[str]] = frozenset({"betas", "eps"})

    @abstractmethod
    def factors(self, group: Mapping[str, Any], step: int) -> Factors:
        """Return the factors of step ``step`` (1 for the first) under a group's options."""

    def update_formula(self, group: Mapping[str, Any], step: int) -> FamilyFormula | None:
        if not self.required <= group.keys():
            return None
        # Before the first step nothing is biased yet, and factors would divide by zero.
        return FamilyFormula(self.factors(group, step if step > 0 else _LONG_AGO))

    def hyper(
        self, group: Mapping[str, Any], step: int, *, coarse: bool = False
    ) -> AdamFamilyHyper:
        """Return the numbers of step ``step`` (1 for the first) under a group's options."""
        beta1, beta2 = map(float, group["betas"])
        factors = self.factors(group, step)
        decay = float(group["weight_decay"])
        coupled = not group.get("decoupled_weight_decay", True)
        return AdamFamilyHyper(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0 if coupled else decay,
            coupled_decay=decay if coupled else 0.0,
            factors=factors,
            maximize=group["maximize"],
            limit=quotient_limit((beta1, beta2), factors, step) if coarse else math.inf,
        )

    def gradient(
        self, grad: Tensor, read_param: Callable[[], Tensor], hyper: AdamFamilyHyper
    ) -> Tensor:
        grad = -grad if hyper.maximize else grad
        return grad + read_param() * hyper.coupled_decay if hyper.coupled_decay else grad

    @staticmethod
    def averages(
        grad: Tensor, moments: Mapping[str, Tensor], hyper: AdamFamilyHyper
    ) -> dict[str, Tensor]:
        """Return the new moments, float32 of the gradient's shape; the inputs stay unchanged."""
        return running_averages(grad, moments, hyper.beta1, hyper.beta2)

    def update(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: AdamFamilyHyper
    ) -> tuple[dict[str, Tensor], Tensor]:
        factors = hyper.factors
        new = self.averages(grad, moments, hyper)
        root = new["exp_avg_sq"].sqrt()
        if factors.square_share:
            own = (grad * grad).mul_(factors.square_share)
            root = (root * root).mul_(factors.root_share).add_(own).sqrt()
        divisor = root.mul_(factors.root_factor).add_(factors.eps)
        update = new["exp_avg"] * factors.moment_share
        if factors.grad_share:
            update = update.add_(grad * factors.grad_share)
        update = update.div_(divisor)
        if hyper.limit < math.inf:
            update.clamp_(-hyper.limit, hyper.limit)
        return new, update


def quotient_limit(betas: tuple[float, float], factors: Factors, step: int) -> float:
    """Return the bound on the quotient of an update, where a moment is stored coarsely.

    The first moment's part is bounded as AdamW's update is, and the gradient's by twice what it is
    after gradients of zero. A quotient that is not divided by the second moment has no bound.
    """
    beta1, beta2 = betas
    if not factors.root_factor * factors.root_share:
        return math.inf
    correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
    moment = update_limit(betas, coarse=True) * correction1
    grad = 2.0 * math.sqrt(correction2 / (1.0 - beta2))
    # Both are of a root whose bias is corrected.
    root = factors.root_factor * math.sqrt(factors.root_share * correction2)
    return (factors.moment_share * moment + factors.grad_share * grad) / root
