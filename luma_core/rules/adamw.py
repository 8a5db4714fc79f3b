"""The AdamW rule (Loshchilov and Hutter, 2019, algorithm 2), on float32 values.

m  = beta1 * m + (1 - beta1) * g
v  = beta2 * v + (1 - beta2) * g**2
p  = p * (1 - lr * weight_decay) - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

Where a codec of the moments is coarse, what ``lr`` is multiplied by is bounded: `update_limit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from luma_core.rules.base import MomentSpec, Values, Wide
from luma_core.rules.elementwise import ElementwiseRule

MOMENT_SPECS = (
    MomentSpec("exp_avg", "signed", 0, divided_by="exp_avg_sq"),
    MomentSpec("exp_avg_sq", "square", 1),
)
MOMENTS = tuple(spec.name for spec in MOMENT_SPECS)


@dataclass(frozen=True)
class AdamWHyper:
    """The numbers one AdamW step of one parameter needs.

    Attributes:
        lr: learning rate, a float or a 0-d tensor.
        bias_correction1: ``1 - beta1**t``.
        bias_correction2: ``1 - beta2**t``.
        maximize: whether to ascend the objective.
        limit: bound on the magnitude of an update before it is multiplied by ``lr``.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float
    bias_correction2: float
    maximize: bool
    limit: float = math.inf

    @property
    def decay(self) -> float | Tensor:
        """Factor on the parameter: decoupled weight decay."""
        return 1.0 - self.lr * self.weight_decay

    @property
    def rate(self) -> float | Tensor:
        """Factor on the update, the bias of the first moment corrected."""
        return self.lr / self.bias_correction1


@dataclass(frozen=True)
class AdamFormula:
    """``m_hat / (sqrt(v_hat) + eps)``: Adam's update.

    Attributes:
        correction1: ``1 - beta1**step``.
        correction2: ``1 - beta2**step``.
        eps: added to the root.
    """

    correction1: float
    correction2: float
    eps: float

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments that it takes."""
        return MOMENTS

    def apply(self, *moments: Values) -> Wide:
        first, second = moments
        with np.errstate(all="ignore"):
            root = np.sqrt(second.astype(np.float64) / self.correction2)
            update: Wide = first.astype(np.float64) / self.correction1 / (root + self.eps)
        return update


def adam_formula(group: Mapping[str, Any], step: int) -> AdamFormula | None:
    """Return Adam's update under a group's options; ``None`` without ``betas`` or ``eps``."""
    if not {"betas", "eps"} <= group.keys():
        return None
    # Before the first step nothing is biased yet, and the formula would divide by zero.
    steps = step if step > 0 else math.inf
    beta1, beta2 = group["betas"]
    return AdamFormula(1.0 - beta1**steps, 1.0 - beta2**steps, float(group["eps"]))


def update_limit(betas: tuple[float, float], *, coarse: bool) -> float:
    """Return the bound on an update's magnitude, in units of the learning rate.

    One gradient after many of zero moves an element of Adam by ``(1 - beta1) / sqrt(1 - beta2)``,
    and equal gradients move it by 1. The quotient of two moments that are stored coarsely can be
    many times that, by rounding alone: it is bounded by twice the larger of both.

    Args:
        betas: decay rates of the moments.
        coarse: whether a moment is stored by a coarse codec; if not, there is no bound.
    """
    beta1, beta2 = betas
    return 2.0 * max(1.0, (1.0 - beta1) / math.sqrt(1.0 - beta2)) if coarse else math.inf


def running_averages(
    grad: Tensor, moments: Mapping[str, Tensor], beta1: float, beta2: float
) -> dict[str, Tensor]:
    """Return Adam's new moments, float32 of the gradient's shape; the inputs stay unchanged."""
    exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
    return {
        "exp_avg": exp_avg.lerp(grad, 1.0 - beta1),
        "exp_avg_sq": (exp_avg_sq * beta2).addcmul_(grad, grad, value=1.0 - beta2),
    }


class AdamWRule(ElementwiseRule):
    """AdamW with decoupled weight decay."""

    moments = MOMENT_SPECS

    def update_formula(self, group: Mapping[str, Any], step: int) -> AdamFormula | None:
        return adam_formula(group, step)

    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> AdamWHyper:
        """Return the numbers of step ``step`` (1 for the first) under a group's options."""
        beta1, beta2 = map(float, group["betas"])
        return AdamWHyper(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            bias_correction1=1.0 - beta1**step,
            bias_correction2=1.0 - beta2**step,
            maximize=group["maximize"],
            limit=update_limit(group["betas"], coarse=coarse),
        )

    def update(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: AdamWHyper
    ) -> tuple[dict[str, Tensor], Tensor]:
        grad = -grad if hyper.maximize else grad
        new = running_averages(grad, moments, hyper.beta1, hyper.beta2)
        return new, self.update_of(new, hyper)

    @staticmethod
    def update_of(moments: Mapping[str, Tensor], hyper: AdamWHyper) -> Tensor:
        """Return the update of moments, float32 of their shape, in units of `AdamWHyper.rate`."""
        denominator = moments["exp_avg_sq"].sqrt()
        denominator.mul_(1.0 / math.sqrt(hyper.bias_correction2)).add_(hyper.eps)
        update = moments["exp_avg"] / denominator
        if hyper.limit < math.inf:
            bound = hyper.limit * hyper.bias_correction1
            update.clamp_(-bound, bound)
        return update
