"""The AdamW rule (Loshchilov and Hutter, 2019, algorithm 2), on float32 values.

m  = beta1 * m + (1 - beta1) * g
v  = beta2 * v + (1 - beta2) * g**2
p  = p * (1 - lr * weight_decay) - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luma_core.optim.rules.elementwise import ElementwiseRule

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdamWHyper:
    """The numbers one AdamW step of one parameter needs.

    Attributes:
        lr: learning rate, a float or a 0-d tensor.
        bias_correction1: ``1 - beta1**t``.
        bias_correction2: ``1 - beta2**t``.
        maximize: whether to ascend the objective.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float
    bias_correction2: float
    maximize: bool


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

    def hyper(self, group: Mapping[str, Any], step: int) -> AdamWHyper:
        """Return the numbers of step ``step`` (1 for the first) under a group's options."""
        beta1, beta2 = group["betas"]
        return AdamWHyper(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            bias_correction1=1.0 - beta1**step,
            bias_correction2=1.0 - beta2**step,
            maximize=group["maximize"],
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
        decayed = param * (1.0 - hyper.lr * hyper.weight_decay)
        return decayed.sub_(update.mul_(hyper.lr / hyper.bias_correction1))
