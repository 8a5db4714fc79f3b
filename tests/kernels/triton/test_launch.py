"""Kernels are bound once: later launches reach the compiled kernel with the same arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("launch_twice.py")


def test_later_launches_skip_binding_and_pass_the_same_arguments(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, timeout=100
    )
    assert run.returncode == 0, run.stderr[-3000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("REPORT "))
    report = json.loads(line.removeprefix("REPORT "))
    first, second, third, repeated = report["calls"]
    assert report["binds"] == 1
    assert first == second
    assert [a for a, b in zip(first, third, strict=True) if a != b] == [100]
    assert 1 in third
    assert repeated == first
    assert report["unbound"] is None
    assert report["tensors"] == [2, 2, 2, 0]
    assert report["fusion"] is False
