"""The Muon rule (Jordan et al., 2024) on matrices, and AdamW for all other parameters.

M  = mu * M + (1 - mu) * g
U  = mu * M + (1 - mu) * g        with Nesterov momentum; U = M without
O  = the iterations of `newton_schulz` on U
p  = p * (1 - lr * weight_decay) - lr * s * O

``U`` is made of the gradient and the new momentum, both float32, before that is coded, and rounded
once to bfloat16: 16 bits for each element go to the matrix's owner, and as many come back. ``s``
depends on the matrix's shape: `scale_of`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from luma_core.rules.adamw import AdamWRule
from luma_core.rules.base import (
    Applied,
    Gather,
    MomentSpec,
    ParameterStep,
    Rule,
    Stages,
    UpdateFormula,
)
from luma_core.rules.elementwise import apply_update
from luma_core.rules.moments import MomentPass, param_draw, write_parameter
from luma_core.rules.newton_schulz import Matrices, Orthogonalization, schedule

MOMENTUM = "momentum_buffer"
NEURON_VARIANCE = "neuron_variance"

SCALES = ("original", "match_rms_adamw", "spectral", "unit_rms_norm")
"""How far a matrix moves: see `scale_of`."""


@dataclass(frozen=True)
class MuonHyper:
    """The numbers one Muon step of one parameter needs.

    Attributes:
        lr: learning rate, a float or a tensor of one element.
        momentum: decay rate of the momentum.
        nesterov: whether the gradient is mixed in once more.
        weight_decay: decoupled weight decay.
        maximize: whether to ascend the objective.
        scale: how an update's size depends on the matrix's shape: one of `SCALES`.
        function: what makes matrices orthogonal.
    """

    lr: float | Tensor
    momentum: float
    nesterov: bool
    weight_decay: float
    maximize: bool
    scale: str
    function: Orthogonalization


@dataclass(frozen=True)
class _Rates:
    """Factors on a parameter and on its update."""

    decay: float | Tensor
    rate: float | Tensor


def scale_of(scale: str, rows: int, cols: int) -> float:
    """Return the factor on an orthogonal matrix.

    Args:
        scale: ``"original"``: ``sqrt(max(1, rows / cols))``; ``"match_rms_adamw"``:
            ``0.2 * sqrt(max(rows, cols))``, which moves elements about as far as AdamW does;
            ``"spectral"``: ``sqrt(max(rows, cols))``; ``"unit_rms_norm"``: ``sqrt(rows / cols)``.
        rows: of the matrix.
        cols: of the matrix.
    """
    if scale in ("original", "unit_rms_norm"):
        ratio = rows / max(cols, 1)
        return math.sqrt(ratio if scale == "unit_rms_norm" else max(1.0, ratio))
    return math.sqrt(max(rows, cols)) * (0.2 if scale == "match_rms_adamw" else 1.0)


@lru_cache(maxsize=256)
def _function(
    coefficients: str | tuple[tuple[float, ...], ...],
    steps: int | None,
    split_rows: int | None,
    eps: float,
    dtype: str,
    neuron_beta2: float | None,
) -> Orthogonalization:
    return Orthogonalization(
        schedule(coefficients, steps), Matrices(split_rows), eps, dtype, neuron_beta2 or 0.0
    )


class MuonRule(Rule):
    """Muon with decoupled weight decay.

    A block that is left untouched, since its momentum would not be finite, counts as zeros in its
    matrix.
    """

    moments: ClassVar[tuple[MomentSpec, ...]] = (MomentSpec(MOMENTUM, "signed", 0),)
    reduces = True
    gathers = True

    def for_group(self, group: Mapping[str, Any]) -> Rule:
        """Return AdamW's rule where ``use_muon`` is false."""
        if not group.get("use_muon", True):
            return _ADAMW
        return _MUON if group.get("neuron_beta2") is None else _NORMUON

    def update_formula(self, group: Mapping[str, Any], step: int) -> UpdateFormula | None:
        """Return AdamW's where that steps the group; a matrix's update is no sum over elements."""
        if group.get("use_muon", True):
            return None
        return _ADAMW.update_formula(group, step)

    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> MuonHyper:
        """Return the numbers of any step under a group's options."""
        coefficients, beta2 = group["ns_coefficients"], group["neuron_beta2"]
        if not isinstance(coefficients, str):
            coefficients = tuple(map(tuple, coefficients))
        return MuonHyper(
            lr=group["lr"],
            momentum=float(group["momentum"]),
            nesterov=group["nesterov"],
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
            scale=group["adjust_lr_fn"],
            function=_function(
                coefficients,
                group["ns_steps"],
                group["split_rows"],
                float(group["ns_eps"]),
                group["ns_dtype"],
                None if beta2 is None else float(beta2),
            ),
        )

    def update_momentum(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: MuonHyper
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the new momentum, and the elements of the matrix that is made orthogonal."""
        grad = -grad if hyper.maximize else grad
        new = moments[MOMENTUM].lerp(grad, 1.0 - hyper.momentum)
        return {MOMENTUM: new}, grad.lerp(new, hyper.momentum) if hyper.nesterov else new

    def stages(self, item: ParameterStep) -> Stages:
        """Take one parameter's step: momentum first, tile by tile, then the matrix, and apply it.

        Memory: 4 bytes per element of the part, with what the iterations take: about 16 bytes per
        element of the matrices in a batch.
        """
        hyper: MuonHyper = item.hyper
        first = replace(item, moments={MOMENTUM: item.moments[MOMENTUM]})
        moments = MomentPass(self.moments[:1], self.update_momentum, first)
        yield from moments.measured()
        matrix = torch.empty(item.param.shape, dtype=torch.bfloat16, device=item.param.device)
        kept = []
        for part in moments:
            kept.append((part.tile, part.keep))
            assert part.update is not None
            update = part.update
            if part.keep is not None:
                update = torch.where(part.keep, update, 0.0)
            part.tile.write(matrix, update.to(matrix.dtype))
        applied: Applied = yield Gather(matrix, hyper.function, self._variance(item))
        self._keep_variance(item, applied.beside)
        rates = self._rates(hyper, item.whole_shape or tuple(item.param.shape))
        for tile, keep in kept:
            old = tile.read(item.param).float()
            new = apply_update(old, tile.read(applied.values).float(), rates)
            write_parameter(item, tile, new, keep, param_draw(item, tile))
        return moments.bad

    @staticmethod
    def _rates(hyper: MuonHyper, shape: tuple[int, ...]) -> _Rates:
        _, rows, cols = hyper.function.matrices.of(shape)
        scale = scale_of(hyper.scale, rows, cols)
        return _Rates(1.0 - hyper.lr * hyper.weight_decay, hyper.lr * scale)

    def _variance(self, item: ParameterStep) -> Tensor | None:
        return None

    def _keep_variance(self, item: ParameterStep, new: Tensor | None) -> None:
        """Store what is beside the momentum: nothing."""


class NorMuonRule(MuonRule):
    """NorMuon (Li et al., 2025): rows of the orthogonal matrix are evened out by their variance.

    v  = beta2 * v + (1 - beta2) * mean(O**2)         the mean over each row
    O' = O / sqrt(v), scaled to the norm of O
    """

    moments = (*MuonRule.moments, MomentSpec(NEURON_VARIANCE, "square", 1))

    def _variance(self, item: ParameterStep) -> Tensor:
        return item.moments[NEURON_VARIANCE].fields["value"]

    def _keep_variance(self, item: ParameterStep, new: Tensor | None) -> None:
        assert new is not None
        item.moments[NEURON_VARIANCE].fields["value"].copy_(new)


_ADAMW = AdamWRule()
_MUON = MuonRule()
_NORMUON = NorMuonRule()
