"""Step time, state size and extra memory of optimizers, in one run and on the same tensors.

``python -m benchmarks.step_time [--device cpu|cuda] [--sets gpt2,llama1b] [--json F]``. The
optimizers take turns, so that whatever disturbs the machine disturbs all of them; times are
medians over turns. On a GPU a turn is 40 steps in a row, between two events on the device, behind
one step that is not timed: so the host is ahead, as it is in training, and what it needs shows
where it is slower than the device. Turns of optimizers so slow that ``--budget-seconds`` would not
last are shorter.

The JSON file is written anew after every round of turns, so that a run that is killed keeps what it
measured. ``--resume`` measures what such a file lacks, beside the baseline once more, and adds it:
a ratio is always that of two optimizers that took turns.

On a CPU, ``--instruction-set avx2`` holds PyTorch's kernels and ours to that instruction set, for
which it starts itself anew: PyTorch reads ``ATEN_CPU_CAPABILITY`` when it is loaded. Results name
the set that was used.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.instruction_set import INSTRUCTION_SETS, hold_to, torch_instruction_set
from benchmarks.optimizers import BASELINE, OPTIMIZERS, distribution_version, state_bytes
from benchmarks.shapes import SETS
from benchmarks.step_results import Results, Row, Skipped, print_rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_TURNS = 3
MOST_WARM_UP_STEPS = 5
AGREE = 1.2
"""Ratio of two steps in a row that shows the optimizer to be warm."""


class Machine:
    """Times and memory of one device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 1) -> float:
        """Return the wall time of one of ``repeats`` calls in a row."""
        self.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return (time.perf_counter() - began) / repeats

    def turn_seconds(self, step: Callable[[], Any], steps: int) -> float:
        """Return the time of one of some steps in a row, on a GPU behind one that is not timed."""
        if self.device != "cuda":
            return self.seconds(step, steps)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.synchronize()
        step()
        began.record()
        for _ in range(steps):
            step()
        ended.record()
        self.synchronize()
        return began.elapsed_time(ended) / 1e3 / steps

    @property
    def steps_per_turn(self) -> int:
        """Steps timed in a row: training does not wait for a GPU after each step."""
        return 40 if self.device == "cuda" else 1

    def extra_bytes(self, work: Callable[[], Any]) -> int:
        """Return the peak of memory during ``work`` above that before it."""
        self.synchronize()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            self.synchronize()
            return torch.cuda.max_memory_allocated() - before
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _proc_status_bytes("VmRSS")
        work()
        return max(0, _proc_status_bytes("VmHWM") - before)

    def copy_bytes_per_second(self) -> float:
        """Return the speed of a plain copy, bytes read and written."""
        source = torch.ones(1 << 28 if self.device == "cuda" else 1 << 26, device=self.device)
        target = torch.empty_like(source)
        best = min(self.seconds(lambda: target.copy_(source)) for _ in range(10))
        return 2 * source.numel() * source.element_size() / best

    def describe(self) -> dict[str, Any]:
        name = platform.processor() or platform.machine()
        if self.device == "cuda":
            name = torch.cuda.get_device_name()
        else:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            models = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
            name = next(models, name)
        described = {"device": self.device, "name": name, "threads": torch.get_num_threads()}
        if self.device == "cpu":
            described["instruction_set"] = torch_instruction_set()
        return described


def _proc_status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def make_parameters(name: str, dtype: torch.dtype, device: str) -> list[nn.Parameter]:
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in SETS[name]():
        value = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        params.append(nn.Parameter(value.mul_(0.02)))
        grad = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        params[-1].grad = grad.mul_(1e-3)
    return params


@dataclass
class Runner:
    """One optimizer under measurement.

    Attributes:
        budget_seconds: what its turns may take together, in any case ``LEAST_TURNS`` of one step.
        warmup_seconds: what steps between the first and the turns may take, in any case one.
        used_seconds: what turns took so far.
        steps_per_turn: steps in a row, fewer where more would not fit into the budget.
        times: time of a step, one for each turn.
    """

    optimizer: torch.optim.Optimizer
    version: str
    budget_seconds: float
    warmup_seconds: float
    used_seconds: float = 0.0
    extra_bytes: int = 0
    steps_per_turn: int = 1
    times: list[float] = field(default_factory=list)

    def warm_up(self, machine: Machine) -> None:
        """Take the first steps until two take as long; the very first compiles kernels."""
        machine.seconds(self.optimizer.step)
        steps = [machine.seconds(self.optimizer.step)]
        while len(steps) < MOST_WARM_UP_STEPS and sum(steps) < self.warmup_seconds:
            steps.append(machine.seconds(self.optimizer.step))
            if max(steps[-2:]) <= AGREE * min(steps[-2:]):
                break
        self.extra_bytes = machine.extra_bytes(self.optimizer.step)
        fitting = self.budget_seconds / (LEAST_TURNS * min(steps[-2:]))
        self.steps_per_turn = min(machine.steps_per_turn, max(1, int(fitting)))

    def turn(self, machine: Machine) -> None:
        """Time one turn, unless the budget is used up."""
        if len(self.times) >= LEAST_TURNS and self.used_seconds >= self.budget_seconds:
            return
        self.times.append(machine.turn_seconds(self.optimizer.step, self.steps_per_turn))
        self.used_seconds += self.times[-1] * self.steps_per_turn


