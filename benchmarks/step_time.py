"""Step time, state size and extra memory of optimizers, in one run and on the same tensors.

``python -m benchmarks.step_time [--device cpu|cuda] [--sets gpt2,llama1b] [--json F]``. The
optimizers take turns, so that whatever disturbs the machine disturbs all of them; times are
medians over turns, host overhead included. On a GPU a turn is 40 steps in a row, between two
synchronisations; fewer of optimizers so slow that ``--budget-seconds`` would not last.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.optimizers import BASELINE, OPTIMIZERS, distribution_version, state_bytes
from benchmarks.shapes import SETS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP_STEPS = 3
LEAST_TURNS = 3


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
        return {"device": self.device, "name": name, "threads": torch.get_num_threads()}


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
        budget_seconds: what warming up and timing may take together; one warm-up step and
            ``LEAST_TURNS`` turns of one step are taken in any case.
        used_seconds: what they took so far.
        steps_per_turn: steps in a row, fewer where more would not fit into the budget.
        times: time of a step, one for each turn.
    """

    optimizer: torch.optim.Optimizer
    version: str
    budget_seconds: float
    used_seconds: float = 0.0
    extra_bytes: int = 0
    steps_per_turn: int = 1
    times: list[float] = field(default_factory=list)

    def warm_up(self, machine: Machine) -> None:
        """Take the first steps, which compile kernels and allocate state."""
        step_seconds = 0.0
        for count in range(WARM_UP_STEPS):
            if count and self.used_seconds + step_seconds > self.budget_seconds / 2:
                break
            step_seconds = machine.seconds(self.optimizer.step)
            self.used_seconds += step_seconds
        began = time.perf_counter()
        self.extra_bytes = machine.extra_bytes(self.optimizer.step)
        step_seconds = time.perf_counter() - began
        left = (self.budget_seconds - self.used_seconds) / (LEAST_TURNS * step_seconds)
        self.steps_per_turn = min(machine.steps_per_turn, max(1, int(left)))

    def turn(self, machine: Machine) -> None:
        """Time one turn, unless the budget is used up."""
        if len(self.times) >= LEAST_TURNS and self.used_seconds >= self.budget_seconds:
            return
        self.times.append(machine.seconds(self.optimizer.step, self.steps_per_turn))
        self.used_seconds += self.times[-1] * self.steps_per_turn


def start(
    machine: Machine, params: list[nn.Parameter], options: argparse.Namespace
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Build and warm up the optimizers asked for; return them, and why others are missing."""
    runners, missing = {}, {}
    for label, (distribution, build) in OPTIMIZERS.items():
        if options.only and not any(part in label for part in options.only.split(",")):
            continue
        try:
            version = distribution_version(distribution)
            runner = Runner(build(params), version, options.budget_seconds)
            runner.warm_up(machine)
            runners[label] = runner
        except PackageNotFoundError:
            missing[label] = f"{distribution} is not installed"
        except Exception as error:
            text = str(error).splitlines()
            missing[label] = f"{type(error).__name__}: {text[0] if text else ''}"
    return runners, missing


def measure_set(
    machine: Machine, name: str, dtype_name: str, options: argparse.Namespace
) -> tuple[list[Row], list[Skipped]]:
    params = make_parameters(name, DTYPES[dtype_name], machine.device)
    runners, missing = start(machine, params, options)
    gc.disable()
    for _ in range(options.repeats):
        for runner in runners.values():
            runner.turn(machine)
    gc.enable()
    bandwidth = machine.copy_bytes_per_second()
    numel = sum(param.numel() for param in params)
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
    skipped = [Skipped(name, dtype_name, label, reason) for label, reason in missing.items()]
    return rows, skipped


def print_rows(rows: list[Row], skipped: list[Skipped]) -> None:
    heads = ("step ms", "ratio", "state B/p", "extra B/p", "bandwidth", "steps")
    for name, dtype in dict.fromkeys((row.set, row.dtype) for row in [*rows, *skipped]):
        print(f"\n{name} {dtype:<24}" + "".join(f"{head:>11}" for head in heads))
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
    parser.add_argument("--json", type=Path, help="file to write the results to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the arguments ask for, print tables and write the JSON file."""
    options = parse(arguments)
    machine = Machine(options.device)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for name in options.sets.split(","):
        for dtype in options.dtypes.split(","):
            found, missing = measure_set(machine, name, dtype, options)
            print_rows(found, missing)
            rows += found
            skipped += missing
            gc.collect()
            if machine.device == "cuda":
                torch.cuda.empty_cache()
    if options.json:
        result = {
            "benchmark": "step_time",
            "machine": machine.describe(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "rows": [asdict(row) for row in rows],
            "skipped": [asdict(item) for item in skipped],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
