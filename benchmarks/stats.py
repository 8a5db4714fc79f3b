"""How fast statistics of a checkpoint are: parameters per second, from the page cache.

Saves LUMA's state of matrices with log-normal moments, then computes its statistics in turns with
the library on one thread and on several, and without it, beside reading the same files. Usage:
``python -m benchmarks.stats [--parameters 1e8] [--compression none|zstd] [--rounds 5]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from luma_core import backends, checkpoint, stats
from luma_core.optim import LUMA
from luma_core.stats import measure, tiles, walk

SIDE = 4096
PIECE_BYTES = 8 << 20


def save(folder: Path, parameters: int, compression: str) -> int:
    """Save the state of as many matrices as it takes; return their elements."""
    count = max(1, round(parameters / SIDE**2))
    rows = min(SIDE, parameters // SIDE or 1)
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(2 * torch.randn(rows, SIDE, generator=generator)) * 1e-5
    values = {
        "exp_avg": size * torch.randn(rows, SIDE, generator=generator),
        "exp_avg_sq": size.square(),
    }
    params = [
        (f"layers.{i}.weight", torch.nn.Parameter(torch.zeros(rows, SIDE, dtype=torch.bfloat16)))
        for i in range(count)
    ]
    optimizer = LUMA(params, seed=0)
    optimizer.init_state()
    for moment, codec in optimizer.parameter_state(params[0][0]).codecs.items():
        fields = backends.encode(codec, values[moment])
        for _, param in params:
            for name, field in fields.items():
                optimizer.state[param][f"{moment}.{name}"].copy_(field)
    checkpoint.save(folder, optimizer=optimizer, compression=compression)
    return count * rows * SIDE


def read(folder: Path) -> None:
    """Read all files, piece after piece into the same memory."""
    buffer = bytearray(PIECE_BYTES)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def compute(folder: Path) -> None:
    """Compute the statistics of all parameters."""
    with checkpoint.open(folder) as saved:
        stats.compute(saved)


@contextmanager
def without_library() -> Iterator[None]:
    """Let statistics run in numpy and PyTorch."""
    with (
        patch.object(measure, "native_cpu", return_value=None),
        patch.object(tiles, "native_cpu", return_value=None),
        patch.object(walk, "native_cpu", return_value=None),
    ):
        yield


def rows(folder: Path) -> dict[str, Callable[[], None]]:
    """Return what is measured, by name."""
    cores = len(os.sched_getaffinity(0))

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        compute(folder)

    def plain() -> None:
        with without_library():
            on(cores)

    return {
        "read the files": lambda: read(folder),
        "statistics, 1 thread": lambda: on(1),
        f"statistics, {cores} threads": lambda: on(cores),
        f"without the library, {cores} threads": plain,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e8)
    parser.add_argument("--compression", choices=("none", "zstd"), default="none")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "checkpoint")
        elements = save(folder, int(options.parameters), options.compression)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for name, action in rows(folder).items():
                began, cpu = time.perf_counter(), time.process_time()
                action()
                seconds = time.perf_counter() - began, time.process_time() - cpu
                found.setdefault(name, []).append(seconds)
    print(f"{elements:,} parameters, compression {options.compression}\n")
    print("| | seconds | M parameters/s | M parameters per CPU second |\n|---|--:|--:|--:|")
    for name, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        rates = f"{elements / wall / 1e6:.1f} | {elements / max(cpu, 1e-9) / 1e6:.1f}"
        print(f"| {name} | {wall:.3f} | {rates} |")


if __name__ == "__main__":
    main()