def start(
    machine: Machine, params: list[nn.Parameter], labels: list[str], options: argparse.Namespace
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Build and warm up optimizers; return them, and why others are missing."""
    runners, missing = {}, {}
    for label in labels:
        distribution, build = OPTIMIZERS[label]
        try:
            version = distribution_version(distribution)
            runner = Runner(build(params), version, options.budget_seconds, options.warmup_seconds)
            runner.warm_up(machine)
            runners[label] = runner
        except PackageNotFoundError:
            missing[label] = f"{distribution} is not installed"
        except Exception as error:
            text = str(error).splitlines()
            missing[label] = f"{type(error).__name__}: {text[0] if text else ''}"
    return runners, missing


def measure_set(
    machine: Machine, name: str, dtype_name: str, labels: list[str], options: argparse.Namespace
) -> Iterator[tuple[list[Row], list[Skipped]]]:
    """Yield what is known of one set after each round of turns, from ``LEAST_TURNS`` rounds on."""
    params = make_parameters(name, DTYPES[dtype_name], machine.device)
    bandwidth = machine.copy_bytes_per_second()
    runners, missing = start(machine, params, labels, options)
    skipped = [Skipped(name, dtype_name, label, reason) for label, reason in missing.items()]
    numel = sum(param.numel() for param in params)
    for count in range(1, max(options.repeats, 1) + 1):
        gc.disable()
        for runner in runners.values():
            runner.turn(machine)
        gc.enable()
        if count >= min(LEAST_TURNS, options.repeats):
            yield _rows(name, dtype_name, runners, numel, bandwidth), skipped


def _rows(
    name: str, dtype_name: str, runners: dict[str, Runner], numel: int, bandwidth: float
) -> list[Row]:
    moved = numel * 3 * DTYPES[dtype_name].itemsize
    medians = {label: statistics.median(runner.times) for label, runner in runners.items()}
    baseline = medians.get(BASELINE)
    rows = []
    for label, runner in runners.items():
        size = state_bytes(runner.optimizer)
        rows.append(
            Row(
                set=name,
                dtype=dtype_name,
                optimizer=label,
                version=runner.version,
                step_ms=1e3 * medians[label],
                least_ms=1e3 * min(runner.times),
                steps=len(runner.times) * runner.steps_per_turn,
                ratio=medians[label] / baseline if baseline else None,
                state_bytes_per_parameter=size / numel,
                peak_extra_bytes=runner.extra_bytes,
                bandwidth_share=(moved + 2 * size) / medians[label] / bandwidth,
            )
        )
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--sets", default="gpt2,llama1b" if default == "cuda" else "flat50m,gpt2")
    parser.add_argument("--dtypes", default="fp32,bf16", help="of fp32, bf16, fp16")
    parser.add_argument("--only", default="", help="parts of optimizers' names, comma-separated")
    parser.add_argument("--repeats", type=int, default=30, help="turns of each optimizer")
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=20.0,
        help="of each optimizer on each set; slow ones take fewer steps, but 3 at least",
    )
    parser.add_argument(
        "--warmup-seconds",
        type=float,
        default=60.0,
        help="of each optimizer on each set, the first step not counted",
    )
    parser.add_argument(
        "--instruction-set", choices=INSTRUCTION_SETS, help="to use on a CPU; its best by default"
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--resume", action="store_true", help="measure what the file lacks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the arguments ask for, print tables and write the JSON file."""
    options = parse(arguments)
    if options.instruction_set is not None:
        if options.device != "cpu":
            raise SystemExit("--instruction-set has a meaning with --device cpu only.")
        hold_to(options.instruction_set, sys.argv[1:] if arguments is None else arguments)
    machine = Machine(options.device)
    described = machine.describe()
    results = Results(options.json, described, resume=options.resume)
    parts = options.only.split(",")
    asked = [label for label in OPTIMIZERS if any(part in label for part in parts)]
    for name in options.sets.split(","):
        for dtype in options.dtypes.split(","):
            labels = results.lacking(name, dtype, asked)
            if not labels:
                continue
            rows: list[Row] = []
            skipped: list[Skipped] = []
            grown = results
            for rows, skipped in measure_set(machine, name, dtype, labels, options):
                grown = results.with_set(rows, skipped)
                grown.write()
            results = grown
            print_rows(rows, skipped, described.get("instruction_set", ""))
            gc.collect()
            if machine.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
