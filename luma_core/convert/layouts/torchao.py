"""torchao's 8-bit, 4-bit and FP8 AdamW: moments are tensors of its own kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from luma_core.convert.base import MOMENTS
from luma_core.convert.state_dict import Entry, moments_entry

GLOBALS = {
    f"torchao.optim.{module}.{name}": (f"torchao.optim.{module}", name)
    for module, name in (
        ("subclass_8bit", "OptimState8bit"),
        ("subclass_4bit", "OptimState4bit"),
        ("subclass_fp8", "OptimStateFp8"),
    )
}
"""The classes in its files, with module and name: they hold tensors and run nothing."""


def _coded(value: Any) -> bool:
    kind = type(value)
    return f"{kind.__module__}.{kind.__name__}" in GLOBALS


def matches(entry: Mapping[str, Any]) -> bool:
    """Whether a moment is coded."""
    return any(_coded(entry.get(moment)) for moment in MOMENTS)


def decode(place: str, entry: Any) -> Entry | None:
    """Read moments by torchao's own ``dequantize``; small ones are plain tensors."""
    if not matches(entry) or set(entry) != {"step", *MOMENTS}:
        return None

    def read(moment: str) -> Tensor:
        value = entry[moment]
        found = value.dequantize() if _coded(value) else value
        return cast(Tensor, found).float()

    moments = [entry[moment] for moment in MOMENTS]
    return moments_entry(
        place, entry["step"], moments, lambda: (read(MOMENTS[0]), read(MOMENTS[1]))
    )
