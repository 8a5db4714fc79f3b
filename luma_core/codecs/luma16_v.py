"""LUMA's 16-bit codec of the second moment: a logarithmic grid of its square root.

The update uses v only through the preconditioner ``1 / (sqrt(v) + eps)``; coding ``sqrt(v)`` on a
logarithmic grid bounds the *relative* error of that preconditioner, whatever ``eps`` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Fields
from luma_core.codecs.loggrid import LogGridCodec
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

LARGEST_ROOT = 2.0**64 * (1 - 2.0**-10)
"""A value of every grid; the square of the next would not be finite in float32."""

SMALLEST_ROOT = 2.0**-74
"""No codec takes a second moment above 0 for one with a smaller root. The square of this is above 0
in float32, so what was above 0 stays above 0."""

SMALLEST_CODE = 512
"""No root above 0 has a smaller code.

The update divides the first moment by the root. Just after a spike, one step of the first moment's
grid may be 2 * 3.2 / 256 of the root of this code, and far more of smaller ones: rounding alone
would then make the quotient larger than any of Adam's.
"""


def correct_root(x: Tensor) -> Tensor:
    """Return the correctly rounded square roots of float32 ``x``.

    PyTorch's own may be one unit off, by backend and instruction set. Roots of 24-bit numbers lie
    far enough from where float32 rounds that those of float64 need not be exact for this.
    """
    return x.double().sqrt_().float()


@dataclass(frozen=True, kw_only=True)
class Luma16V(LogGridCodec):
    """16 bits of ``sqrt(v)``: 2048 steps per octave over 29 octaves, or 1024 over 61.

    ``codes`` holds the unsigned code in int16. With 29 octaves, the relative error of ``sqrt(v)``
    in one coding is at most 2**-11, and 1.5e-4 in the root mean square, above 2**-29 of the block's
    bound; stochastic rounding is unbiased in ``sqrt(v)``. A root above 0 is taken for 2**-31 of the
    bound (2**-62 with 61 octaves) or ``SMALLEST_ROOT`` at least, so it never decodes to 0.
    """

    name: ClassVar[str] = "luma16_v"
    positive: ClassVar[bool] = True
    signed: ClassVar[bool] = False
    top_code: ClassVar[int | None] = 30 << 11
    code_bits: ClassVar[int] = 16

    def fit(self, x: Tensor) -> Fields:
        """Return the exponent of each block's largest square root."""
        # The root of -0.0 is -0.0, which the grid does not take.
        return {"exponent": self.log_grid.fit(correct_root(x.amax(dim=-1, keepdim=True)).abs_())}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the codes of non-negative ``x``."""
        root = correct_root(x).contiguous()
        code = self.log_grid.encode(root.clamp(max=LARGEST_ROOT), fitted["exponent"], draw)
        # As a number, the bits of a root above 0 are larger than any code; those of 0 are 0.
        lowest = torch.minimum(root.view(torch.int32), self.lowest_code(fitted["exponent"]))
        code = torch.maximum(code, lowest)
        return {"codes": torch.where(code > 32767, code - 65536, code).to(torch.int16)}

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32."""
        code = self.magnitudes(fields["codes"])
        return self.log_grid.decode(code, fields["exponent"]).square_()

    def lowest_code(self, exponent: Tensor) -> Tensor:
        """Return the lowest code of a root above 0, int32, for blocks of stored exponents."""
        smallest = torch.full_like(exponent, SMALLEST_ROOT, dtype=torch.float32)
        return self.log_grid.encode(smallest, exponent, None).clamp_(min=SMALLEST_CODE)

    def magnitudes(self, codes: Tensor) -> Tensor:
        """Return the unsigned codes, int32."""
        return codes.to(torch.int32) & 0xFFFF
