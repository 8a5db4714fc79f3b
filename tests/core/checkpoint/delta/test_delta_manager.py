"""Chains that a manager makes: how long, what retention leaves, and when a save is full again."""

import logging
import re
import shutil
import threading

import pytest

from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager, LoadedCheckpoint
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.errors import BrokenChainError, ConfigurationError, StorageError

SHARD = "optimizer-00001-of-00001.safetensors"


@pytest.fixture
def run(new_run):
    return new_run(steps=20)


def save_steps(manager, run, steps, **options):
    """Save after one training step each; return a copy of the state of each."""
    found = {}
    for step in steps:
        run.step(100 + step)
        saved = manager.save(step, optimizer=run.optimizer, **options)
        found[step] = run.snapshot()
    if not isinstance(saved, checkpoint.Manifest):
        saved.result()
    return found


def chains(manager):
    return {step: manager.open(step).manifest.chain for step in manager.steps()}


def state_of(snapshot):
    return {key: value for key, value in snapshot.items() if key.startswith("s/")}


def check(manager, new_run, same, snapshots):
    for step in manager.steps():
        assert checkpoint.verify(manager.store(step)).ok
        other = new_run(steps=0)
        assert isinstance(manager.load(step, optimizer=other.optimizer), LoadedCheckpoint)
        assert same(state_of(other.snapshot()), state_of(snapshots[step]))


@pytest.mark.parametrize("wait", [True, False])
def test_chains_are_as_long_as_they_may_be(tmp_path, run, new_run, same, wait):
    manager = CheckpointManager(tmp_path, max_chain=3)
    snapshots = save_steps(manager, run, range(1, 8), wait=wait)
    assert chains(manager) == {1: 1, 2: 2, 3: 3, 4: 1, 5: 2, 6: 3, 7: 1}
    check(manager, new_run, same, snapshots)


def test_without_being_asked_every_step_is_full(tmp_path, run):
    manager = CheckpointManager(tmp_path)
    save_steps(manager, run, range(1, 4))
    assert set(chains(manager).values()) == {1}


def test_another_manager_goes_on_with_the_chain(tmp_path, run):
    save_steps(CheckpointManager(tmp_path, max_chain=3), run, (1, 2))
    other = CheckpointManager(tmp_path, max_chain=3)
    save_steps(other, run, (3, 4))
    assert chains(other) == {1: 1, 2: 2, 3: 3, 4: 1}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_last": 1}, [1, 5, 6, 7, 8]),
        ({"keep_last": 3}, [1, 5, 6, 7, 8]),
        ({"keep_last": 1, "keep_every": 3}, [1, 2, 3, 5, 6, 7, 8]),
        ({"keep_last": 1, "pinned": [2]}, [1, 2, 5, 6, 7, 8]),
    ],
)
def test_retention_leaves_what_a_kept_step_builds_on(tmp_path, run, new_run, same, options, kept):
    manager = CheckpointManager(tmp_path, max_chain=4, **options)
    snapshots = save_steps(manager, run, range(1, 9))
    assert manager.steps() == kept
    check(manager, new_run, same, snapshots)
    snapshots |= save_steps(manager, run, [9])
    assert manager.latest() == 9
    assert set(manager.steps()) - {9} <= set(kept)
    check(manager, new_run, same, snapshots)


def test_retention_leaves_what_others_build_on(tmp_path, run):
    manager = CheckpointManager(tmp_path, keep_last=1)
    save_steps(manager, run, [1])
    run.step(7)
    checkpoint.save(tmp_path / "best", optimizer=run.optimizer, base=tmp_path / "00000001")
    save_steps(manager, run, [2, 3])
    assert manager.steps() == [1, 3]
    assert checkpoint.verify(tmp_path / "best").ok
    assert manager.rewind(0) == [3]
    assert checkpoint.verify(tmp_path / "best").ok
    shutil.rmtree(tmp_path / "best")
    save_steps(manager, run, [4])
    assert manager.steps() == [4]


def test_a_base_is_kept_for_a_step_whose_checksum_is_wrong(tmp_path, run):
    manager = CheckpointManager(tmp_path, keep_last=2, max_chain=2)
    save_steps(manager, run, [1, 2])
    path = tmp_path / "00000002" / "luma.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"named": true', b'"named": false'))
    save_steps(manager, run, [3])
    assert manager.steps() == [1, 2, 3]
    path.write_bytes(good)
    assert checkpoint.verify(tmp_path / "00000002").ok


def test_garbage_collection_leaves_chains(tmp_path, run, new_run, same):
    manager = CheckpointManager(tmp_path, max_chain=3, grace_seconds=0)
    snapshots = save_steps(manager, run, range(1, 4))
    assert manager.collect_garbage() == []
    check(manager, new_run, same, snapshots)


