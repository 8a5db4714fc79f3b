"""The dtypes of stored tensors: torch's and safetensors' names for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from luma_core.dtypes import STORED_NAMES, named_dtype
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later
from luma_core.sharding import is_sharded

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


@cache
def _safetensors_names() -> dict[torch.dtype, str]:
    return {named_dtype(name): stored for name, stored in STORED_NAMES.items()}


@cache
def _torch_dtypes() -> dict[str, torch.dtype]:
    return {stored: dtype for dtype, stored in _safetensors_names().items()}


def dtype_name(dtype: torch.dtype) -> str | None:
    """Return safetensors' name of ``dtype``, or ``None`` where it cannot be stored."""
    return _safetensors_names().get(dtype)


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the dtype that safetensors calls ``name``, or ``None`` where it is not known."""
    return _torch_dtypes().get(name)


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
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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
