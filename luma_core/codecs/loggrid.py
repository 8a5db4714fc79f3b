"""The logarithmic grid of LUMA's 16-bit codecs: float-like, so that coding needs no logarithm.

A magnitude ``x`` of a block whose largest is at most ``2**E`` is measured in units of
``c = 2**(E - octaves)``, and the code is the leading bits of the binary representation of ``y``::

    y = x / c + max(x / c, 1) = 2**e * (1 + f)        code = (e + f) * 2**mantissa_bits, rounded

that is the logarithm to base 2, interpolated linearly within each octave: linear below ``c``,
logarithmic over ``octaves`` octaves above. Adding random bits below the last one kept and cutting
rounds stochastically, without any bias in the linear domain.

Three properties follow. Only the exponent ``E`` is stored per block, one byte: scaling by a power
of two is exact, and a float-like grid gains nothing from a finer scale. Every value of a grid lies
on the finer grids of smaller ``E`` too, so coding what was decoded changes no value. And decoding
is exact, coding rounds once, and both use a few integer and float operations and no logarithm, so
all backends compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Codec, Fields, FieldSpec
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

EXPONENT_NONFINITE = 254
"""Stored exponent of a block with a non-finite element; its unit is infinite."""

OCTAVES = (13, 29, 61)
"""Widths of the grid: a power of two less the linear octave, the topmost value and a spare one.

With 29 octaves and 10 mantissa bits a code is the IEEE half-precision number of its magnitude in
units of ``2**(E - 15)``, which hardware converts; the spare octave would be infinities and NaN.
"""

_ONE = 127 << 23


@dataclass(frozen=True)
class LogGrid:
    """A grid of non-negative magnitudes, coded from 0 to ``(octaves + 1) * 2**mantissa_bits``.

    A stored exponent is ``E + 126 - octaves``: the smallest, 0, makes the unit float32's smallest
    normal number.

    Attributes:
        octaves: logarithmic octaves above the unit, one of ``OCTAVES``.
        mantissa_bits: code bits within an octave.
    """

    octaves: int
    mantissa_bits: int

    def fit(self, largest: Tensor) -> Tensor:
        """Return the stored exponents, uint8, of blocks from their largest magnitudes, float32."""
        # One less than the bits of a power of two falls into the octave below: a ceiling of log2.
        ceiling = ((largest.contiguous().view(torch.int32) - 1) >> 23) - 126
        bias = 126 - self.octaves
        stored = (ceiling + bias).clamp_(0, 128 + bias)
        return torch.where(torch.isfinite(largest), stored, EXPONENT_NONFINITE).to(torch.uint8)

    def bound(self, exponent: Tensor) -> Tensor:
        """Return ``2**E``, float32, of stored exponents: no magnitude of the block is larger."""
        bound = torch.exp2((exponent.to(torch.int32) - (126 - self.octaves)).float())
        return torch.where(exponent == EXPONENT_NONFINITE, torch.inf, bound)

    def encode(self, x: Tensor, exponent: Tensor, draw: Tensor | None) -> Tensor:
        """Return the codes of magnitudes, int32.

        Args:
            x: non-negative float32 ``[..., n]``.
            exponent: stored exponents, uint8 ``[..., 1]``.
            draw: random bits, int32 of the shape of ``x`` in ``[0, 65535]``, of which the highest
                ``23 - mantissa_bits`` are used; ``None`` rounds to nearest. Where that is more than
                16, the bits below are those of one half, so that the mean is right.
        """
        cut = 23 - self.mantissa_bits
        per_unit = ((253 - exponent.to(torch.int32)).clamp_(min=0) << 23).view(torch.float32)
        units = x * per_unit
        bits = units.add_(units.clamp(min=1.0)).view(torch.int32)
        if draw is None:
            noise: Tensor | int = 1 << (cut - 1)
        elif cut <= 16:
            noise = draw >> (16 - cut)
        else:
            noise = (draw << (cut - 16)) + (1 << (cut - 17))
        bits = bits.sub_(_ONE).add_(noise)
        return bits.bitwise_right_shift_(cut).clamp_(0, (self.octaves + 1) << self.mantissa_bits)

    def round_down_below(self, x: Tensor, exponent: Tensor, root: Tensor) -> Tensor:
        """Round toward zero, in the linear octaves, where ``root`` lies in the lowest of them.

        Args:
            x: float32 ``[..., n]``, of either sign.
            exponent: stored exponents, uint8 ``[..., 1]``.
            root: float32 of the shape of ``x``; what is not 0 or more changes nothing.
        """
        stored = exponent.to(torch.int32)
        unit = ((stored + 1) << 23).view(torch.float32)
        per_step = ((253 - stored).clamp_(min=0) << 23).view(torch.float32)
        steps = 2.0**self.mantissa_bits
        rounded = (x * per_step * steps).trunc_().mul_(1.0 / steps).mul_(unit)
        below = (root >= 0) & (root < unit) & (x.abs() < unit * 2) & (stored < 254)
        return torch.where(below, rounded, x)

    def decode(self, code: Tensor, exponent: Tensor) -> Tensor:
        """Return the magnitudes of codes, float32; not finite where the block was not.

        Args:
            code: int32 ``[..., n]``.
            exponent: stored exponents, uint8 ``[..., 1]``.
        """
        unit = ((exponent.to(torch.int32) + 1) << 23).view(torch.float32)
        y = ((code << (23 - self.mantissa_bits)) + _ONE).view(torch.float32)
        return y.sub_((y * 0.5).clamp_(min=1.0)).mul_(unit)


@dataclass(frozen=True, kw_only=True)
class LogGridCodec(Codec):
    """Stores ``codes`` (int16 of the moment's shape) and ``exponent`` (uint8 per block).

    Attributes:
        octaves: width of the grid, 13, 29 or 61: each widening costs one bit of precision.
            ``None`` picks 29 with blocks, and 61 with one scale per tensor, where magnitudes
            spread further.
    """

    code_bits: ClassVar[int]

    octaves: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.octaves is None:
            object.__setattr__(self, "octaves", 61 if self.block_size is None else 29)
        elif self.octaves not in OCTAVES:
            raise ConfigurationError(
                f"octaves={self.octaves!r} of codec {self.name} must be one of "
                f"{', '.join(map(str, OCTAVES))}, or None."
            )

    @cached_property
    def log_grid(self) -> LogGrid:
        """The grid of magnitudes."""
        octaves = self.octaves or 0
        return LogGrid(octaves, self.code_bits - (octaves + 2).bit_length())

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes`` and ``exponent``."""
        return {
            "codes": FieldSpec("int16", tuple(shape)),
            "exponent": FieldSpec("uint8", self.grid(shape).block_shape(), 1),
        }

    def scales(self, fields: Fields) -> Tensor:
        """Return the bound of each block's magnitudes, a power of two, float32."""
        return self.log_grid.bound(fields["exponent"])
