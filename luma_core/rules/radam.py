"""The RAdam rule (Liu et al., 2020) as PyTorch has it: rectified where ``rho_t`` is above 5.

rho_inf = 2 / (1 - beta2) - 1
rho_t   = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
r       = sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t))
p       = p - lr / (1 - beta1**t) * r * sqrt(1 - beta2**t) * m / (sqrt(v) + eps)    with rho_t > 5
p       = p - lr / (1 - beta1**t) * m                                               before

``eps`` is added to the root as it is stored, whose bias is not corrected. The paper's bound is 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luma_core.rules.adam_family import AdamFamilyRule, Factors

RECTIFIED_FROM = 5.0
"""Above this ``rho_t`` the second moment is used."""


class RAdamRule(AdamFamilyRule):
    """RAdam, its weight decay coupled unless told otherwise."""

    torch_options = frozenset({"decoupled_weight_decay"})

    def factors(self, group: Mapping[str, Any], step: int) -> Factors:
        beta1, beta2 = map(float, group["betas"])
        correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
        longest = 2.0 / (1.0 - beta2) - 1.0
        length = longest - 2.0 * step * beta2**step / correction2
        if length <= RECTIFIED_FROM:
            return Factors(rate_factor=1.0 / correction1, root_factor=0.0, eps=1.0)
        rectified = (length - 4.0) * (length - 2.0) * longest
        rectified /= (longest - 4.0) * (longest - 2.0) * length
        return Factors(
            rate_factor=math.sqrt(rectified) * math.sqrt(correction2) / correction1,
            root_factor=1.0,
            eps=float(group["eps"]),
        )
