"""A killed run keeps its rows, a resumed one adds to them, and no compiling step is counted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import instruction_set, step_time
from benchmarks.optimizers import BASELINE
from luma_kernels import cpu

FOREACH = "torch AdamW foreach"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure one small tensor, and a copy of one."""
    monkeypatch.setitem(step_time.SETS, "gpt2", lambda: [(64, 32)])
    monkeypatch.setattr(step_time.Machine, "copy_bytes_per_second", lambda self: 1e9)


def measure(path: Path, only: str, *more: str) -> dict[str, Any]:
    arguments = ["--device", "cpu", "--sets", "gpt2", "--dtypes", "fp32", "--repeats", "4"]
    step_time.main([*arguments, "--only", only, "--json", str(path), *more])
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_a_killed_run_keeps_rows_and_a_resumed_one_adds_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    turn, turns = step_time.Runner.turn, []

    def killed(runner: step_time.Runner, machine: step_time.Machine) -> None:
        if len(turns) == 3:
            raise KeyboardInterrupt
        turns.append(runner)
        turn(runner, machine)

    with monkeypatch.context() as patch:
        patch.setattr(step_time.Runner, "turn", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(path, BASELINE)
    first = json.loads(path.read_text())["rows"]
    assert [(row["optimizer"], row["steps"]) for row in first] == [(BASELINE, 3)]

    rows = measure(path, f"{BASELINE},{FOREACH}", "--resume")["rows"]
    assert rows[0] == first[0]
    assert [row["optimizer"] for row in rows] == [BASELINE, FOREACH]
    assert rows[1]["ratio"] > 0
    assert measure(path, f"{BASELINE},{FOREACH}", "--resume")["rows"] == rows


def test_a_file_of_other_versions_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    result = measure(path, BASELINE)
    path.write_text(json.dumps({**result, "versions": {}}))
    with pytest.raises(SystemExit, match="other versions"):
        measure(path, BASELINE, "--resume")


def test_steps_before_the_optimizer_is_warm_use_no_budget() -> None:
    class Compiling(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> None:
            self.count += 1
            time.sleep({1: 0.2, 2: 0.1}.get(self.count, 0.002))

    optimizer = Compiling([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    runner = step_time.Runner(optimizer, "1", budget_seconds=0.3, warmup_seconds=60.0)
    machine = step_time.Machine("cpu")
    runner.warm_up(machine)
    assert optimizer.count >= 4
    for _ in range(20):
        runner.turn(machine)
    assert len(runner.times) == 20
    assert max(runner.times) < 0.1


def test_warming_up_is_bounded() -> None:
    class Slow(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> None:
            self.count += 1
            time.sleep(0.02)

    optimizer = Slow([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    runner = step_time.Runner(optimizer, "1", budget_seconds=1.0, warmup_seconds=0.01)
    runner.warm_up(step_time.Machine("cpu"))
    assert optimizer.count == 3  # the first, one to warm up, and one whose memory is measured


def test_an_instruction_set_that_torch_did_not_choose_is_asked_of_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        started.append((command, environment))
        raise SystemExit

    monkeypatch.setattr(instruction_set.os, "execve", execve)
    monkeypatch.setattr(instruction_set.cpu, "use_instruction_set", lambda name: None)
    monkeypatch.setattr(instruction_set, "torch_instruction_set", lambda: "default")
    with pytest.raises(SystemExit):
        measure(tmp_path / "results.json", BASELINE, "--instruction-set", "avx2")
    ((command, environment),) = started
    assert command[1:5] == ["-m", "benchmarks.step_time", "--device", "cpu"]
    assert command[-2:] == ["--instruction-set", "avx2"]
    assert environment["ATEN_CPU_CAPABILITY"] == "avx2"

    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with pytest.raises(SystemExit, match="PyTorch has no avx2 kernels"):
        measure(tmp_path / "results.json", BASELINE, "--instruction-set", "avx2")


@pytest.mark.skipif(
    "avx2" not in cpu.native_status().instruction_sets, reason="needs a CPU with AVX2"
)
def test_a_held_instruction_set_stands_in_heading_and_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    arguments = ["--device", "cpu", "--sets", "gpt2", "--dtypes", "fp32", "--repeats", "3"]
    arguments += ["--only", "LUMA", "--instruction-set", "avx2", "--json", str(path)]
    program = (
        "from benchmarks import step_time; from luma_kernels.cpu.library import native_library; "
        "step_time.SETS['gpt2'] = lambda: [(64, 32)]; "
        "step_time.Machine.copy_bytes_per_second = lambda self: 1e9; "
        f"step_time.main({arguments}); print(native_library()._default)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "gpt2 fp32 avx2 " in shown
    assert shown.splitlines()[-1] == "avx2"
    assert json.loads(path.read_text())["machine"]["instruction_set"] == "avx2"
