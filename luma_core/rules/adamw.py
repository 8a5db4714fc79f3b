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

from torch import Tensor

from luma_core.rules.elementwise import ElementwiseRule

MOMENTS = ("exp_avg", "exp_avg_sq")


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

    moments = MOMENTS

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

    def update_moments(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: AdamWHyper
    ) -> dict[str, Tensor]:
        """Return the new moments, float32 of the gradient's shape; the inputs stay unchanged."""
        grad = -grad if hyper.maximize else grad
        return running_averages(grad, moments, hyper.beta1, hyper.beta2)

    def update_parameter(
        self, param: Tensor, moments: Mapping[str, Tensor], hyper: AdamWHyper
    ) -> Tensor:
        """Return the new parameter, float32; the inputs stay unchanged."""
        denominator = moments["exp_avg_sq"].sqrt()
        denominator.mul_(1.0 / math.sqrt(hyper.bias_correction2)).add_(hyper.eps)
        update = moments["exp_avg"] / denominator
        if hyper.limit < math.inf:
            bound = hyper.limit * hyper.bias_correction1
            update.clamp_(-bound, bound)
        decayed = param * (1.0 - hyper.lr * hyper.weight_decay)
        return decayed.sub_(update.mul_(hyper.lr / hyper.bias_correction1))
