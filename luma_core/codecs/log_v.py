"""The n-bit codec of the second moment that keeps its spread: a logarithmic grid that stands still.

The grid of a block has ``2**bits`` levels, of which the topmost is ``2**E`` and ``2**b`` follow one
another in each octave below it. Like that of the 16-bit codecs it is float-like: evenly spaced
within an octave. So levels lie at the same places whatever ``E`` is, and half of them stay where
they are when ``b`` grows or shrinks by one. That matters, since a second moment changes by a
thousandth in a step: a grid that moved a little at every step would make each code a random walk.
``E`` and ``b`` therefore change only when the block's elements leave their window clearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Fields, FieldSpec
from luma_core.codecs.luma16_v import correct_root
from luma_core.codecs.packed import PackedCodec, pack, unpack
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

_BIAS = 80
"""Added to ``E``. Roots of float32 numbers lie from 2**-75 to 2**64; 0 marks a block of zeros."""

_SMALLEST = -74
"""The exponent of `SMALLEST_ROOT`, below which no level lies."""

_NONFINITE = 255
_INFINITY = 255 << 23
"""The bits of infinity; those of NaN are above."""

_CUT = 19
"""Bits of a float32 that are left out of its logarithm."""

_UNITS = 1 << 23 - _CUT
"""What an octave of the second moment counts in logarithms; one of the root counts twice that."""

_REACH_QUARTERS = 7
"""How far the window reaches below the top: quarters of the distance of top and mean."""

_TOP_SLACK = 5 * _UNITS // 2
_COARSER, _FINER = 1.1, 0.9


def _edge(exponent: Tensor) -> Tensor:
    """Return the logarithm of ``4**exponent``."""
    return (2 * exponent + 127) * _UNITS


@dataclass(frozen=True, kw_only=True)
class LogV(PackedCodec):
    """``2**bits`` levels of ``sqrt(v)``, ``2**mantissa`` to the octave, below a power of two.

    Fields: ``codes``; ``exponent``, uint8 per block, ``E + 80`` (0 for a block of zeros, 255 where
    an element is not finite); ``mantissa``, uint8 per block. Elements below the lowest level are
    taken for it; `fit` keeps that at `SMALLEST_ROOT` or above. Stochastic rounding is unbiased in
    ``sqrt(v)`` between levels.
    """

    name: ClassVar[str] = "log_v"
    positive: ClassVar[bool] = True
    signed: ClassVar[bool] = False

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes``, ``exponent`` and ``mantissa``."""
        return {
            "codes": self.code_field(shape),
            "exponent": self.block_field(shape, "uint8"),
            "mantissa": self.block_field(shape, "uint8"),
        }

    @property
    def top(self) -> int:
        """The topmost code."""
        return (1 << self.bits) - 1

    def fit(self, x: Tensor) -> Fields:
        """Return the window of each block's elements."""
        return self._fit(x, None)

    def refit(self, x: Tensor, previous: Fields) -> Fields:
        """Return the window of each block's elements: the previous one where it still fits."""
        return self._fit(x, previous)

    def limit(self, slack: float) -> float:
        """Return the widest window, times ``slack``: what `_fit` compares four needs with."""
        return 4.0 * 2 * _UNITS * self.top * slack

    def _fit(self, x: Tensor, previous: Fields | None) -> Fields:
        # A float's bits are its logarithm, and half of them that of its root.
        bits = x.abs().contiguous().view(torch.int32)
        largest = bits.amax(dim=-1, keepdim=True)
        sizes, top = bits >> _CUT, largest >> _CUT
        count = (sizes > 0).sum(dim=-1, keepdim=True)
        below = top * count - sizes.sum(dim=-1, keepdim=True)
        exponent = (((largest - 1) >> 23) - 125) >> 1
        if previous is not None:
            old = previous["exponent"].to(torch.int32) - _BIAS
            kept = (exponent <= old) & (top > _edge(old) - _TOP_SLACK)
            exponent = torch.where(kept & (previous["exponent"] > 0), old, exponent)
        need = (_edge(exponent) - top) * count * 4 + below * _REACH_QUARTERS
        mantissa = self._mantissa(need, count, 1.0)
        if previous is not None:
            coarsest = self._mantissa(need, count, _COARSER)
            finest = self._mantissa(need, count, _FINER)
            held = torch.minimum(
                torch.maximum(previous["mantissa"].to(torch.int32), finest), coarsest
            )
            mantissa = torch.where(previous["exponent"] > 0, held, mantissa)
        least = self.bits + 127 - ((exponent - _SMALLEST).float().view(torch.int32) >> 23)
        mantissa = torch.maximum(mantissa, least.clamp_(min=0)).clamp_(max=self.bits - 1)
        stored = torch.where(largest > 0, exponent + _BIAS, 0)
        return {
            "exponent": torch.where(largest < _INFINITY, stored, _NONFINITE).to(torch.uint8),
            "mantissa": torch.where(largest > 0, mantissa, 0).to(torch.uint8),
        }

    def _mantissa(self, need: Tensor, count: Tensor, slack: float) -> Tensor:
        """Return the largest ``b`` for which ``need * 2**b`` is within ``count`` windows.

        It is the difference of two floats' exponents, or one less where their mantissas say so.
        """
        window = (count.float() * self.limit(slack)).view(torch.int32)
        return (window - need.float().view(torch.int32)) >> 23

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the packed codes of non-negative ``x``."""
        mantissa = fitted["mantissa"].to(torch.int32)
        cut = 23 - mantissa
        place = correct_root(x).abs_().contiguous().view(torch.int32) - self._lowest(fitted)
        noise = (1 << 22) >> mantissa if draw is None else (draw << 7) >> mantissa
        place = torch.minimum(place.clamp_(min=0), self.top << cut)
        return {"codes": pack((place + noise) >> cut, self.bits)}

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32; not finite where the block was not."""
        codes = unpack(fields["codes"], self.bits)
        bits = (codes << (23 - fields["mantissa"].to(torch.int32))) + self._lowest(fields)
        roots = bits.clamp_(min=0).view(torch.float32)
        exponent = fields["exponent"]
        roots = torch.where(exponent == 0, 0.0, roots)
        return torch.where(exponent == _NONFINITE, torch.inf, roots).square_()

    def _lowest(self, fields: Fields) -> Tensor:
        """Return the bits of the lowest level of each block, int32.

        They are negative where a window of older versions reaches below all floats; such levels
        stand for 0.
        """
        top = (fields["exponent"].to(torch.int32) - _BIAS + 127) << 23
        return top - (self.top << (23 - fields["mantissa"].to(torch.int32)))

    def scales(self, fields: Fields) -> Tensor:
        """Return the topmost level of each block, float32."""
        exponent = fields["exponent"]
        top = torch.exp2((exponent.to(torch.int32) - _BIAS).float())
        return torch.where(exponent == _NONFINITE, torch.inf, torch.where(exponent > 0, top, 0.0))
