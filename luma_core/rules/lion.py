"""The Lion rule (Chen et al., 2023, algorithm 2), on float32 values.

c  = beta1 * m + (1 - beta1) * g
p  = p * (1 - lr * weight_decay) - lr * sign(c)
m  = beta2 * m + (1 - beta2) * g

The sign of 0 is 0, so an element that never had a gradient is moved by weight decay alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from luma_core.rules.base import MomentSpec, Values, Wide
from luma_core.rules.elementwise import ElementwiseRule


@dataclass(frozen=True)
class LionHyper:
    """The numbers one Lion step of one parameter needs.

    Attributes:
        lr: learning rate, a float or a 0-d tensor.
        beta1: weight of the moment in the update.
        beta2: weight of the moment in the new moment.
        weight_decay: decoupled weight decay.
        maximize: whether to ascend the objective.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    weight_decay: float
    maximize: bool

    @property
    def decay(self) -> float | Tensor:
        """Factor on the parameter: decoupled weight decay."""
        return 1.0 - self.lr * self.weight_decay

    @property
    def rate(self) -> float | Tensor:
        """Factor on the update."""
        return self.lr


class SignFormula:
    """The sign of the moment: what a step without gradient would do."""

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments that it takes."""
        return LionRule().moment_names

    def apply(self, *moments: Values) -> Wide:
        return np.sign(moments[0].astype(np.float64))


class LionRule(ElementwiseRule):
    """Lion with decoupled weight decay."""

    moments = (MomentSpec("exp_avg", "signed", 0),)

    def update_formula(self, group: Mapping[str, Any], step: int) -> SignFormula:
        return SignFormula()

    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> LionHyper:
        """Return the numbers of any step under a group's options."""
        beta1, beta2 = map(float, group["betas"])
        return LionHyper(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
        )

    def update(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: LionHyper
    ) -> tuple[dict[str, Tensor], Tensor]:
        grad = -grad if hyper.maximize else grad
        exp_avg = moments["exp_avg"]
        update = exp_avg.lerp(grad, 1.0 - hyper.beta1).sign_()
        return {"exp_avg": exp_avg.lerp(grad, 1.0 - hyper.beta2)}, update