def test_rewinding_removes_the_later_ones_first(tmp_path, run, new_run, same, monkeypatch):
    manager = CheckpointManager(tmp_path, max_chain=8)
    snapshots = save_steps(manager, run, range(1, 6))
    removed = []
    remove = manager._folder._remove

    def failing(step, **options):
        removed.append(step)
        if len(removed) == 3:
            raise OSError("the store is gone")
        return remove(step, **options)

    monkeypatch.setattr(manager._folder, "_remove", failing)
    with pytest.raises(StorageError):
        manager.rewind(1)
    assert removed == [5, 4, 3]
    check(manager, new_run, same, snapshots)
    monkeypatch.undo()
    assert manager.rewind(1) == [2, 3]
    snapshots |= save_steps(manager, run, [2])
    assert chains(manager) == {1: 1, 2: 2}
    check(manager, new_run, same, snapshots)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / SHARD).write_bytes(b"x" * 9), "the header|CRC-32|ends at byte"),
        (lambda folder: (folder / SHARD).unlink(), "the file is missing"),
        (lambda folder: (folder / "luma.json").write_text("{"), "not valid JSON"),
    ],
)
def test_a_damaged_step_is_no_base_and_does_not_stop_training(
    tmp_path, run, new_run, same, caplog, damage, said
):
    manager = CheckpointManager(tmp_path, max_chain=3)
    save_steps(manager, run, [1])
    damage(tmp_path / "00000001")
    with caplog.at_level(logging.WARNING, "luma"):
        snapshots = save_steps(manager, run, [2])
    assert re.search(f"saving in full, for the last .*({said})", caplog.text)
    assert manager.open(2).manifest.chain == 1
    shutil.rmtree(tmp_path / "00000001")
    check(manager, new_run, same, snapshots)


def test_a_chain_whose_first_is_gone_is_left(tmp_path, run):
    manager = CheckpointManager(tmp_path, max_chain=8)
    save_steps(manager, run, [1, 2])
    shutil.rmtree(tmp_path / "00000001")
    save_steps(manager, run, [3, 4])
    assert chains(manager) == {2: 2, 3: 1, 4: 2}
    with pytest.raises(BrokenChainError):
        manager.load(2, optimizer=run.optimizer)


def test_steps_of_others_are_no_base(tmp_path, run):
    checkpoint.save(tmp_path / "00000001", optimizer=run.optimizer)
    manager = CheckpointManager(tmp_path, max_chain=3)
    save_steps(manager, run, [2])
    assert chains(manager) == {1: 1, 2: 1}


def test_a_step_saved_again_builds_on_the_one_before(tmp_path, run, new_run, same):
    manager = CheckpointManager(tmp_path, max_chain=8)
    snapshots = save_steps(manager, run, [1, 2])
    snapshots |= save_steps(manager, run, [2], overwrite=True)
    assert chains(manager) == {1: 1, 2: 2}
    check(manager, new_run, same, snapshots)


def test_without_compression_steps_are_full(tmp_path, run):
    manager = CheckpointManager(tmp_path, max_chain=8)
    save_steps(manager, run, [1, 2], compression="none")
    assert chains(manager) == {1: 1, 2: 1}


@pytest.mark.parametrize("value", [0, 33, True, 2.0, None])
def test_lengths_that_cannot_be(tmp_path, value):
    with pytest.raises(ConfigurationError, match=r"max_chain=.* must be an integer from 1 to 32"):
        CheckpointManager(tmp_path, max_chain=value)


def test_an_asynchronous_save_asks_nothing_of_the_store_first(tmp_path, run, monkeypatch):
    manager = CheckpointManager(tmp_path, keep_last=2, max_chain=3)
    save_steps(manager, run, [1, 2])
    asked = []

    def watched(name):
        method = getattr(LocalStore, name)

        def call(self, *arguments, **options):
            asked.append(threading.current_thread())
            return method(self, *arguments, **options)

        monkeypatch.setattr(LocalStore, name, call)

    for name in ("folders", "names", "size", "version", "modified", "read_range", "write"):
        watched(name)
    manager.save(3, optimizer=run.optimizer, wait=False).result()
    assert asked
    assert threading.current_thread() not in asked


def test_a_step_before_one_in_flight_is_refused_at_once(tmp_path, run):
    manager = CheckpointManager(tmp_path)
    opened = threading.Event()
    handle = manager.save(
        40, optimizer=run.optimizer, wait=False, progress=lambda *_: opened.wait(60)
    )
    try:
        with pytest.raises(ConfigurationError, match="step=30 is before step 40, which is being"):
            manager.save(30, optimizer=run.optimizer, wait=False)
    finally:
        opened.set()
    handle.result()
    with pytest.raises(ConfigurationError, match=r"step=30 is before step 40, which .* holds"):
        manager.save(30, optimizer=run.optimizer)
    late = manager.save(30, optimizer=run.optimizer, wait=False)
    with pytest.raises(ConfigurationError, match=r"step=30 is before step 40, which .* holds"):
        late.result()
    assert manager.steps() == [40]


@pytest.mark.parametrize("wait", [True, False])
def test_a_step_that_failed_does_not_stand_in_the_way(tmp_path, run, wait):
    manager = CheckpointManager(tmp_path)

    def fail(done, total):
        raise OSError("no space")

    def save():
        saved = manager.save(40, optimizer=run.optimizer, wait=wait, progress=fail)
        return saved if wait else saved.result()

    with pytest.raises(StorageError, match="no space"):
        save()
    manager.save(30, optimizer=run.optimizer)
    assert manager.steps() == [30]


def test_on_s3(seaweedfs, new_prefix, run, new_run, same):
    manager = CheckpointManager(seaweedfs.store(new_prefix), keep_last=1, max_chain=3)
    snapshots = save_steps(manager, run, range(1, 6), wait=False)
    assert chains(manager) == {1: 1, 4: 1, 5: 2}
    check(manager, new_run, same, snapshots)
