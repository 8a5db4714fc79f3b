"""New memory for whole tensors, in pages that the system hands out quickly."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())
    np = import_later("numpy", globals())


_MIN_BYTES = 4 << 20
_ALIGN_BYTES = 64


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of the CPU whose values are whatever is there.

    Where Linux gives huge pages to those who ask for them, NumPy asks for arrays of 4 MiB or more,
    and PyTorch does not. The first use of 2 MiB in one page takes a fraction of the time of 512
    small ones (``python -m benchmarks.checkpoint.memory``).
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < _MIN_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    memory = np.empty(size_bytes + _ALIGN_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGN_BYTES
    return torch.from_numpy(memory[start : start + size_bytes]).view(dtype).view(shape)


def touch(tensor: Tensor) -> None:
    """Have the system provide a tensor's memory now; its values are lost.

    Args:
        tensor: contiguous, on the CPU.
    """
    memory = tensor.reshape(-1).view(torch.uint8).numpy()
    memory[:: mmap.PAGESIZE] = 0
