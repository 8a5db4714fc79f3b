"""Tensors without values: on ``meta``, and those of ``FakeTensorMode``; memory is estimated so."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from luma_core.sharding import local_tensor


def has_values(tensor: Tensor) -> bool:
    """Return whether there is memory behind a tensor, or behind this process's part of it."""
    local = local_tensor(tensor)
    return not (local.is_meta or isinstance(local, FakeTensor))


def mode_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Return the mode under which tensors beside this one are made: none but for fake ones."""
    local = local_tensor(tensor)
    return local.fake_mode if isinstance(local, FakeTensor) else nullcontext()
