"""The dtypes of stored tensors: torch's and safetensors' names for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from luma_core.errors import ConfigurationError
from luma_core.sharding import is_sharded

_SAFETENSORS_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_TORCH_DTYPES = {name: dtype for dtype, name in _SAFETENSORS_NAMES.items()}


def dtype_name(dtype: torch.dtype) -> str | None:
    """Return safetensors' name of ``dtype``, or ``None`` where it cannot be stored."""
    return _SAFETENSORS_NAMES.get(dtype)


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the dtype that safetensors calls ``name``, or ``None`` where it is not known."""
    return _TORCH_DTYPES.get(name)


def tensor_bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Return the size in bytes of a dense tensor."""
    return math.prod(shape) * dtype.itemsize


def check_storable(name: str, tensor: Tensor) -> None:
    """Check that a tensor can be written to a shard.

    Raises:
        ConfigurationError: it is sparse, a subclass without plain memory, on the meta device, or
            of a dtype that safetensors readers do not share.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ConfigurationError(
            f"{name} is a {tensor.layout} tensor on {tensor.device}; only dense tensors with "
            "values can be saved.",
            hint="Convert it to a dense tensor.",
        )
    if is_traceable_wrapper_subclass(tensor) and not is_sharded(tensor):
        raise ConfigurationError(
            f"{name} is a {type(tensor).__name__}, which is made of other tensors and cannot be "
            "saved.",
            hint="Convert it to a dense tensor, or save the tensors that it is made of.",
        )
    if dtype_name(tensor.dtype) is None:
        raise ConfigurationError(
            f"{name} has dtype {tensor.dtype}, which cannot be stored.",
            hint="Convert it to a real integer or floating-point dtype.",
        )
