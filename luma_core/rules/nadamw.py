"""The NAdamW rule: Nesterov's momentum in AdamW (Dozat, 2016), in two forms.

Without ``momentum_decay``, as Choi et al. (2019) tune it:

d  = beta1 * m + (1 - beta1) * g
p  = p * (1 - lr * weight_decay) - lr / (1 - beta1**t) * d / (sqrt(v / (1 - beta2**t)) + eps)

With it, as PyTorch's NAdam with decoupled weight decay:

mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay)),    P_t = mu_1 * ... * mu_t
d    = (1 - mu_t) / (1 - P_t) * g + mu_(t+1) / (1 - P_(t+1)) * m
p    = p * (1 - lr * weight_decay) - lr * d / (sqrt(v / (1 - beta2**t)) + eps)

PyTorch stores ``P_t`` as ``mu_product``. Here it is computed from the step, as the corrections of
bias are, so it needs no state, and state of AdamW goes on as that of a run of NAdamW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from luma_core.rules.adam_family import AdamFamilyRule, Factors

MOMENTUM_DECAY = "momentum_decay"
"""The option of the schedule; ``None`` where there is none."""

_NEGLIGIBLE = 1e-30
"""A product below this changes nothing when it is taken off 1."""


class NAdamWRule(AdamFamilyRule):
    """NAdamW with decoupled weight decay."""

    required = frozenset({"betas", "eps", MOMENTUM_DECAY})
    torch_options = frozenset({MOMENTUM_DECAY})

    def factors(self, group: Mapping[str, Any], step: int) -> Factors:
        beta1, beta2 = map(float, group["betas"])
        eps = float(group["eps"])
        root_factor = 1.0 / math.sqrt(1.0 - beta2**step)
        decay = group[MOMENTUM_DECAY]
        if decay is None:
            return Factors(
                rate_factor=1.0 / (1.0 - beta1**step),
                root_factor=root_factor,
                eps=eps,
                moment_share=beta1,
                grad_share=1.0 - beta1,
            )
        product = momentum_product(beta1, float(decay), step)
        following = momentum(beta1, float(decay), step + 1)
        return Factors(
            rate_factor=1.0,
            root_factor=root_factor,
            eps=eps,
            moment_share=following / (1.0 - product * following),
            grad_share=(1.0 - momentum(beta1, float(decay), step)) / (1.0 - product),
        )


def momentum(beta1: float, decay: float, step: int) -> float:
    """Return ``mu_t``."""
    return float(beta1 * (1.0 - 0.5 * 0.96 ** (step * decay)))


@lru_cache(maxsize=1024)
def momentum_product(beta1: float, decay: float, step: int) -> float:
    """Return ``P_t``, the product of ``mu`` from the first step to this one.

    Steps whose product is negligible are not multiplied: no more than some hundreds count.
    """
    product = 1.0
    for index in range(1, step + 1):
        product *= momentum(beta1, decay, index)
        if product < _NEGLIGIBLE:
            return 0.0
    return product
