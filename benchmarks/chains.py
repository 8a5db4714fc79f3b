"""What a chain of differences costs: ``python -m benchmarks.chains [PARAMETERS] [STEPS_APART]``.

Trains one matrix on noise, saves eight steps in full and the same eight as a chain of eight, and
prints the ratios of saving, of loading the last step, and of bytes on disk.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from luma_core import LUMA
from luma_core.checkpoint import CheckpointManager

CHAIN = 8
_ROUNDS = 3


def main(parameters: int = 8_000_000, apart: int = 10) -> None:
    """Measure and print."""
    weight = torch.nn.Parameter(torch.zeros(parameters // 1024, 1024))
    optimizer = LUMA([("w", weight)], seed=0)
    weight.grad = torch.empty_like(weight)

    def train(steps: int) -> None:
        for _ in range(steps):
            weight.grad = torch.randn_like(weight)
            optimizer.step()

    train(100)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        managers = {
            name: CheckpointManager(f"{folder}/{name}", max_chain=length)
            for name, length in (("full", 1), ("chain", CHAIN))
        }
        saves: dict[str, list[float]] = {name: [] for name in managers}
        for step in range(1, CHAIN + 1):
            train(apart)
            for name, manager in managers.items():
                begun = time.perf_counter()
                manager.save(step, optimizer=optimizer)
                # The first of a chain is a full one.
                saves[name] += [time.perf_counter() - begun] if step > 1 else []
        loads: dict[str, list[float]] = {name: [] for name in managers}
        for _ in range(_ROUNDS):
            for name, manager in managers.items():
                begun = time.perf_counter()
                manager.load(optimizer=optimizer)
                loads[name].append(time.perf_counter() - begun)
        sizes = {
            name: sum(file.stat().st_size for file in Path(folder, name).rglob("*.safetensors"))
            for name in managers
        }
    print(f"{parameters:,} parameters, {CHAIN} steps, {apart} apart; chain of {CHAIN} / full:")
    for what, found in (("save", saves), ("load of the last", loads)):
        full, chain = (statistics.median(found[name]) for name in ("full", "chain"))
        print(f"{what:18} {chain / full:6.2f}   ({full:.3f} s and {chain:.3f} s)")
    print(f"{'bytes':18} {sizes['chain'] / sizes['full']:6.2f}")


if __name__ == "__main__":
    main(*(int(float(text)) for text in sys.argv[1:]))
