"""A process that is killed while it saves leaves the last committed checkpoint, on any store."""

from pathlib import Path

import pytest

from tests.core.checkpoint.write.killing import run_driver

DRIVER = Path(__file__).with_name("kill_driver.py")


def _kill(url, mode, kills, environment=None):
    steps = run_driver(DRIVER, url, mode, kills, environment)
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
