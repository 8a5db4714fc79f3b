"""Which runs are made, in which order, and what happens when one cannot be."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError

from benchmarks.fidelity.optimizers import BASELINE, Entry
from benchmarks.fidelity.results import Results, Run
from benchmarks.optimizers import distribution_version

Train = Callable[[str, Entry, float, int], Run]


@dataclass(frozen=True)
class Sweep:
    """What is to be run.

    Attributes:
        entries: optimizers by name.
        lrs: learning rates of the sweep, before each optimizer's own factor.
        seeds: all seeds.
        sweep_seeds: how many of them, from the first, run at every learning rate; the others run
            at each optimizer's best only.
        ends: no run is begun that would probably end after this reading of
            `time.perf_counter`; ``None`` for no limit.
    """

    entries: dict[str, Entry]
    lrs: Sequence[float]
    seeds: Sequence[int]
    sweep_seeds: int
    ends: float | None = None

    def wanted(self, results: Results) -> Iterator[tuple[str, float, int]]:
        """Yield optimizer, learning rate and seed of each run, the later ones from ``results``."""
        names = sorted(self.entries, key=lambda name: name != BASELINE)
        for seed in self.seeds[: self.sweep_seeds]:
            for name in names:
                for lr in self.lrs:
                    yield name, scaled(lr, self.entries[name]), seed
        for seed in self.seeds[self.sweep_seeds :]:
            for name in names:
                best = results.best_lr(name)
                if best is not None:
                    yield name, best, seed

    def run(self, results: Results, train: Train) -> bool:
        """Make the runs that ``results`` lacks; returns whether none is left to make."""
        for name, lr, seed in self.wanted(results):
            if name in results.skipped or results.find(name, lr, seed) is not None:
                continue
            if self._too_late(results, name):
                return False
            try:
                distribution_version(self.entries[name].distribution)
                run = train(name, self.entries[name], lr, seed)
            except PackageNotFoundError as error:
                results.skip(name, f"{error} is not installed")
                continue
            except Exception as error:
                text = str(error).partition("\n")[0]
                results.skip(name, f"{type(error).__name__}: {text}")
                print(f"{name}: {results.skipped[name]}", file=sys.stderr, flush=True)
                continue
            results.add(run)
            print(_line(run), file=sys.stderr, flush=True)
        return True

    def _too_late(self, results: Results, name: str) -> bool:
        similar = results.of(name) or results.runs
        longest = max((run.seconds for run in similar), default=0.0)
        return self.ends is not None and time.perf_counter() + longest > self.ends


def scaled(lr: float, entry: Entry) -> float:
    """Return an optimizer's learning rate, without the last bits of the product."""
    return float(f"{lr * entry.lr_scale:.6g}")


def _line(run: Run) -> str:
    loss = "diverged" if run.diverged else f"{run.held_out:.4f}"
    return (
        f"{run.optimizer} lr {run.lr:g} seed {run.seed}: {loss}, {run.seconds:.1f} s, "
        f"{run.tokens_per_second:,.0f} tokens/s"
    )
