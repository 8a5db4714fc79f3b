"""The state that is saved, and how an operation on it is measured."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.checkpoint.state import SIDE
from luma_core import backends

SAMPLE_SECONDS = 0.005


class Result(NamedTuple):
    """One measurement.

    Attributes:
        seconds: until the operation had ended.
        bytes: written or read.
        peak_bytes: memory over that before the operation, without the loaded state and without
            pages of files, which the system takes back when it needs them.
        held_seconds: until the caller went on, where that is earlier.
        step_seconds: until a step that follows at once may change all state, where that is known.
    """

    seconds: float
    bytes: int
    peak_bytes: int
    held_seconds: float | None = None
    step_seconds: float | None = None


class Job(NamedTuple):
    """What a row works on.

    Attributes:
        folder: where it writes, or where an earlier row wrote.
        matrices: how many there are.
        state: file with the moments of one, which `train_moments` wrote.
        new_bytes: of memory that is used and freed just before the measurement.
    """

    folder: Path
    matrices: int
    state: Path
    new_bytes: int

    def moments(self) -> dict[str, Tensor]:
        """Return both moments of a matrix by name."""
        values: dict[str, Tensor] = torch.load(self.state, weights_only=True)
        return values


def luma_optimizer(job: Job, *, with_state: bool, kind: str = "LUMA") -> Any:
    """Return one of our optimizers over bfloat16 matrices."""
    from luma_core import optim

    count = job.matrices
    names = [f"layers.{i}.weight" for i in range(count)]
    params = [
        (name, torch.nn.Parameter(torch.zeros(SIDE, SIDE, dtype=torch.bfloat16))) for name in names
    ]
    optimizer = getattr(optim, kind)(params, seed=0)
    if with_state:
        optimizer.init_state()
        codecs = optimizer.parameter_state(names[0]).codecs
        for moment, values in job.moments().items():
            fields = backends.encode(codecs[moment], values)
            for _, param in params:
                for field, tensor in fields.items():
                    optimizer.state[param][f"{moment}.{field}"].copy_(tensor)
    return optimizer


def adamw_state(job: Job) -> dict[str, Tensor]:
    """Return AdamW's moments by name."""
    moments = job.moments()
    return {
        f"layers.{i}.weight.{name}": value.clone()
        for i in range(job.matrices)
        for name, value in moments.items()
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


def memory_bytes() -> int:
    """Return the memory of this process that no file backs."""
    fields = ("RssAnon:", "RssShmem:")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(fields))


class Peak:
    """Looks at the memory of this process every few milliseconds."""

    def __init__(self) -> None:
        self._bytes = self._before = memory_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._bytes = max(self._bytes, memory_bytes())

    def grown(self) -> int:
        """Stop looking and return the peak above what there was before."""
        self._stop.set()
        self._thread.join()
        return max(self._bytes, memory_bytes()) - self._before


def used_memory(size_bytes: int) -> np.ndarray:
    """Return memory of that size, or of three quarters of what is free, that has been used.

    A virtual machine may give memory that is free back to its host within seconds, and gets it
    again at a fraction of a disk's speed. Then whatever uses new memory, page cache included,
    measures the host, and how long ago another program ended; unless somebody used it just before.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * page_bytes
    memory = np.empty(min(size_bytes, free_bytes * 3 // 4), np.uint8)
    memory[::page_bytes] = 0
    return memory


def measured(
    action: Callable[[], Sequence[float] | None],
    job: Job,
    *,
    folder: Path | None = None,
    state_bytes: int = 0,
) -> Result:
    """Run an action, which may return when its caller was let go on, and then its caller's step.

    Args:
        action: what is measured.
        job: of the row.
        folder: whose files count; that of the job by default.
        state_bytes: of what it loads, which does not count as its memory.
    """
    used_memory(job.new_bytes)
    peak = Peak()
    began = time.perf_counter()
    went_on = action() or ()
    seconds = time.perf_counter() - began
    grown = max(peak.grown() - state_bytes, 0)
    held = [moment - began for moment in went_on]
    return Result(seconds, folder_bytes(folder or job.folder), grown, *held)
