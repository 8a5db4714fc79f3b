"""Newton-Schulz iterations: what is nearest to a matrix among those with singular values of 1.

X = M / |M|_F, and then, for every triple of coefficients:
A = X X^T;  X = a X + (b A + c A A) X

Each step applies the polynomial ``a x + b x**3 + c x**5`` to all singular values. Tall matrices
are transposed before. Sources of the coefficients: Jordan et al., 2024 (``keller``); Amsel et al.,
2025, arXiv:2505.16932, algorithm 1, each polynomial but the last for values up to 1.01
(``polar_express``); DeepSeek-V4 (``deepseek``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[float, float, float]

_KELLER: Triple = (3.4445, -4.7750, 2.0315)
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_MARGIN = 1.01

SCHEDULES: dict[str, tuple[Triple, ...]] = {
    "keller": (_KELLER,) * 5,
    "polar_express": (
        *((a / _MARGIN, b / _MARGIN**3, c / _MARGIN**5) for a, b, c in _POLAR_EXPRESS),
        (1.875, -1.25, 0.375),
    ),
    "deepseek": (*(_KELLER,) * 8, *((2.0, -1.5, 0.5),) * 2),
}
"""Coefficients by name, one triple for each step."""

DEFAULT_STEPS = {"keller": 5, "polar_express": 5, "deepseek": 10}

NS_DTYPES = ("auto", "bfloat16", "float32")
"""Dtypes of the products: ``"auto"`` is bfloat16 on GPUs, and float32 on others, most of which have
no fast products in bfloat16."""

NEURON_EPS = 1e-10


def schedule(
    coefficients: str | Sequence[Sequence[float]], steps: int | None
) -> tuple[Triple, ...]:
    """Return the coefficients of each step.

    Args:
        coefficients: a name of `SCHEDULES`, or triples.
        steps: how many; the last triple is repeated. ``None`` for the name's usual number, or for
            as many as there are triples.
    """
    if isinstance(coefficients, str):
        known, usual = SCHEDULES[coefficients], DEFAULT_STEPS[coefficients]
    else:
        known = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
        usual = len(known)
    count = usual if steps is None else steps
    return (*known[:count], *known[-1:] * (count - len(known)))


@dataclass(frozen=True)
class Matrices:
    """Which matrices a parameter is.

    Two dimensions are one matrix, three are a batch of them (experts), and of more all but the
    first are one: those of a convolution.

    Attributes:
        split_rows: rows of each part of a matrix that is a matrix of its own, such as a head's;
            ``None`` for all.
    """

    split_rows: int | None = None

    def of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return number, rows and columns of the matrices of a parameter of ``shape``."""
        count, rows, cols = shape if len(shape) == 3 else (1, shape[0], math.prod(shape[1:]))
        if self.split_rows is None:
            return count, rows, cols
        return count * (rows // self.split_rows), self.split_rows, cols


@dataclass(frozen=True)
class Orthogonalization:
    """Makes matrices orthogonal, and with neurons' variance evens out their rows: NorMuon.

    Attributes:
        coefficients: of each step.
        matrices: which matrices a parameter is.
        eps: what a matrix's norm is taken for at least.
        dtype: of the products: one of `NS_DTYPES`.
        neuron_beta2: decay rate of the variance of each row, where that is kept.
    """

    coefficients: tuple[Triple, ...]
    matrices: Matrices
    eps: float
    dtype: str = "auto"
    neuron_beta2: float = 0.0

    def cost(self, shape: tuple[int, ...]) -> int:
        """Return about how many multiplications the iterations take."""
        count, rows, cols = self.matrices.of(shape)
        return count * min(rows, cols) * rows * cols

    def apply(self, values: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return bfloat16 matrices that are nearly orthogonal, and the new variances.

        Args:
            values: bfloat16 ``[batch, *shape]``.
            beside: variances of rows, float32 ``[batch, rows]``, or ``None`` without them.
        """
        if not values.numel():
            return values, beside
        _, rows, cols = self.matrices.of(tuple(values.shape[1:]))
        found = newton_schulz(
            values.reshape(-1, rows, cols).to(self._dtype(values)), self.coefficients, self.eps
        )
        if beside is not None:
            found, new = _evened(found.float(), beside.view(-1, rows, 1), self.neuron_beta2)
            beside = new.view_as(beside)
        return found.to(values.dtype).reshape(values.shape), beside

    def _dtype(self, values: Tensor) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if values.is_cuda else torch.float32
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def newton_schulz(x: Tensor, coefficients: Sequence[Triple], eps: float) -> Tensor:
    """Return matrices whose singular values are near 1, or 0 where they were.

    Args:
        x: float ``[matrices, rows, cols]``; float32 of 1e-19 to 1e19, or 0.
        coefficients: of each step.
        eps: what a norm is taken for at least.
    """
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    # Row by row, so that threads do not share one sum, which would depend on their number.
    squares = x.float().square().sum(dim=2).sum(dim=1)
    x = x / squares.sqrt().to(x.dtype).clamp(min=eps)[:, None, None]
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _evened(x: Tensor, variance: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """Return rows divided by the roots of their variances, at the matrix's old norm, and those."""
    new = variance.lerp(x.square().mean(dim=2, keepdim=True), 1.0 - beta2)
    scaled = x / (new.sqrt() + NEURON_EPS)
    norms = [y.square().sum(dim=2).sum(dim=1).sqrt() for y in (x, scaled)]
    return scaled * (norms[0] / (norms[1] + NEURON_EPS))[:, None, None], new
