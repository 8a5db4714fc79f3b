"""Damaged steps: which one is whole, what is said, and how the run goes on."""

import errno
import logging

import pytest

from luma_core.checkpoint import CheckpointManager
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.errors import CorruptCheckpointError, StorageError

SHARD = "optimizer-00001-of-00001.safetensors"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": lambda folder: flip(folder / SHARD),
    "a cut file": lambda folder: (folder / SHARD).write_bytes(b""),
    "a missing file": lambda folder: (folder / SHARD).unlink(),
    "a manifest": lambda folder: (folder / "luma.json").write_text("{"),
}


@pytest.fixture
def run(new_run):
    return new_run()


def save(manager, run, steps):
    for step in steps:
        run.step(step)
        manager.save(step, optimizer=run.optimizer)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_run_goes_on_from_the_last_step_that_is_whole(tmp_path, run, new_run, caplog, damage):
    manager = CheckpointManager(tmp_path)
    save(manager, run, (1, 2, 3, 4))
    for step in (3, 4):
        damage(tmp_path / f"{step:08d}")
    with caplog.at_level(logging.WARNING, "luma"):
        assert (manager.latest(), manager.latest(verified=True)) == (4, 2)
    assert [f"step {step} is skipped" in caplog.text for step in (4, 3, 2)] == [True, True, False]
    other = new_run(steps=0)
    with pytest.raises(CorruptCheckpointError) as caught:
        manager.load(optimizer=other.optimizer)
    assert "00000004" in caught.value.message
    assert "manager.load(2, ...), then manager.rewind(2)" in caught.value.hint
    manager.load(2, optimizer=other.optimizer)
    assert manager.rewind(2) == [3, 4]
    save(manager, run, [3])
    assert (manager.steps(), manager.latest(verified=True)) == ([1, 2, 3], 3)


def test_what_is_whole_after_a_damaged_step_is_offered_without_going_back(tmp_path, run):
    manager = CheckpointManager(tmp_path)
    save(manager, run, (1, 2))
    flip(tmp_path / "00000001" / SHARD)
    with pytest.raises(CorruptCheckpointError) as caught:
        manager.load(1, optimizer=run.optimizer)
    assert "manager.load(2, ...)." in caught.value.hint
    flip(tmp_path / "00000002" / SHARD)
    assert manager.latest(verified=True) is None
    with pytest.raises(CorruptCheckpointError, match="No other step here is whole"):
        manager.load(optimizer=run.optimizer)
    assert CheckpointManager(tmp_path / "none").latest(verified=True) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENETDOWN])
def test_bytes_that_cannot_be_read_are_damage_and_a_store_that_fails_is_not(
    tmp_path, run, monkeypatch, number
):
    manager = CheckpointManager(tmp_path)
    save(manager, run, (1, 2))
    reader = LocalStore.reader

    def failing(self, name, *, again=False):
        if "00000002" in self.url:
            raise OSError(number, "it failed")
        return reader(self, name, again=again)

    monkeypatch.setattr(LocalStore, "reader", failing)
    if number == errno.EIO:
        assert manager.latest(verified=True) == 1
    else:
        with pytest.raises(StorageError, match="it failed"):
            manager.latest(verified=True)


def test_the_full_step_of_the_chain_before_outlives_a_damaged_chain(tmp_path, run, new_run):
    manager = CheckpointManager(tmp_path, keep_last=1, max_chain=3)
    for step in range(1, 12):
        save(manager, run, [step])
        if step > 3:
            # The first of the last chain takes the whole chain with it.
            first = max(s for s in manager.steps() if manager.open(s).manifest.chain == 1)
            shard = tmp_path / f"{first:08d}" / SHARD
            data = shard.read_bytes()
            flip(shard)
            assert manager.latest(verified=True) == first - 3
            shard.write_bytes(data)
        assert manager.latest(verified=True) == step
        assert len(manager.steps()) <= 4
