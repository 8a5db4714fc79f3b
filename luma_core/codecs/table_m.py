"""The n-bit codec of the first moment: the nearest of a few levels, relative to the block."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from luma_core.codecs.base import Fields, FieldSpec, is_number_in
from luma_core.codecs.packed import LARGEST_BFLOAT16, PackedCodec, pack, unpack
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


def power_levels(bits: int, power: float) -> tuple[float, ...]:
    """Return levels ``sgn(k) * |k / K|**power`` for ``k`` from ``1 - K`` to ``K = 2**(bits - 1)``.

    Args:
        bits: size of a code.
        power: 1 spaces levels evenly, more puts more of them near zero.
    """
    half = 1 << (bits - 1)
    return tuple(
        (1.0 if k > 0 else -1.0) * (abs(k) / half) ** power if k else 0.0
        for k in range(1 - half, half + 1)
    )


_DEFAULT_LEVELS = {
    3: (-0.6625, -0.2125, -0.0325, 0.0, 0.0325, 0.2125, 0.6625, 1.0),
    4: tuple(
        [-x for x in (0.8875, 0.6625, 0.4375, 0.2125, 0.0775, 0.0325, 0.0055)]
        + [0.0, 0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0]
    ),
}


def default_levels(bits: int) -> tuple[float, ...]:
    """Return the levels used where none are given."""
    return _DEFAULT_LEVELS.get(bits) or power_levels(bits, 2.5)


@dataclass(frozen=True, kw_only=True)
class TableM(PackedCodec):
    """A table of ``2**bits`` levels from above -1 to 1, times a signed scale for each block.

    The scale is the block's element of largest magnitude, with its sign, as bfloat16. So that
    element is always on the topmost level and kept, whatever its sign, and the table needs no -1.
    An element takes the level that is nearest. That is biased, unlike stochastic rounding, and was
    measured to train better: a moment changes by about a tenth of its gradient in each step, which
    is noise enough.

    Attributes:
        levels: ascending multiples of the scale, the last 1.0 and one of them 0.0; ``None`` takes
            the default of the size.
    """

    name: ClassVar[str] = "table_m"
    rounds: ClassVar[bool] = False

    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = default_levels(self.bits) if self.levels is None else self.levels
        if not isinstance(given, tuple | list) or not all(is_number_in(x, -1, 1) for x in given):
            raise ConfigurationError(
                f"levels={given!r} of codec {self.name} must be numbers from -1 to 1."
            )
        levels = tuple(float(level) for level in given)
        ascending = list(levels) == sorted(set(levels))
        if len(levels) != 1 << self.bits or not ascending or levels[-1] != 1 or 0 not in levels:
            raise ConfigurationError(
                f"levels={levels!r} of codec {self.name} must be {1 << self.bits} ascending "
                "numbers, of which one is 0 and the last 1."
            )
        object.__setattr__(self, "levels", levels)

    def to_dict(self) -> dict[str, Any]:
        """Return name and configuration as plain JSON values."""
        return {**super().to_dict(), "levels": list(self.levels or ())}

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Multiples of the scale above which the next level is nearest, ``2**bits - 1`` of them."""
        levels = self.levels or ()
        return tuple((a + b) / 2 for a, b in pairwise(levels))

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return ``codes`` and ``scale``."""
        return {
            "codes": self.code_field(shape),
            "scale": self.block_field(shape, "bfloat16"),
        }

    def fit(self, x: Tensor) -> Fields:
        """Return each block's element of largest magnitude; infinite where one is not finite."""
        high, low = x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True)
        largest = torch.where(high >= -low, high, low)
        clamped = largest.clamp(-LARGEST_BFLOAT16, LARGEST_BFLOAT16)
        finite = torch.isfinite(high) & torch.isfinite(low)
        return {"scale": torch.where(finite, clamped, torch.inf).to(torch.bfloat16)}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return the packed codes of the nearest levels."""
        scale = fitted["scale"].float()
        x = torch.where(scale < 0, -x, x)
        size = scale.abs()
        thresholds = torch.tensor(self.thresholds, dtype=torch.float32, device=x.device)
        # The number of thresholds that x is above, bit by bit: they ascend, and so do the products.
        codes = torch.zeros(x.shape, dtype=torch.int32, device=x.device)
        for bit in reversed(range(self.bits)):
            lower = thresholds.index_select(0, (codes + ((1 << bit) - 1)).view(-1)).view(x.shape)
            codes += (x > size * lower).to(torch.int32) << bit
        return {"codes": pack(codes.to(torch.uint8), self.bits)}

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of codes, float32."""
        levels = torch.tensor(self.levels, dtype=torch.float32, device=fields["codes"].device)
        codes = unpack(fields["codes"], self.bits)
        return levels.index_select(0, codes.view(-1)).view(codes.shape) * fields["scale"].float()

    def scales(self, fields: Fields) -> Tensor:
        """Return the largest magnitude of each block, float32."""
        return fields["scale"].float().abs()
