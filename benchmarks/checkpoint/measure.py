"""The state that is saved, and how an operation on it is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SIDE = 4096


class Result(NamedTuple):
    """One measurement.

    Attributes:
        seconds: until the operation had ended.
        bytes: written or read.
        peak_bytes: memory over that before the operation, without the loaded state.
        held_seconds: until the caller went on, where that is earlier.
    """

    seconds: float
    bytes: int
    peak_bytes: int
    held_seconds: float | None = None


def moments() -> tuple[Tensor, Tensor]:
    """Return both moments of one matrix: log-normal scales by row and by element."""
    torch.manual_seed(0)
    scale = torch.exp(torch.randn(SIDE, 1) + 2 * torch.randn(1, SIDE)) * 1e-4
    m = scale * torch.randn(SIDE, SIDE)
    return m, (scale * torch.exp(0.5 * torch.randn(SIDE, SIDE))).square()


def luma_optimizer(count: int, *, with_state: bool) -> Any:
    """Return LUMA over ``count`` bfloat16 matrices."""
    from luma_core.optim import LUMA

    names = [f"layers.{i}.weight" for i in range(count)]
    params = [
        (name, torch.nn.Parameter(torch.zeros(SIDE, SIDE, dtype=torch.bfloat16))) for name in names
    ]
    optimizer = LUMA(params, seed=0)
    if with_state:
        optimizer.init_state()
        codecs = optimizer.parameter_state(names[0]).codecs
        for moment, values in zip(("exp_avg", "exp_avg_sq"), moments(), strict=True):
            fields = codecs[moment].encode_tensor(values)
            for _, param in params:
                for field, tensor in fields.items():
                    optimizer.state[param][f"{moment}.{field}"].copy_(tensor)
    return optimizer


def adamw_state(count: int) -> dict[str, Tensor]:
    """Return AdamW's moments of ``count`` matrices by name."""
    m, v = moments()
    return {
        f"layers.{i}.weight.{name}": value.clone()
        for i in range(count)
        for name, value in (("exp_avg", m), ("exp_avg_sq", v))
    }


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def synced(folder: Path) -> None:
    """Make all files below a folder durable."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def dropped(folder: Path) -> None:
    """Drop all files below a folder from the page cache."""
    synced(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def memory_bytes(key: str) -> int:
    """Return a line of ``/proc/self/status`` that counts kB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def measured(action: Callable[[], float | None], folder: Path, *, state_bytes: int = 0) -> Result:
    """Run an action, which may return when its caller was let go on."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_bytes("VmRSS")
    began = time.perf_counter()
    held = action()
    seconds = time.perf_counter() - began
    peak = max(memory_bytes("VmHWM") - before - state_bytes, 0)
    return Result(seconds, folder_bytes(folder), peak, held and held - began)
