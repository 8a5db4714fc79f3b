"""Asynchronous saves that fail, and changes that they were not told of."""

import os
import threading

import pytest

from luma_core import changes, checkpoint
from luma_core.checkpoint import CheckpointManager
from luma_core.checkpoint.staging import pool
from luma_core.errors import ConfigurationError, StateChangedError, StorageError
from tests.core.checkpoint.staging.async_training import (
    MODES,
    Training,
    WatchedStore,
    assert_saved,
    gate,
    saved_fields,
)

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.mark.parametrize("mode", MODES)
def test_a_save_that_fails_lets_steps_go_on(tmp_path, mode):
    run = Training("luma", mode, tmp_path)
    failing = threading.Event()

    def fail():
        failing.wait(60)
        raise OSError("the cable was cut")

    handle = run.save(WatchedStore(tmp_path / "c", fail))
    stepping = threading.Thread(target=run.step, args=(3,))
    stepping.start()
    stepping.join(0.2)
    failing.set()
    stepping.join(60)
    assert not stepping.is_alive()
    with pytest.raises(StorageError, match="the cable was cut"):
        handle.result()
    assert not checkpoint.exists(tmp_path / "c")
    run.step(4)
    expected = run.fields()
    run.save(tmp_path / "c").result()
    assert_saved(tmp_path / "c", expected)


def test_copies_that_cannot_be_made_fail_the_save_and_not_the_step(tmp_path, monkeypatch):
    run = Training()

    def fail(kind):
        raise MemoryError("no memory for a copy")

    with gate() as waiting:
        monkeypatch.setattr(pool, "_new", fail)
        handle = run.save(tmp_path / "c", progress=waiting)
        run.step(3)
        run.step(4)
    with pytest.raises(MemoryError, match="no memory for a copy"):
        handle.result()
    assert not checkpoint.exists(tmp_path / "c")


@pytest.mark.usefixtures("no_background_copies")
@pytest.mark.parametrize("then", ["nothing", "a step"])
@pytest.mark.parametrize("mode", ["resident", "host"])
def test_state_that_somebody_else_changed_is_not_saved(tmp_path, mode, then):
    run = Training("luma", mode)
    run.save(tmp_path).result()
    before = saved_fields(tmp_path)
    codes = run.optimizer.state[run.model[0].weight]["exp_avg.codes"]
    with gate() as waiting:
        handle = run.save(tmp_path, progress=waiting)
        codes[:2] = 0
        if then == "a step":
            run.step(3)
    with pytest.raises(StateChangedError, match=r"exp_avg.* was changed in place .* nothing was"):
        handle.result()
    assert_saved(tmp_path, before)
    run.save(tmp_path).result()


@pytest.mark.usefixtures("no_background_copies")
@pytest.mark.parametrize("mode", ["resident", "host"])
def test_a_change_that_is_announced_is_not_seen(tmp_path, mode):
    run = Training("luma", mode)
    expected = run.fields()
    codes = run.optimizer.state[run.model[0].weight]["exp_avg.codes"]
    with gate() as waiting:
        handle = run.save(tmp_path, progress=waiting)
        checkpoint.before_change([codes[:2]])
        codes[:2] = 0
    handle.result()
    assert_saved(tmp_path, expected)


def test_a_save_that_is_refused_before_it_reads_holds_no_step(tmp_path):
    run = Training("luma", "disk", tmp_path)
    manager = CheckpointManager(tmp_path / "run")
    manager.save(40, optimizer=run.optimizer)
    handle = manager.save(30, optimizer=run.optimizer, wait=False)
    stepping = threading.Thread(target=run.step, args=(3,))
    stepping.start()
    stepping.join(60)
    assert not stepping.is_alive()
    with pytest.raises(ConfigurationError, match="step=30 is before step 40"):
        handle.result()
    run.step(4)


@pytest.mark.usefixtures("no_background_copies")
@pytest.mark.parametrize("mode", ["resident", "host", "disk"])
def test_a_save_that_begins_again_in_full_saves_the_same(tmp_path, mode, monkeypatch):
    """Its base turns out to be damaged after some of the state was read, and a step comes then."""
    run = Training("luma", mode, tmp_path)
    manager = CheckpointManager(tmp_path / "run", max_chain=3)
    manager.save(1, optimizer=run.optimizer)
    damaged = max((tmp_path / "run" / "00000001").glob("*.safetensors"))
    data = bytearray(damaged.read_bytes())
    data[-5:] = b"other"
    damaged.write_bytes(data)
    run.step(3)
    expected = run.fields()
    begun = []

    def step_in_between(done, total):
        begun.append(done)
        if begun.count(0) == 2 and done == 0 and mode != "disk":
            run.step(4)

    handle = manager.save(2, optimizer=run.optimizer, wait=False, progress=step_in_between)
    handle.result()
    assert begun.count(0) == 2
    assert_saved(tmp_path / "run" / "00000002", expected)


def test_a_forked_child_steps_without_waiting(tmp_path):
    run = Training("luma", "disk", tmp_path)
    with gate() as waiting:
        run.save(tmp_path / "c", progress=waiting)
        child = os.fork()
        if child == 0:
            os._exit(3 if changes.anybody_reads() else 7)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
