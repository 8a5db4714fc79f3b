"""Ahead-of-time compilation: every kernel for three GPUs, without spills, with wide accesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def test_kernels_compile_without_spills_and_with_wide_accesses(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("REPORT "))
    report = json.loads(line.removeprefix("REPORT "))
    assert len(report) == 18
    for name, numbers in report.items():
        if name.startswith("gfx"):
            assert numbers["size"] > 0, name
            continue
        assert numbers["STACK"] == 0, (name, numbers)
        assert numbers["LOCAL"] == 0, (name, numbers)
        if not name.endswith("ragged"):
            assert numbers["loads"] >= 4, (name, numbers)
            assert numbers["stores"] >= 3, (name, numbers)
