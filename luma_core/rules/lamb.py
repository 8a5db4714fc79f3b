"""The LAMB rule (You et al., 2020, algorithm 2), on float32 values.

m  = beta1 * m + (1 - beta1) * g
v  = beta2 * v + (1 - beta2) * g**2
u  = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p
r  = ||p|| / ||u||, and 1 where either norm is 0
p  = p - lr * r * u

The norm of ``u`` must be known before the first element of ``p`` changes, so a step takes two
passes. The first codes and stores the moments and adds up the norms; the second computes ``u``
again and needs no gradient for it. Both take the moments *as they are stored*, so the ratio is that
of the update that is made. With float32 state this is LAMB itself. Blocks that are left untouched
do not count in either norm. Norms are sums that depend on no order (`norms`), so the ratio is the
same however the parameter is sharded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luma_core.rules.adamw import (
    MOMENT_SPECS,
    AdamFormula,
    adam_formula,
    running_averages,
    update_limit,
)
from luma_core.rules.base import ParameterStep, Reduction, Rule, Stages
from luma_core.rules.moments import MomentPass, param_draw, write_parameter
from luma_core.rules.norms import DIGITS, square_digits, total


@dataclass(frozen=True)
class LAMBHyper:
    """The numbers one LAMB step of one parameter needs.

    Attributes:
        lr: learning rate, a float or a tensor of one element.
        bias_correction1: ``1 - beta1**t``, or 1 without bias correction.
        bias_correction2: ``1 - beta2**t``, or 1 without bias correction.
        maximize: whether to ascend the objective.
        adapt: whether the trust ratio is used; it is 1 otherwise.
        trust_clip: whether the trust ratio is at most 1.
        limit: bound on the magnitude of Adam's update, before weight decay and the trust ratio.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float
    bias_correction2: float
    maximize: bool
    adapt: bool
    trust_clip: bool
    limit: float = math.inf


class LAMBRule(Rule):
    """LAMB: Adam's update with weight decay in it, scaled to its parameter's norm."""

    moments = MOMENT_SPECS
    reduces = True

    def update_formula(self, group: Mapping[str, Any], step: int) -> AdamFormula | None:
        return adam_formula(group, step)

    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> LAMBHyper:
        """Return the numbers of step ``step`` (1 for the first) under a group's options."""
        beta1, beta2 = map(float, group["betas"])
        corrected = group["bias_correction"]
        return LAMBHyper(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            bias_correction1=1.0 - beta1**step if corrected else 1.0,
            bias_correction2=1.0 - beta2**step if corrected else 1.0,
            maximize=group["maximize"],
            adapt=adapts(group),
            trust_clip=group["trust_clip"],
            limit=update_limit(group["betas"], coarse=coarse),
        )

    def update_moments(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: LAMBHyper
    ) -> tuple[dict[str, Tensor], None]:
        """Return the new moments, and no update yet: it is that of the moments as stored."""
        grad = -grad if hyper.maximize else grad
        return running_averages(grad, moments, hyper.beta1, hyper.beta2), None

    def update(self, param: Tensor, moments: Mapping[str, Tensor], hyper: LAMBHyper) -> Tensor:
        """Return ``u``, float32 of the parameter's shape; the inputs stay unchanged."""
        denominator = moments["exp_avg_sq"].sqrt()
        denominator.mul_(1.0 / math.sqrt(hyper.bias_correction2)).add_(hyper.eps)
        update = moments["exp_avg"] / denominator
        if hyper.limit < math.inf:
            bound = hyper.limit * hyper.bias_correction1
            update.clamp_(-bound, bound)
        return update.mul_(1.0 / hyper.bias_correction1).add_(param, alpha=hyper.weight_decay)

    def stages(self, item: ParameterStep) -> Stages:
        """Take one parameter's step in two passes, each tile by tile.

        Memory: about 20 float32 temporaries of one tile (`TILE_ELEMENTS`), and one byte per block.
        """
        hyper: LAMBHyper = item.hyper
        moments = MomentPass(self.moments, self.update_moments, item)
        yield from moments.measured()
        sums = torch.zeros(2, DIGITS, dtype=torch.int64, device=item.param.device)
        kept = []
        for part in moments:
            kept.append((part.tile, part.keep))
            if hyper.adapt:
                param = part.tile.read(item.param).float()
                now = {
                    name: item.moments[name].codec.decode(fields)
                    for name, fields in part.fields.items()
                }
                update = self.update(param, now, hyper)
                flat = part.tile.grid.flat
                for index, x in enumerate((param, update)):
                    sums[index] += square_digits(x, part.keep, flat=flat)
        if hyper.adapt:
            sums = (yield Reduction(sums.view(-1), "sum")).view(2, DIGITS)
        rate = (hyper.lr * trust_ratio(total(sums), hyper)).float()
        for tile, keep in kept:
            param = tile.read(item.param).float()
            now = {
                name: stored.codec.decode(stored.codec.read_tile(stored.fields, tile))
                for name, stored in item.moments.items()
            }
            change = self.update(param, now, hyper).mul_(rate)
            write_parameter(item, tile, param - change, keep, param_draw(item, tile))
        return moments.bad


def adapts(group: Mapping[str, Any]) -> bool:
    """Return whether a group's options ask for the trust ratio."""
    return bool(group["always_adapt"]) or float(group["weight_decay"]) != 0


def trust_ratio(square_sums: Tensor, hyper: LAMBHyper) -> Tensor:
    """Return ``r``.

    Args:
        square_sums: of the parameter's and of the update's elements, float64 ``[2]``.
        hyper: says whether the ratio is used and bounded.

    Returns:
        float64 0-d tensor on the same device.
    """
    param, update = square_sums.sqrt().unbind()
    ratio = torch.where((param > 0) & (update > 0), param / update, 1.0)
    return ratio.clamp(max=1.0) if hyper.trust_clip else ratio
