"""A process that is killed while it saves leaves the last committed checkpoint, on any store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")


def _kill(url, mode, kills, environment=None):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", DRIVER, url, mode, str(kills), "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert len(steps) == kills
    assert steps == sorted(steps)
    assert steps[-1] > 0


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=[pytest.mark.heavy])])
@pytest.mark.timeout(600)
def test_local(tmp_path, mode, kills):
    _kill(tmp_path / "c", mode, kills)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=[pytest.mark.heavy])])
@pytest.mark.timeout(600)
def test_s3(seaweedfs, new_prefix, mode, kills):
    _kill(f"s3://{seaweedfs.bucket}/{new_prefix}", mode, kills, seaweedfs.environment)


def test_a_store_without_conditional_put(rclone, new_prefix):
    _kill(f"s3://{rclone.bucket}/{new_prefix}", "sync", 5, rclone.environment)
