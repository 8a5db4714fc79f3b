"""Numbered steps: which are there, which are kept, and that nothing of others is removed."""

import os
import shutil
import time

import pytest

from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
    UnsafeNameError,
)


@pytest.fixture
def run(new_run):
    return new_run()


def _folders(path):
    return sorted(entry.name for entry in path.iterdir())


def test_steps_are_folders_and_the_latest_is_loaded(tmp_path, new_run, same):
    manager = CheckpointManager(tmp_path)
    assert (manager.steps(), manager.latest()) == ([], None)
    with pytest.raises(CheckpointNotFoundError, match="no finished step"):
        manager.load()
    runs = {step: new_run(steps=step) for step in (2, 3, 10)}
    for step, run in runs.items():
        manager.save(step, optimizer=run.optimizer, model=run.model, extra={"step": step})
    assert manager.steps() == [2, 3, 10]
    assert _folders(tmp_path) == ["00000002", "00000003", "00000010"]
    for step, expected in ((None, 10), (2, 2)):
        other = new_run(steps=0)
        loaded = manager.load(step, optimizer=other.optimizer, model=other.model)
        assert loaded.extra == {"step": expected}
        assert same(other.snapshot(), runs[expected].snapshot())
    assert manager.open().manifest.summary.step == 10
    with pytest.raises(CheckpointNotFoundError):
        manager.load(4)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"keep_last": 1}, [7]),
        ({"keep_last": 3}, [5, 6, 7]),
        ({"keep_last": 2, "keep_every": 3}, [3, 6, 7]),
        ({"keep_every": 4}, [4, 7]),
        ({"keep_last": 1, "pinned": [2, 5]}, [2, 5, 7]),
        ({"keep_last": 99}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
def test_what_need_not_be_kept_is_removed(tmp_path, run, options, kept, wait):
    manager = CheckpointManager(tmp_path, **options)
    for step in range(1, 8):
        saved = manager.save(step, optimizer=run.optimizer, wait=wait)
    if not wait:
        saved.result()
    assert manager.steps() == kept
    assert _folders(tmp_path) == [f"{step:08d}" for step in kept]


def test_steps_of_others_are_not_removed(tmp_path, run):
    checkpoint.save(tmp_path / "00000001", optimizer=run.optimizer)
    checkpoint.save(tmp_path / "final", optimizer=run.optimizer)
    manager = CheckpointManager(tmp_path, keep_last=1, grace_seconds=0)
    manager.save(2, optimizer=run.optimizer)
    (tmp_path / "00000002" / "notes.txt").write_text("mine")
    shutil.copytree(tmp_path / "00000002", tmp_path / "00000003")
    (tmp_path / "00000004").mkdir()
    shutil.copy(
        *(tmp_path / s / "optimizer-00001-of-00001.safetensors" for s in ("00000002", "00000004"))
    )
    manager.save(9, optimizer=run.optimizer)
    assert manager.collect_garbage() == []
    assert _folders(tmp_path) == [
        *("00000001", "00000002", "00000003", "00000004", "00000009", "final")
    ]
    assert _folders(tmp_path / "00000002") == ["notes.txt"]
    assert checkpoint.verify(tmp_path / "00000003").ok
    assert manager.steps() == [1, 3, 9]


def test_a_damaged_step_is_not_removed(tmp_path, run):
    manager = CheckpointManager(tmp_path, keep_last=1)
    manager.save(1, optimizer=run.optimizer)
    (tmp_path / "00000001" / "luma.json").write_text("{")
    manager.save(2, optimizer=run.optimizer)
    assert manager.steps() == [1, 2]
    with pytest.raises(CorruptCheckpointError):
        manager.open(1)


def _unfinished(path, run):
    """Leave what a save that was killed before its manifest leaves."""
    manager = CheckpointManager(path.parent)
    manager.save(int(path.name), optimizer=run.optimizer, model=run.model)
    (path / "luma.json").unlink()
    (path / f".luma.json.{'0' * 16}.luma-tmp").write_text("{")


def _make_old(path, seconds):
    then = time.time() - seconds
    for entry in path.iterdir():
        os.utime(entry, (then, then))


def test_what_a_crash_left_is_not_the_latest_and_goes_when_it_is_old(tmp_path, run):
    for step in (2, 3):
        _unfinished(tmp_path / f"{step:08d}", run)
    manager = CheckpointManager(tmp_path, grace_seconds=1000)
    manager.save(1, optimizer=run.optimizer)
    assert manager.latest() == 1
    assert manager.collect_garbage() == []
    _make_old(tmp_path / "00000002", 2000)
    assert manager.collect_garbage() == [2]
    assert _folders(tmp_path) == ["00000001", "00000003"]
    manager.save(3, optimizer=run.optimizer)
    assert manager.latest() == 3
    assert checkpoint.verify(tmp_path / "00000003").ok


def test_the_first_save_collects_garbage(tmp_path, run):
    _unfinished(tmp_path / "00000007", run)
    _make_old(tmp_path / "00000007", 2000)
    manager = CheckpointManager(tmp_path, grace_seconds=1000)
    manager.save(1, optimizer=run.optimizer)
    assert _folders(tmp_path) == ["00000001"]


def test_a_removal_that_was_interrupted_is_finished_as_garbage(tmp_path, run, monkeypatch):
    manager = CheckpointManager(tmp_path, keep_last=1, grace_seconds=0)
    manager.save(1, optimizer=run.optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.steps, "remove_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            manager.save(2, optimizer=run.optimizer)
    assert _folders(tmp_path) == ["00000001", "00000002"]
    assert manager.steps() == [2]
    assert manager.collect_garbage() == [1]
    assert _folders(tmp_path) == ["00000002"]


def test_a_finished_step_is_not_overwritten_unasked(tmp_path, run):
    manager = CheckpointManager(tmp_path)
    manager.save(1, optimizer=run.optimizer)
    with pytest.raises(CheckpointExistsError):
        manager.save(1, optimizer=run.optimizer)
    assert manager.save(1, optimizer=run.optimizer, overwrite=True).generation == 2


def test_on_s3(seaweedfs, new_prefix, new_run, same):
    manager = CheckpointManager(seaweedfs.store(new_prefix), keep_last=2, keep_every=4)
    for step in range(1, 7):
        run = new_run(steps=step)
        handle = manager.save(step, optimizer=run.optimizer, model=run.model, wait=False)
    handle.result()
    assert manager.steps() == [4, 5, 6]
    other = new_run(steps=0)
    manager.load(optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), run.snapshot())
    assert seaweedfs.store(new_prefix).folders() == ["00000004", "00000005", "00000006"]


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_every": -1}, {"keep_last": True}])
def test_options_that_cannot_work(tmp_path, options):
    with pytest.raises(ConfigurationError, match="must be a positive integer or None"):
        CheckpointManager(tmp_path, **options)


@pytest.mark.parametrize("step", [-1, 1.0, "1", True])
def test_steps_that_cannot_be(tmp_path, run, step):
    with pytest.raises((ConfigurationError, UnsafeNameError), match="step="):
        CheckpointManager(tmp_path).save(step, optimizer=run.optimizer)


def test_rewinding_to_a_step_that_is_not_there_removes_nothing(tmp_path, run):
    manager = CheckpointManager(tmp_path)
    for step in (30, 40):
        manager.save(step, optimizer=run.optimizer)
    with pytest.raises(ConfigurationError, match=r"step=20 is not in .*; its steps are .*30.*40"):
        manager.rewind(20)
    assert manager.steps() == [30, 40]
    assert manager.rewind(0) == [30, 40]


def test_going_back_takes_a_rewind_and_loses_no_save(tmp_path, run):
    manager = CheckpointManager(tmp_path, keep_last=2, keep_every=30)
    for step in (30, 40, 50, 60):
        manager.save(step, optimizer=run.optimizer)
    manager.load(30, optimizer=run.optimizer)
    with pytest.raises(ConfigurationError, match="step=40 is before step 60"):
        manager.save(40, optimizer=run.optimizer)
    assert manager.steps() == [30, 50, 60]
    assert manager.rewind(30) == [50, 60]
    manager.save(40, optimizer=run.optimizer)
    assert manager.steps() == [30, 40]
    assert manager.latest() == 40


@pytest.mark.parametrize(
    "options",
    [{"pinned": "8"}, {"pinned": ["8"]}, {"pinned": [-1]}, {"grace_seconds": -5}]
    + [{"grace_seconds": value} for value in (None, "x", float("nan"))],
    ids=str,
)
def test_options_that_cannot_work_are_refused(tmp_path, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        CheckpointManager(tmp_path, **options)
