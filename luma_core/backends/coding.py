"""Coding whole moments by the fastest backend that can: all of them give the same bits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from luma_core.backends.native import NATIVE
from luma_core.codecs import Codec, Fields


def encode(codec: Codec, x: Tensor, draws: Tensor | None = None) -> Fields:
    """Store a whole moment, as `Codec.encode_tensor` does.

    Args:
        codec: stores it.
        x: float tensor of any shape.
        draws: 16 random bits per element, int32 of the same shape; ``None`` rounds to nearest.
    """
    coded = NATIVE.encode(codec, x, draws)
    return codec.encode_tensor(x, draws) if coded is None else coded


def decode(codec: Codec, fields: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return a whole moment as float32 of ``shape``, as `Codec.decode_tensor` does."""
    decoded = NATIVE.decode(codec, fields, shape)
    return codec.decode_tensor(fields, shape) if decoded is None else decoded
