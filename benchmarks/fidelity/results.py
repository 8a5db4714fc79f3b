"""What a run measured, the file that keeps it, and what follows from several runs."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luma_core.errors import ConfigurationError


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        optimizer: its name.
        version: of its distribution.
        lr: peak learning rate.
        seed: of initialisation, data order and the optimizer's own noise.
        held_out: loss in nats per token on the held-out text; ``None`` where it is not finite.
        diverged: whether that loss is not finite or above that of guessing evenly.
        curve: steps done and held-out loss, at even distances.
        bits_per_parameter: size of all tensors in the optimizer's state.
        step_ms: median time of an optimizer step; ``None`` after a run that diverged.
        tokens_per_second: speed of training, evaluation left out.
        seconds: duration of the whole run.
        initial_digest: hash of the weights it began with.
        order_digest: hash of the order of its data.
    """

    optimizer: str
    version: str
    lr: float
    seed: int
    held_out: float | None
    diverged: bool
    curve: tuple[tuple[int, float | None], ...]
    bits_per_parameter: float
    step_ms: float | None
    tokens_per_second: float
    seconds: float
    initial_digest: str
    order_digest: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """Read what `dataclasses.asdict` and JSON made of a run."""
        curve = tuple((int(step), loss) for step, loss in values["curve"])
        return cls(**{**values, "curve": curve})


@dataclass
class Results:
    """All runs of one setup, as they are kept in a JSON file.

    Attributes:
        setup: everything that was equal for all runs.
        versions: of Python and PyTorch.
        runs: what was measured.
        skipped: reasons by optimizer that could not run.
        path: the file, written anew after each change; or ``None``.
    """

    setup: dict[str, Any]
    versions: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: it is no such file.
        """
        try:
            values = json.loads(path.read_text())
            if values["benchmark"] != "fidelity":
                raise ValueError(f"benchmark is {values['benchmark']!r}")
            runs = [Run.from_dict(run) for run in values["runs"]]
            return cls(values["setup"], values["versions"], runs, values["skipped"], path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} holds no results of this benchmark: {error}"
            ) from error

    def resume(self, path: Path) -> None:
        """Take over the runs in a file.

        Raises:
            ConfigurationError: they were made under another setup.
        """
        earlier = Results.load(path)
        other = sorted(
            key
            for key in self.setup.keys() | earlier.setup.keys()
            if self.setup.get(key) != earlier.setup.get(key)
        )
        if other:
            told = ", ".join(
                f"{k}={earlier.setup.get(k)!r}, now {self.setup.get(k)!r}" for k in other
            )
            raise ConfigurationError(
                f"{path} was made under another setup: {told}.",
                hint="Repeat it, or write to another file.",
            )
        self.runs = earlier.runs

    def add(self, run: Run) -> None:
        """Add a run and save."""
        self.runs.append(run)
        self.save()

    def skip(self, optimizer: str, reason: str) -> None:
        """Note that an optimizer cannot run and save."""
        self.skipped[optimizer] = reason
        self.save()

    def save(self) -> None:
        """Write the file whole or not at all."""
        if self.path is None:
            return
        values = {
            "benchmark": "fidelity",
            "setup": self.setup,
            "versions": self.versions,
            "runs": [asdict(run) for run in self.runs],
            "skipped": self.skipped,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
        partial.replace(self.path)

    def find(self, optimizer: str, lr: float, seed: int) -> Run | None:
        """Return a run if it was made."""
        wanted = (optimizer, lr, seed)
        return next((r for r in self.runs if (r.optimizer, r.lr, r.seed) == wanted), None)

    def of(self, optimizer: str) -> list[Run]:
        """Return the runs of one optimizer."""
        return [run for run in self.runs if run.optimizer == optimizer]

    def best_lr(self, optimizer: str) -> float | None:
        """Return the learning rate of the lowest mean held-out loss.

        The mean is over the seeds at which every learning rate was tried; one that diverged at
        any of them is out. ``None`` if nothing is left.
        """
        by_lr = _by_lr(self.of(optimizer))
        if not by_lr:
            return None
        shared = set.intersection(*(set(seeds) for seeds in by_lr.values()))
        means = {}
        for lr, seeds in by_lr.items():
            losses = [loss(run) for seed, run in seeds.items() if not shared or seed in shared]
            means[lr] = statistics.fmean(losses)
        best = min(means, key=lambda lr: means[lr])
        return best if math.isfinite(means[best]) else None

    def at_best(self, optimizer: str) -> dict[int, Run]:
        """Return the runs at the best learning rate by seed."""
        best = self.best_lr(optimizer)
        return {} if best is None else _by_lr(self.of(optimizer))[best]


def _by_lr(runs: Iterable[Run]) -> dict[float, dict[int, Run]]:
    by_lr: dict[float, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.lr, run.seed)):
        by_lr.setdefault(run.lr, {})[run.seed] = run
    return by_lr


def loss(run: Run) -> float:
    """Return the held-out loss, infinity if the run diverged."""
    return math.inf if run.diverged or run.held_out is None else run.held_out


@dataclass(frozen=True)
class Gap:
    """Difference of held-out losses, pair by pair of equal seeds.

    Attributes:
        mean: over seeds, in nats per token; infinite if a run diverged.
        sd: standard deviation of the differences; ``None`` with one seed.
        low: smallest.
        high: largest.
        seeds: number of pairs.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    seeds: int


def gap(runs: dict[int, Run], baseline: dict[int, Run]) -> Gap | None:
    """Return the gap between runs by seed, over the seeds that both have."""
    pairs = [(loss(runs[seed]), loss(baseline[seed])) for seed in runs if seed in baseline]
    if not pairs or any(math.isinf(base) for _, base in pairs):
        return None
    gaps = [a - b for a, b in pairs]
    sd = statistics.stdev(gaps) if len(gaps) > 1 and max(gaps) < math.inf else None
    return Gap(statistics.fmean(gaps), sd, min(gaps), max(gaps), len(gaps))


def equal_lr_gaps(results: Results, optimizer: str, twin: str) -> dict[float, Gap]:
    """Return the gap to ``twin`` at each learning rate that both were run at."""
    own, other = _by_lr(results.of(optimizer)), _by_lr(results.of(twin))
    found = {lr: gap(own[lr], other[lr]) for lr in own if lr in other}
    return {lr: value for lr, value in found.items() if value is not None}
