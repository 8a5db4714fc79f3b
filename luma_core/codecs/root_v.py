"""The n-bit codec of the second moment that floors it: an even grid of its square root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luma_core.codecs.base import Fields, FieldSpec, is_number_in
from luma_core.codecs.luma16_v import SMALLEST_ROOT, correct_root
from luma_core.codecs.packed import PackedCodec, pack, unpack
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

SMALLEST_FLOOR = 2.0**-10
"""Elements at a level of zero would take steps without bound."""

SMALLEST_SCALE = SMALLEST_ROOT / SMALLEST_FLOOR
"""Of a block that is not all zeros."""

LARGEST_RISE = 127
"""Less than an octave."""

_INFINITE = 0x7F80
"""The bits of infinity, bfloat16."""


@dataclass(frozen=True, kw_only=True)
class RootV(PackedCodec):
    """``sqrt(v)`` on ``2**bits`` even steps between ``floor`` and 1 times the block's largest.

    No element is taken for smaller than ``floor`` times the largest root of its block, so a step
    is never divided by a tiny denominator. Rounding is stochastic and unbiased in ``sqrt(v)``
    above the floor. The scale is bfloat16, rounded upwards: it stands still while the largest
    element decays, and the codes follow it.

    Attributes:
        floor: the lowest level, as a share of the block's largest root, from 2**-10 to below 1.
        rise: how far the scale may rise in one step, in units of the last place of bfloat16, of
            which an octave has 128; ``None`` for any distance. What is above is taken for the
            scale. So one huge gradient of one element does not raise the floor of all others until
            it has decayed, and gradients that stay large raise it in a few steps.
    """

    name: ClassVar[str] = "root_v"
    positive: ClassVar[bool] = True
    signed: ClassVar[bool] = False

    bits: int = 2
    floor: float = 0.25
    rise: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number_in(self.floor, SMALLEST_FLOOR) or self.floor >= 1:
            raise ConfigurationError(
                f"floor={self.floor!r} of codec {self.name} must be from 2**-10 to below 1.",
                hint="A level at zero would be divided by; LogV keeps small elements apart.",
            )
        if self.rise is not None and not is_number_in(self.rise, 1, LARGEST_RISE, kind=int):
            raise ConfigurationError(
                f"rise={self.rise!r} of codec {self.name} must be an integer from 1 to "
                f"{LARGEST_RISE}, or None."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return name and configuration as plain JSON values: no ``rise`` where there is none."""
        config = super().to_dict()
        if self.rise is None:
            del config["rise"]
        return config

    @property
    def step(self) -> float:
        """Distance of two levels, as a share of the block's largest root."""
        return (1.0 - self.floor) / ((1 << self.bits) - 1)

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes`` and ``scale``."""
        return {
            "codes": self.code_field(shape),
            "scale": self.block_field(shape, "bfloat16"),
        }

    def fit(self, x: Tensor) -> Fields:
        """Return the root of each block's largest element, rounded upwards to bfloat16.

        Where that is above 0 it is `SMALLEST_SCALE` at least, so that no level's square is 0.
        """
        root = correct_root(x.amax(dim=-1, keepdim=True)).abs_()
        root = torch.where(root > 0, root.clamp(min=SMALLEST_SCALE), root)
        bits = root.contiguous().view(torch.int32)
        upward = ((bits + 0xFFFF) & -65536).view(torch.float32)
        return {"scale": torch.where(torch.isfinite(root), upward, torch.inf).to(torch.bfloat16)}

    def refit(self, x: Tensor, previous: Fields) -> Fields:
        """Return the scale of each block, at most `rise` above the one that it has."""
        fitted = self.fit(x)
        if self.rise is None:
            return fitted
        # As integers, bfloat16 numbers above 0 are their own logarithms.
        old = previous["scale"].view(torch.int16)
        new = fitted["scale"].view(torch.int16)
        risen = torch.minimum(new, old + self.rise)
        held = torch.where((old > 0) & (new < _INFINITE), risen, new)
        return {"scale": held.view(torch.bfloat16)}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the packed codes of non-negative ``x``."""
        scale = fitted["scale"].float()
        per_scale = torch.where(scale > 0, 1.0 / scale, 0.0)
        place = (correct_root(x) * per_scale - self.floor) * (1.0 / self.step)
        noise = 0.5 if draw is None else draw.float() * 2.0**-16
        top = (1 << self.bits) - 1
        codes = place.clamp_(0.0, top).add_(noise).to(torch.int32)
        return {"codes": pack(codes.clamp_(0, top), self.bits)}

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32."""
        share = unpack(fields["codes"], self.bits).float().mul_(self.step).add_(self.floor)
        return share.mul_(fields["scale"].float()).square_()

    def scales(self, fields: Fields) -> Tensor:
        """Return the largest root of each block, float32."""
        return fields["scale"].float()
