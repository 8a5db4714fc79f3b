"""A killed run keeps its rows, a resumed one adds to them, and no compiling step is counted."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import step_time
from benchmarks.optimizers import BASELINE

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
