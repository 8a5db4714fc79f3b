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
from typing import ClassVar

import torch
from torch import Tensor

from luma_core.codecs.base import Fields, FieldSpec
from luma_core.codecs.luma16_v import correct_root
from luma_core.codecs.packed import PackedCodec, pack, unpack

_BIAS = 80
"""Added to ``E``. Roots of float32 numbers lie from 2**-75 to 2**64; 0 marks a block of zeros."""

_NONFINITE = 255
_OCTAVE = 1 << 23
_INFINITY = 255 << 23
"""The bits of infinity; those of NaN are above."""

_SPREAD = 8
"""Fraction bits that are left out of logarithms before they are summed."""

_REACH = 1.75
"""How far the window reaches below the top, as a multiple of the distance of top and mean."""

_TOP_SLACK = _OCTAVE + _OCTAVE // 4
_COARSER, _FINER = 1.1, 0.9


@dataclass(frozen=True, kw_only=True)
class LogV(PackedCodec):
    """``2**bits`` levels of ``sqrt(v)``, ``2**mantissa`` to the octave, below a power of two.

    Fields: ``codes``; ``exponent``, uint8 per block, ``E + 80`` (0 for a block of zeros, 255 where
    an element is not finite); ``mantissa``, uint8 per block. Elements below the lowest level are
    taken for it. Stochastic rounding is unbiased in ``sqrt(v)`` between levels.
    """

    name: ClassVar[str] = "log_v"
    signed: ClassVar[bool] = False

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes``, ``exponent`` and ``mantissa``."""
        return {
            "codes": self.code_field(shape),
            "exponent": self.block_field(shape, torch.uint8),
            "mantissa": self.block_field(shape, torch.uint8),
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

    def _fit(self, x: Tensor, previous: Fields | None) -> Fields:
        bits = correct_root(x).abs_().contiguous().view(torch.int32)
        largest = bits.amax(dim=-1, keepdim=True)
        count = (bits > 0).sum(dim=-1, keepdim=True).clamp_(min=1)
        mean = (bits >> _SPREAD).sum(dim=-1, keepdim=True) // count << _SPREAD
        exponent = ((largest - 1) >> 23) - 126
        if previous is not None:
            old = previous["exponent"].to(torch.int32) - _BIAS
            kept = ((exponent <= old) & (largest > ((old + 127) << 23) - _TOP_SLACK)) & (
                previous["exponent"] > 0
            )
            exponent = torch.where(kept, old, exponent)
        need = (((exponent + 127) << 23) - largest) + ((largest - mean).float() * _REACH).int()
        mantissa = self._mantissa(need, 1.0)
        if previous is not None:
            old_mantissa = previous["mantissa"].to(torch.int32)
            coarsest = self._mantissa(need, _COARSER)
            finest = self._mantissa(need, _FINER)
            held = torch.minimum(torch.maximum(old_mantissa, finest), coarsest)
            mantissa = torch.where(previous["exponent"] > 0, held, mantissa)
        stored = torch.where(largest > 0, exponent + _BIAS, 0)
        return {
            "exponent": torch.where(largest < _INFINITY, stored, _NONFINITE).to(torch.uint8),
            "mantissa": torch.where(largest > 0, mantissa, 0).to(torch.uint8),
        }

    def _mantissa(self, need: Tensor, slack: float) -> Tensor:
        """Return the largest ``b`` whose window, times ``slack``, holds ``need`` bits."""
        b = torch.zeros_like(need)
        for candidate in range(1, self.bits):
            window = int((self.top * _OCTAVE >> candidate) * slack)
            b = torch.where(need <= window, candidate, b)
        return b

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

        They are negative where a wide window reaches below all floats; such levels stand for 0.
        """
        top = (fields["exponent"].to(torch.int32) - _BIAS + 127) << 23
        return top - (self.top << (23 - fields["mantissa"].to(torch.int32)))

    def scales(self, fields: Fields) -> Tensor:
        """Return the topmost level of each block, float32."""
        exponent = fields["exponent"]
        top = torch.exp2((exponent.to(torch.int32) - _BIAS).float())
        return torch.where(exponent == _NONFINITE, torch.inf, torch.where(exponent > 0, top, 0.0))
