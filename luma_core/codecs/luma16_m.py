"""LUMA's 16-bit codec of the first moment: a signed logarithmic grid relative to its block."""

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

LARGEST = 2.0**128 * (1 - 2.0**-10)
"""A value of every grid; the next would not be finite in float32."""


@dataclass(frozen=True, kw_only=True)
class Luma16M(LogGridCodec):
    """A sign bit and 15 bits of magnitude: 1024 steps per octave over 29 octaves, or 512 over 61.

    With 29 octaves, the relative error of one coding is at most 2**-10, and 2.9e-4 in the root mean
    square, above 2**-29 of the block's bound; below, the error is at most 2**-39 of the bound.
    """

    name: ClassVar[str] = "luma16_m"
    top_code: ClassVar[int | None] = 30 << 10
    code_bits: ClassVar[int] = 15

    def fit(self, x: Tensor) -> Fields:
        """Return the exponent of each block's largest magnitude."""
        return {"exponent": self.log_grid.fit(x.abs().amax(dim=-1, keepdim=True))}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the codes of ``x``, unbiased with random draws."""
        size = x.abs().clamp_(max=LARGEST)
        code = self.log_grid.encode(size, fitted["exponent"], draw)
        return {"codes": torch.where(x < 0, code - 32768, code).to(torch.int16)}

    def round_down_below(self, x: Tensor, fitted: Fields, root: Tensor) -> Tensor:
        """Return ``x``, rounded toward zero where ``root`` is below the grid's unit."""
        return self.log_grid.round_down_below(x, fitted["exponent"], root)

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32."""
        codes = fields["codes"]
        size = self.log_grid.decode(self.magnitudes(codes), fields["exponent"])
        return torch.where(codes < 0, -size, size)

    def magnitudes(self, codes: Tensor) -> Tensor:
        """Return the magnitude codes, int32."""
        return codes.to(torch.int32) & 0x7FFF
