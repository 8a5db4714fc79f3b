"""A moment kept as it is, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Codec, Fields, FieldSpec
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


@dataclass(frozen=True, kw_only=True)
class FP32(Codec):
    """Field ``value``: float32 of the moment's shape. Blocks only bound a non-finite gradient."""

    name: ClassVar[str] = "fp32"
    positive: ClassVar[bool] = True
    relative: ClassVar[bool] = True
    rounds: ClassVar[bool] = False

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return the one field, ``value``."""
        return {"value": FieldSpec("float32", tuple(shape))}

    def fit(self, x: Tensor) -> Fields:
        """Return nothing: there is no scale."""
        return {}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return ``x`` unchanged."""
        return {"value": x}

    def decode(self, fields: Fields) -> Tensor:
        """Return the stored values."""
        return fields["value"]
