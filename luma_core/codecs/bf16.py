"""A moment rounded to bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Codec, Fields, FieldSpec
from luma_core.lazy import import_later
from luma_core.rounding import to_bfloat16

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

SMALLEST = 2.0**-133
"""The smallest bfloat16 above 0."""


@dataclass(frozen=True, kw_only=True)
class BF16(Codec):
    """Field ``value``: bfloat16 of the moment's shape, stochastically rounded.

    What is above 0 is not rounded to 0: a second moment is divided by.
    """

    name: ClassVar[str] = "bf16"
    positive: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return the one field, ``value``."""
        return {"value": FieldSpec("bfloat16", tuple(shape))}

    def fit(self, x: Tensor) -> Fields:
        """Return nothing: there is no scale."""
        return {}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Round ``x`` to bfloat16."""
        value = to_bfloat16(x, draw)
        return {"value": torch.where((x > 0) & (value == 0), SMALLEST, value)}

    def decode(self, fields: Fields) -> Tensor:
        """Return the stored values as float32."""
        return fields["value"].float()
