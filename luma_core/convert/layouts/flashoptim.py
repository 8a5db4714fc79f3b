"""FlashOptim's FlashAdam and FlashAdamW: 8-bit codes with a scale for each 32 elements.

The first moment is ``y / (2 - |y|) * scale`` with ``y = code / 127``, the second
``(code / 255 * scale) ** 2``, over the flat tensor (its ``quantize`` and ``dequantize``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luma_core.convert.base import MOMENTS
from luma_core.convert.state_dict import Entry, moments_entry
from luma_core.errors import ConversionError

_GROUP = 32
_KINDS = {"exp_avg": (torch.int8, 127.0), "exp_avg_sq": (torch.uint8, 255.0)}


def matches(entry: Mapping[str, Any]) -> bool:
    """Whether a moment is coded, or the parameter has bits of its own in the state."""
    return "error_bits" in entry or any(f"{moment}::quantized" in entry for moment in MOMENTS)


def decode(place: str, entry: Any) -> Entry | None:
    """Read moments, coded or not; ``error_bits`` belong to the parameter and are left out.

    Raises:
        ConversionError: a part is missing or does not fit; the message begins with ``place``.
    """
    if not matches(entry):
        return None
    if "step" not in entry:
        raise ConversionError(f"{place} has no 'step'; it has {', '.join(map(repr, entry))}.")
    second = MOMENTS[1]
    alone = second not in entry and f"{second}::quantized" not in entry
    names = MOMENTS[:1] if alone else MOMENTS
    coded = {moment: _checked(place, moment, entry) for moment in names}
    heads = [
        entry.get(moment) if pair is None else torch.empty((), device="cpu").expand(pair[0].shape)
        for moment, pair in coded.items()
    ]

    def read(moment: str) -> Tensor:
        pair = coded[moment]
        return entry[moment].float() if pair is None else _values(moment, *pair)

    return moments_entry(
        place, entry["step"], heads, lambda: [read(moment) for moment in names], names=names
    )


def _checked(place: str, moment: str, entry: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    if moment in entry:
        return None
    codes, scales = (entry.get(f"{moment}::{part}") for part in ("quantized", "scales"))
    dtype, _ = _KINDS[moment]
    if not isinstance(codes, Tensor) or codes.dtype != dtype:
        raise ConversionError(f"{place} has no {moment}::quantized of {dtype}.")
    blocks = -(-codes.numel() // _GROUP)
    if (
        not isinstance(scales, Tensor)
        or scales.dtype not in (torch.float16, torch.bfloat16)
        or scales.numel() != blocks
    ):
        raise ConversionError(f"{place} has no {moment}::scales, {blocks} values of 16 bits.")
    # Beside bfloat16 parameters the bits of the float16 scales are labelled bfloat16.
    return codes, scales.view(torch.float16)


def _values(moment: str, codes: Tensor, scales: Tensor) -> Tensor:
    _, top = _KINDS[moment]
    y = codes.reshape(-1).float() / top
    if moment == "exp_avg":
        y = y / (2 - y.abs())
    y *= scales.reshape(-1).float().repeat_interleave(_GROUP)[: y.numel()]
    return (y if moment == "exp_avg" else y.square()).view(codes.shape)
