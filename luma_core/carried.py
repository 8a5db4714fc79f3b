"""Stored tensors in a dtype that every collective carries, and sharded ones put together.

Neither gloo nor NCCL knows int16. So codes of 16 bits leave an optimizer as their bytes: uint8 with
one more dimension behind the others, which stay as they are, and so do cuts along them. Another
dtype of 16 bits would keep the shape, but programs cast floating point, and a code may be a NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from luma_core import backends
from luma_core.codecs import Codec, Fields
from luma_core.recoding import decoded_part
from luma_core.sharding import Part, Shape, as_dtensor, is_sharded, local_tensor

_CARRIED = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    | {torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool}
)
"""What both gloo and NCCL know."""


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a view that every collective carries; the tensor itself where that does already.

    int16 of shape ``S`` becomes uint8 ``[*S, 2]``, in the machine's byte order; a DTensor becomes
    one that is cut alike.
    """
    if tensor.dtype in _CARRIED:
        return tensor
    shape = (*tensor.shape, tensor.dtype.itemsize)
    return _mapped(tensor, shape, lambda local: local.unsqueeze(-1).view(torch.uint8))


def from_bytes(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor of ``dtype`` whose bytes `as_bytes` made; any other tensor as it is."""
    if dtype in _CARRIED or tensor.dtype != torch.uint8:
        return tensor
    if local_tensor(tensor).shape[-1:] != (dtype.itemsize,):
        return tensor
    return _mapped(tensor, tuple(tensor.shape[:-1]), lambda local: _viewed(local, dtype))


def _viewed(local: Tensor, dtype: torch.dtype) -> Tensor:
    local = local.contiguous()
    if local.storage_offset() % dtype.itemsize:
        local = local.clone()
    return local.view(dtype).squeeze(-1)


def _mapped(tensor: Tensor, shape: Shape, view: Callable[[Tensor], Tensor]) -> Tensor:
    local = view(local_tensor(tensor))
    if not is_sharded(tensor):
        return local
    return as_dtensor(local, shape, tensor.device_mesh, tuple(tensor.placements))


def gathered(tensor: Tensor) -> Tensor:
    """Return a DTensor whole, in all processes, which call it together."""
    home = local_tensor(tensor).device
    sent = as_bytes(tensor)
    mesh, placements = sent.device_mesh, tuple(sent.placements)  # type: ignore[attr-defined]
    if home.type != mesh.device_type:  # state that is offloaded; collectives are those of the mesh
        moved = local_tensor(sent).to(mesh.device_type)
        sent = as_dtensor(moved, tuple(sent.shape), mesh, placements)
    whole: Tensor = sent.full_tensor()  # type: ignore[attr-defined]
    return from_bytes(whole.to(home), tensor.dtype)


def redistributed(tensor: Tensor, part: Part, placements: tuple[object, ...]) -> Tensor:
    """Return a DTensor cut in another way; the processes of ``part`` call it together."""
    sent: Tensor = as_bytes(tensor).redistribute(part.mesh, placements)  # type: ignore[attr-defined]
    return from_bytes(sent, tensor.dtype)


def whole_fields(part: Part, codec: Codec, fields: Fields) -> Fields:
    """Return the fields of the whole moment, in all processes, which call it together.

    Where the sharding cuts blocks, the moment is coded anew by rounding to nearest.
    """
    if not part.aligned(codec):
        moment = part.like_whole(decoded_part(part, codec, fields))
        return backends.encode(codec, gathered(moment))
    return {
        name: gathered(fields[name]) if is_sharded(fields[name]) else fields[name]
        for name in part.fields(codec)
    }
