"""The QHAdamW rule (Ma and Yarats, 2019): Adam's means, each mixed with the gradient of the step.

d  = nu1 * m / (1 - beta1**t) + (1 - nu1) * g
r  = sqrt(nu2 * v / (1 - beta2**t) + (1 - nu2) * g**2)
p  = p * (1 - lr * weight_decay) - lr * d / (r + eps)

The authors' program stores both moments with their bias corrected. Here they are Adam's, and are
corrected where they are used: the values are the same, and so state is AdamW's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luma_core.rules.adam_family import AdamFamilyRule, Factors


class QHAdamWRule(AdamFamilyRule):
    """QHAdamW with decoupled weight decay."""

    required = frozenset({"betas", "eps", "nus"})

    def factors(self, group: Mapping[str, Any], step: int) -> Factors:
        beta1, beta2 = map(float, group["betas"])
        nu1, nu2 = map(float, group["nus"])
        correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
        mixed = nu2 < 1.0
        return Factors(
            rate_factor=1.0,
            # Of a root that is mixed with a gradient, the moment's part alone is corrected.
            root_factor=1.0 if mixed else 1.0 / math.sqrt(correction2),
            eps=float(group["eps"]),
            moment_share=nu1 / correction1,
            grad_share=1.0 - nu1,
            root_share=nu2 / correction2 if mixed else 1.0,
            square_share=1.0 - nu2,
        )
