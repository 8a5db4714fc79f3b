"""A moment in 8-bit floats (E4M3) relative to its block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Codec, Fields, FieldSpec
from luma_core.codecs.loggrid import LogGrid
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

_LARGEST = 2.0**128 * (1 - 2.0**-4)
"""A value of every grid; the next would not be finite in float32."""


@dataclass(frozen=True, kw_only=True)
class FP8E4M3(Codec):
    """Fields ``codes`` (uint8 of the moment's shape) and ``exponent`` (uint8 per block).

    A code is the bit pattern of a ``torch.float8_e4m3fn`` number: the logarithmic grid of 14
    octaves with 8 steps each is E4M3's up to 256, the code of a block's bound ``2**E``. So a value
    is ``codes.view(torch.float8_e4m3fn).float() * 2**(E - 8)``, where ``exponent`` stores
    ``E + 112``. A power of two scales exactly, and a float format gains nothing from a finer scale.

    Codes are made by integer arithmetic, so the format needs no hardware that knows it, and every
    backend rounds alike. The relative error is at most 2**-3 with random rounding and 2**-4 to
    nearest, above 2**-14 of the block's bound; below, the error is at most 2**-17 of the bound.
    """

    name: ClassVar[str] = "fp8_e4m3"
    coarse: ClassVar[bool] = True
    top_code: ClassVar[int | None] = 15 << 3
    log_grid: ClassVar[LogGrid] = LogGrid(octaves=14, mantissa_bits=3)
    """The grid of magnitudes."""

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes`` and ``exponent``."""
        return {
            "codes": FieldSpec("uint8", tuple(shape)),
            "exponent": FieldSpec("uint8", self.grid(shape).block_shape(), 1),
        }

    def fit(self, x: Tensor) -> Fields:
        """Return the exponent of each block's largest magnitude."""
        return {"exponent": self.log_grid.fit(x.abs().amax(dim=-1, keepdim=True))}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the codes of ``x``, unbiased with random draws."""
        code = self.log_grid.encode(x.abs().clamp_(max=_LARGEST), fitted["exponent"], draw)
        return {"codes": torch.where(x < 0, code + 128, code).to(torch.uint8)}

    def round_down_below(self, x: Tensor, fitted: Fields, root: Tensor) -> Tensor:
        """Return ``x``, rounded toward zero where ``root`` is below the grid's unit."""
        return self.log_grid.round_down_below(x, fitted["exponent"], root)

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32."""
        codes = fields["codes"]
        size = self.log_grid.decode(self.magnitudes(codes), fields["exponent"])
        return torch.where(codes > 127, -size, size)

    def magnitudes(self, codes: Tensor) -> Tensor:
        """Return the magnitude codes, int32."""
        return codes.to(torch.int32) & 0x7F

    def scales(self, fields: Fields) -> Tensor:
        """Return the bound of each block's magnitudes, a power of two, float32."""
        return self.log_grid.bound(fields["exponent"])
