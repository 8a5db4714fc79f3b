"""Whenever a save is killed or fails, the folder holds the old checkpoint or the new one, whole."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luma_core import checkpoint
from luma_core.checkpoint.storage import local
from luma_core.errors import CheckpointExistsError, StorageError

DRIVER = Path(__file__).with_name("crash_driver.py")


@pytest.mark.parametrize(("mode", "before"), [("fresh", "none"), ("overwrite", "old")])
def test_killing_a_save_at_any_storage_operation_leaves_a_whole_checkpoint_or_none(
    tmp_path, mode, before
):
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), mode],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {before, "new"}
    assert found == sorted(found, key=["none", "old", "new"].index)
    # Shards, manifest and index: each written in halves, synced, renamed and the folder synced.
    assert len(found) >= 30


def _fail_at(monkeypatch, fatal, code):
    """Make the ``fatal``-th storage operation fail; return how many there were."""
    count = [0]

    def failing(function):
        def wrapped(*args, **kwargs):
            count[0] += 1
            if count[0] == fatal:
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(local.LocalWriter, "write", failing(local.LocalWriter.write))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    return count


def _failure_of_overwriting(folder, run):
    try:
        checkpoint.save(folder, optimizer=run.optimizer, model=run.model, overwrite=True)
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "Free some space"), (errno.EDQUOT, "quota"), (errno.EACCES, "Check who")],
)
def test_a_store_that_fails_anywhere_raises_and_leaves_the_previous_checkpoint(
    tmp_path, new_run, same, monkeypatch, code, hint
):
    old, new = new_run(steps=2), new_run(steps=4)
    checkpoint.save(tmp_path, optimizer=old.optimizer, model=old.model)
    files = {path.name for path in tmp_path.iterdir()}
    for fatal in range(1, 500):
        with monkeypatch.context() as patch:
            count = _fail_at(patch, fatal, code)
            failure = _failure_of_overwriting(tmp_path, new)
        if failure is None:
            assert count[0] < fatal
            break
        assert failure.errno == code
        assert hint in str(failure)
        assert str(tmp_path) in str(failure)
        if checkpoint.open(tmp_path).manifest.summary.step == 4:
            continue
        left = {path.name for path in tmp_path.iterdir()}
        assert left in (files, files - {"model.safetensors.index.json"})
        assert checkpoint.verify(tmp_path).ok
        other = new_run(steps=0)
        checkpoint.load(tmp_path, optimizer=other.optimizer, model=other.model)
        assert same(other.snapshot(), old.snapshot())
    assert fatal > 10
    assert checkpoint.verify(tmp_path).ok
    assert not checkpoint.verify(tmp_path).notes


FULL = """
import resource, signal, sys
import torch
from luma_core import checkpoint
from luma_core.errors import StorageError
from luma_core.optim import LUMA
p = torch.nn.Parameter(torch.zeros(64, 1024))
optimizer = LUMA([("p", p)])
p.grad = torch.randn_like(p)
optimizer.step()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], optimizer=optimizer, overwrite=True)
except StorageError as error:
    print(error)
"""


def test_a_limit_that_the_kernel_enforces_is_reported_and_leaves_nothing_behind(tmp_path, new_run):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "File too large. Such large files are not allowed there" in done.stdout, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_exception_of_the_caller_takes_the_new_files_back(tmp_path, new_run):
    run = new_run()

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(
            tmp_path / "c", optimizer=run.optimizer, max_shard_bytes=2000, progress=interrupt
        )
    assert not list((tmp_path / "c").iterdir())


def test_a_checkpoint_is_not_overwritten_unasked(tmp_path, new_run):
    run = new_run()
    first = checkpoint.save(tmp_path, optimizer=run.optimizer)
    with pytest.raises(CheckpointExistsError, match="there is a checkpoint already"):
        checkpoint.save(tmp_path, optimizer=run.optimizer)
    assert checkpoint.open(tmp_path).manifest == first


def test_overwriting_removes_the_files_of_the_old_checkpoint_and_no_others(tmp_path, new_run):
    run = new_run()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model, max_shard_bytes=2000)
    for generation in (2, 3):
        manifest = checkpoint.save(tmp_path, optimizer=run.optimizer, overwrite=True)
        assert manifest.generation == generation
    names = {path.name for path in tmp_path.iterdir()}
    shard = "optimizer-g3-00001-of-00001.safetensors"
    assert names == {"luma.json", shard, "notes.txt"}


def test_shards_of_other_programs_are_neither_removed_nor_replaced(tmp_path, new_run):
    run = new_run()
    others = {
        "model-00001-of-00001.safetensors": b"x" * 99,
        "optimizer-00007-of-00009.safetensors": b"",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model)
    for name, content in others.items():
        assert (tmp_path / name).read_bytes() == content
    assert checkpoint.verify(tmp_path).ok


def test_an_index_of_other_files_is_not_replaced(tmp_path, new_run):
    run = new_run()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointExistsError, match="belongs to other files"):
        checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors.index.json"]


def test_a_damaged_checkpoint_can_be_overwritten(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model)
    (tmp_path / "luma.json").write_text("{")
    manifest = checkpoint.save(tmp_path, optimizer=run.optimizer, overwrite=True)
    assert manifest.generation == 2
    assert checkpoint.verify(tmp_path).ok
    assert {path.name for path in tmp_path.iterdir()} == {
        "luma.json",
        "optimizer-g2-00001-of-00001.safetensors",
    }
