"""Names and sizes of dtypes, known without PyTorch: its own names and those of safetensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
else:
    torch = import_later("torch", globals())

STORED_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""What safetensors calls the dtypes that can be stored, by PyTorch's name without ``torch.``."""

ITEM_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "float32"), 4),
    **dict.fromkeys(("int64", "float64"), 8),
}
"""Bytes of one element, for the names of ``STORED_NAMES``."""

TORCH_NAMES = {name: stored for stored, name in STORED_NAMES.items()}
"""PyTorch's name, without ``torch.``, by safetensors' name."""


def stored_bytes(stored: str, shape: Sequence[int]) -> int:
    """Return the size of a dense tensor whose dtype safetensors calls ``stored``."""
    return math.prod(shape) * ITEM_BYTES[TORCH_NAMES[stored]]


def named_dtype(name: str) -> torch.dtype:
    """Return the dtype that PyTorch calls ``torch.<name>``.

    Raises:
        AttributeError: there is none.
    """
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise AttributeError(f"torch.{name} is no dtype")
    return found


def is_dtype_name(name: str) -> bool:
    """Return whether it is PyTorch's own name of a dtype; loads it for those not stored."""
    if name in STORED_NAMES:
        return True
    found = getattr(torch, name, None)
    return isinstance(found, torch.dtype) and str(found) == f"torch.{name}"
