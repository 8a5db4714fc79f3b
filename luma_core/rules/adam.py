"""The Adam rule (Kingma and Ba, 2015), with weight decay in the gradient or apart from it.

g  = g + weight_decay * p
m  = beta1 * m + (1 - beta1) * g
v  = beta2 * v + (1 - beta2) * g**2
p  = p - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

With ``decoupled_weight_decay`` it is AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luma_core.rules.adam_family import AdamFamilyRule, Factors


class AdamRule(AdamFamilyRule):
    """Adam, its weight decay coupled unless told otherwise."""

    torch_options = frozenset({"decoupled_weight_decay"})

    def factors(self, group: Mapping[str, Any], step: int) -> Factors:
        beta1, beta2 = map(float, group["betas"])
        return Factors(
            rate_factor=1.0 / (1.0 - beta1**step),
            root_factor=1.0 / math.sqrt(1.0 - beta2**step),
            eps=float(group["eps"]),
        )
