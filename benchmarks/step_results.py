"""What `benchmarks.step_time` measured: its rows, the file that keeps them, and the table."""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.optimizers import BASELINE, OPTIMIZERS
from benchmarks.shapes import SETS


@dataclass(frozen=True)
class Row:
    """What was measured of one optimizer on one set.

    Attributes:
        set: name of the shapes.
        dtype: of parameters and gradients.
        optimizer: its name.
        version: of its distribution.
        step_ms: median over turns of the time of a step.
        least_ms: that of the fastest turn.
        steps: number of steps timed.
        ratio: median over that of the baseline, same run.
        state_bytes_per_parameter: bytes of the tensors in its state.
        peak_extra_bytes: memory during a step above that before it.
        bandwidth_share: bytes a step must move, per time, over the speed of a plain copy.
    """

    set: str
    dtype: str
    optimizer: str
    version: str
    step_ms: float
    least_ms: float
    steps: int
    ratio: float | None
    state_bytes_per_parameter: float
    peak_extra_bytes: int
    bandwidth_share: float


@dataclass(frozen=True)
class Skipped:
    """An optimizer that could not be measured, and why."""

    set: str
    dtype: str
    optimizer: str
    reason: str


class Results:
    """Everything measured so far, and the file it goes to.

    Args:
        path: the JSON file, if any.
        machine: what `Machine.describe` returns.
        resume: whether to begin with what the file holds, which must be of the same machine.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any], *, resume: bool) -> None:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        self._path = path
        self._head = {"benchmark": "step_time", "machine": machine, "versions": versions}
        self.rows: list[Row] = []
        self.skipped: list[Skipped] = []
        if resume and path is not None and path.exists():
            found = json.loads(path.read_text())
            if {key: found[key] for key in self._head} != self._head:
                raise SystemExit(f"{path} was measured on another machine or with other versions.")
            self.rows = [Row(**row) for row in found["rows"]]
            self.skipped = [Skipped(**item) for item in found["skipped"]]

    def lacking(self, name: str, dtype: str, labels: list[str]) -> list[str]:
        """Return those of ``labels`` to measure, and the baseline where there is already some."""
        here = {row.optimizer for row in self.rows if (row.set, row.dtype) == (name, dtype)}
        left = [label for label in labels if label not in here]
        return [BASELINE, *left] if left and BASELINE in here else left

    def with_set(self, rows: list[Row], skipped: list[Skipped]) -> Results:
        """Return these results and those of a set, of which rows that are there already stay."""
        merged = copy.copy(self)
        kept = {(row.set, row.dtype, row.optimizer) for row in self.rows}
        new = [row for row in rows if (row.set, row.dtype, row.optimizer) not in kept]
        merged.rows = [*self.rows, *new]
        found: list[Row | Skipped] = [*rows, *skipped]
        tried = {(item.set, item.dtype, item.optimizer) for item in found}
        merged.skipped = [
            *(item for item in self.skipped if (item.set, item.dtype, item.optimizer) not in tried),
            *skipped,
        ]
        return merged

    def write(self) -> None:
        """Write the file, if any, so that there is a whole one at every moment."""
        if self._path is None:
            return
        order = list(OPTIMIZERS)
        rows = sorted(self.rows, key=lambda row: order.index(row.optimizer))
        parts = {
            "rows": [asdict(row) for row in rows],
            "skipped": [asdict(item) for item in self.skipped],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(self._path.name + ".part")
        beside.write_text(json.dumps({**self._head, **parts}, indent=1) + "\n")
        beside.replace(self._path)


def print_rows(rows: list[Row], skipped: list[Skipped], instruction_set: str = "") -> None:
    """Print a table for each set and dtype, headed by them and the instruction set of a CPU."""
    heads = ("step ms", "ratio", "state B/p", "extra B/p", "bandwidth", "steps")
    for name, dtype in dict.fromkeys((row.set, row.dtype) for row in [*rows, *skipped]):
        title = f"{name} {dtype} {instruction_set}"
        print(f"\n{title:<29}" + "".join(f"{head:>11}" for head in heads))
        numel = sum(_numel(shape) for shape in SETS[name]())
        for row in rows:
            if (row.set, row.dtype) == (name, dtype):
                ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
                print(
                    f"{row.optimizer:<29}{row.step_ms:>11.3f}{ratio:>11}"
                    f"{row.state_bytes_per_parameter:>11.3f}"
                    f"{row.peak_extra_bytes / numel:>11.3f}{row.bandwidth_share:>11.0%}"
                    f"{row.steps:>11}"
                )
        for item in skipped:
            if (item.set, item.dtype) == (name, dtype):
                print(f"{item.optimizer:<29}  skipped: {item.reason}")


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
