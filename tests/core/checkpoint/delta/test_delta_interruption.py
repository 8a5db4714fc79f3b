"""A save of differences that is killed or fails leaves its base and what was there before."""

import errno
import os
from pathlib import Path

import pytest

from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager
from luma_core.checkpoint.storage import local
from luma_core.errors import StorageError
from tests.core.checkpoint.write.killing import run_driver

DRIVER = Path(__file__).with_name("delta_kill_driver.py")


def _kill(url, mode, kills, environment=None):
    found = run_driver(DRIVER, url, mode, kills, environment)
    assert len(found["steps"]) == kills
    assert found["steps"] == sorted(found["steps"])
    assert max(found["chains"]) > 1


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("async", 3),
        pytest.param("sync", 25, marks=[pytest.mark.heavy]),
        pytest.param("async", 25, marks=[pytest.mark.heavy]),
    ],
)
@pytest.mark.timeout(600)
def test_killed_on_a_local_disk(tmp_path, mode, kills):
    _kill(tmp_path / "run", mode, kills)


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.timeout(900)
def test_killed_on_s3(seaweedfs, new_prefix, mode):
    _kill(f"s3://{seaweedfs.bucket}/{new_prefix}", mode, 15, seaweedfs.environment)


def _fail_at(monkeypatch, fatal):
    """Make the ``fatal``-th storage operation fail; return how many there were."""
    count = [0]

    def failing(function):
        def wrapped(*args, **kwargs):
            count[0] += 1
            if count[0] == fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return wrapped

    for owner, name in (
        (local.LocalWriter, "write"),
        (local.LocalStore, "read_range"),
        (os, "fsync"),
        (os, "replace"),
    ):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    return count


def test_a_store_that_fails_anywhere_leaves_base_and_previous_checkpoint(
    tmp_path, new_run, same, monkeypatch
):
    run = new_run(steps=20)
    manager = CheckpointManager(tmp_path, max_chain=4)
    for step in (1, 2):
        run.step(step)
        manager.save(step, optimizer=run.optimizer)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    run.step(3)
    for fatal in range(1, 300):
        with monkeypatch.context() as patch:
            count = _fail_at(patch, fatal)
            try:
                manager.save(3, optimizer=run.optimizer)
                failed = False
            except StorageError:
                failed = True
        if not failed:
            break
        assert {path: path.read_bytes() for path in before} == before
        if manager.latest() == 3:
            # The manifest was in place when making that durable failed.
            assert checkpoint.verify(manager.store(3)).ok
            manager.rewind(2)
        assert manager.steps() == [1, 2]
    assert count[0] < fatal
    assert fatal > 8
    assert manager.open(3).manifest.chain == 3
    other = new_run(steps=0)
    manager.load(3, optimizer=other.optimizer)
    state = {key for key in run.snapshot() if key.startswith("s/")}
    assert same(*({k: s[k] for k in state} for s in (other.snapshot(), run.snapshot())))
