"""CoState, a codec of the first moment in one bit per element: blocks in three tiers of energy.

CoState was described for a residual ``d = m - a * g`` with ``a = <m, g> / <g, g>``. Decoding that
takes the gradient that ``m`` was coded with, which is gone when the next step decodes it and which
no checkpoint has; with the next gradient in its place, ``m`` is wrong by ``a`` times the difference
of the two. So this codec takes ``m`` itself for the residual. With independent gradients and
``beta1 = 0.9`` that leaves in 19% of the energy which the projection would have taken out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Fields, FieldSpec, is_number_in
from luma_core.codecs.packed import LARGEST_BFLOAT16, PackedCodec, pack, unpack
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

GROUP_BLOCKS = 64
"""Blocks of a row that are ranked together; the last group of a row may be smaller."""

_LARGEST_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class CoStateM(PackedCodec):
    """A sign for each element, and for each block a scale that depends on its tier.

    Blocks are ranked by their mean magnitude, as bfloat16 holds it, within groups of 64 blocks of a
    row. Of a group's ``n`` blocks the lowest ``round(null_pct * n)`` are *null* and decode to zero;
    those from rank ``round(amp_pct * n)`` on are *amplitude* and decode to plus or minus their own
    mean magnitude; the others are *phase* and decode to plus or minus the mean magnitude of all
    phase blocks of the group. Blocks as large as the lowest or the highest phase block are phase
    too, and blocks of zeros are null.

    Groups lie within rows, so slices of rows code like the whole. Every block stores the scale it
    decodes with, as bfloat16, zero for null: blocks stay independent of each other once coded.

    Attributes:
        bits: always 1.
        block_size: a power of two from 8 to 4096, so that groups never cross a tile.
        null_pct: share of a group's blocks that are null, 0 to 1.
        amp_pct: share of a group's blocks below the amplitude tier, ``null_pct`` to 1.
        feedback: above 0, what coding loses is kept, as bfloat16 for each element, and this share
            of it is added to the next value before that is coded. For a running average with decay
            ``beta1`` that share is ``beta1``: then the codes are those of the exact average, while
            a share of 1 adds up and runs away. The state takes 17 bits per element.
    """

    name: ClassVar[str] = "costate_m"
    rounds: ClassVar[bool] = False
    bit_choices: ClassVar[tuple[int, ...]] = (1,)

    bits: int = 1
    null_pct: float = 0.10
    amp_pct: float = 0.90
    feedback: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.block_size or 0
        if size & (size - 1) or size > _LARGEST_BLOCK:
            raise ConfigurationError(
                f"block_size={size!r} of codec {self.name} must be a power of two from 8 to "
                f"{_LARGEST_BLOCK}.",
                hint="Use 128.",
            )
        if not is_number_in(self.null_pct, 0, 1):
            raise ConfigurationError(
                f"null_pct={self.null_pct!r} of codec {self.name} must be a number from 0 to 1."
            )
        if not is_number_in(self.amp_pct, self.null_pct, 1):
            raise ConfigurationError(
                f"amp_pct={self.amp_pct!r} of codec {self.name} must be a number from "
                f"null_pct={self.null_pct!r} to 1."
            )
        if not is_number_in(self.feedback, 0) or self.feedback >= 1:
            raise ConfigurationError(
                f"feedback={self.feedback!r} of codec {self.name} must be from 0 to below 1.",
                hint="Use the decay rate of the moment.",
            )

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes``, ``scale`` and, with feedback, ``error``."""
        fields = {
            "codes": self.code_field(shape),
            "scale": self.block_field(shape, "bfloat16"),
        }
        if self.feedback:
            fields["error"] = FieldSpec("bfloat16", tuple(shape))
        return fields

    def fit(self, x: Tensor) -> Fields:
        """Return the scale each block decodes with; infinite where an element is not finite."""
        groups = x.split(GROUP_BLOCKS, dim=1)
        return {"scale": torch.cat([self._group_scales(group) for group in groups], dim=1)}

    def refit(self, x: Tensor, previous: Fields) -> Fields:
        """Return the scales of ``x`` with the error that was kept, and that error."""
        if not self.feedback:
            return self.fit(x)
        error = previous["error"]
        return {**self.fit(self._fed(x, error)), "error": error}

    def _fed(self, x: Tensor, error: Tensor) -> Tensor:
        return x + self.feedback * error.float()

    def _group_scales(self, x: Tensor) -> Tensor:
        """Return the scales of one group in each row, bfloat16 ``[rows, blocks, 1]``.

        Padding of a row's last block must not dilute its mean, so zeros do not count.
        """
        finite = torch.isfinite(x).all(dim=-1, keepdim=True)
        size = torch.where(finite, x, 0.0).abs()
        largest = size.amax(dim=(1, 2), keepdim=True)
        size = size / torch.where(largest > 0, largest, 1.0)
        count = (size > 0).sum(dim=-1, keepdim=True)
        total = size.sum(dim=-1, keepdim=True)
        own = _stored(total / count.clamp(min=1) * largest)
        null, amplitude = self._tiers(own)
        phase = ~(null | amplitude)
        phase_count = (count * phase).sum(dim=1, keepdim=True).clamp(min=1)
        shared = _stored((total * phase).sum(dim=1, keepdim=True) / phase_count * largest)
        scale = torch.where(amplitude, own, torch.where(null, 0.0, shared))
        return torch.where(finite, scale, torch.inf)

    def _tiers(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return which blocks of ``[rows, blocks, 1]`` mean magnitudes are null and amplitude."""
        ranked = own.sort(dim=1).values
        blocks = own.shape[1]
        first_phase = math.floor(self.null_pct * blocks + 0.5)
        last_phase = max(math.ceil(self.amp_pct * blocks - 0.5), first_phase) - 1
        null = own == 0
        if first_phase:
            lowest = ranked[:, first_phase : first_phase + 1] if first_phase < blocks else torch.inf
            null |= own < lowest
        amplitude = ~null
        if last_phase >= first_phase:
            amplitude &= own > ranked[:, last_phase : last_phase + 1]
        return null, amplitude

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the packed signs and, with feedback, what they and the scales leave out."""
        if "error" in fitted:
            x = self._fed(x, fitted["error"])
        negative = (x < 0) & (fitted["scale"] != 0)
        fields = {"codes": pack(negative.to(torch.int32), self.bits)}
        if self.feedback:
            lost = x - self.decode({**fitted, **fields})
            fields["error"] = lost.to(torch.bfloat16)
        return fields

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32; not finite where the block was not."""
        sign = 1.0 - 2.0 * unpack(fields["codes"], self.bits)
        return sign * fields["scale"].float()

    def scales(self, fields: Fields) -> Tensor:
        """Return the magnitude each block decodes to, float32."""
        return fields["scale"].float()


def _stored(scale: Tensor) -> Tensor:
    return scale.clamp(max=LARGEST_BFLOAT16).to(torch.bfloat16)
