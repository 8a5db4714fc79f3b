"""The first use of new memory, in the pages that PyTorch gets and in those of our tensors.

``python -m benchmarks.checkpoint.memory [BYTES]``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.checkpoint.measure import used_memory
from luma_core.checkpoint.staging.memory import new_tensor, touch

ROUNDS = 3


def seconds(new: Callable[[], Tensor], size_bytes: int) -> float:
    """Return the least time of some rounds; the system has had the memory just before."""
    found = []
    for _ in range(ROUNDS):
        used_memory(size_bytes)
        tensor = new()
        began = time.perf_counter()
        touch(tensor)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Print a line for each kind of memory."""
    size_bytes = int(float(sys.argv[1])) if len(sys.argv) > 1 else 2 << 30
    kinds: dict[str, Callable[[], Tensor]] = {
        "torch.empty": lambda: torch.empty(size_bytes, dtype=torch.uint8),
        "new_tensor": lambda: new_tensor((size_bytes,), torch.uint8),
    }
    for name, new in kinds.items():
        print(f"{name:<12}{size_bytes / seconds(new, size_bytes) / 1e9:>6.1f} GB/s")


if __name__ == "__main__":
    main()
