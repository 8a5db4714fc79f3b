"""What an asynchronous save writes is the state at the call, whatever steps follow, and when."""

import random
import threading
import time

import pytest
import torch

from luma_core import changes, checkpoint
from luma_core.checkpoint.staging.tensors import HostTensor
from luma_core.optim import step_in_backward
from luma_core.optim.offload.files import Folder
from tests.core.checkpoint.staging.async_training import (
    MODES,
    OPTIMIZERS,
    Training,
    WatchedStore,
    assert_saved,
    gate,
)

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.mark.parametrize("in_backward", [False, True], ids=["step", "step_in_backward"])
@pytest.mark.parametrize("mode", ["resident", "host", "cpu-step"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_that_come_before_the_first_byte_is_read(tmp_path, kind, mode, in_backward):
    run = Training(kind, mode)
    if in_backward:
        step_in_backward(run.model, run.optimizer)
    expected = run.fields()
    with gate() as waiting:
        handle = run.save(tmp_path / "c", progress=waiting)
        for step in range(3, 6):
            run.step(step)
    assert handle.result().summary.step == 3
    assert_saved(tmp_path / "c", expected)
    now = run.fields()
    assert any(not torch.equal(now[key], expected[key]) for key in now)


@pytest.mark.usefixtures("no_background_copies")
@pytest.mark.parametrize("in_backward", [False, True], ids=["step", "step_in_backward"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_alone_keeps_what_it_changes(tmp_path, kind, in_backward):
    run = Training(kind)
    if in_backward:
        step_in_backward(run.model, run.optimizer)
    expected = run.fields()
    with gate() as waiting:
        handle = run.save(tmp_path / "c", progress=waiting)
        run.step(3)
        run.step(4)
    handle.result()
    assert_saved(tmp_path / "c", expected)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_waits_for_state_on_disk_and_none_is_copied(tmp_path, kind, made):
    run = Training(kind, "disk", tmp_path)
    expected = run.fields()
    stepping = threading.Thread(target=run.step, args=(3,))
    with gate() as waiting:
        handle = run.save(tmp_path / "c", progress=waiting)
        stepping.start()
        stepping.join(0.3)
        assert stepping.is_alive()
    stepping.join(60)
    assert not stepping.is_alive()
    handle.result()
    assert_saved(tmp_path / "c", expected)
    assert not made


def test_a_step_does_not_wait_for_state_whose_files_are_cloned(tmp_path, monkeypatch, made):
    monkeypatch.setattr(Folder, "clone", lambda _, arena: arena.bytes.clone())
    run = Training("luma", "disk", tmp_path)
    expected = run.fields()
    with gate() as waiting:
        handle = run.save(tmp_path / "c", progress=waiting)
        run.step(3)
        run.step(4)
    handle.result()
    assert_saved(tmp_path / "c", expected)
    assert not made


def test_state_on_disk_is_never_copied(tmp_path, made):
    run = Training("luma", "disk", tmp_path)
    expected = run.fields()
    handle = run.save(tmp_path / "c")
    run.step(3)
    handle.result()
    assert not made
    assert_saved(tmp_path / "c", expected)


@pytest.mark.parametrize("mode", ["resident", "host", "cpu-step"])
def test_state_in_memory_is_copied_while_the_save_is_held_up(tmp_path, mode):
    run = Training("luma", mode)
    with gate() as waiting:
        run.save(tmp_path, progress=waiting)
        deadline = time.monotonic() + 60
        while changes.anybody_reads():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_was_read_is_not_copied(tmp_path, made, monkeypatch):
    monkeypatch.setattr(HostTensor, "copy_in_background", lambda self: None)
    run = Training("luma", "host")
    expected = run.fields()
    read = threading.Event()
    with gate() as waiting:

        def hold_last(done, total):
            if 2 * done > total:
                read.set()
                waiting()

        handle = run.save(tmp_path, progress=hold_last, compression="none")
        assert read.wait(60)
        run.step(3)
    handle.result()
    assert_saved(tmp_path, expected)
    assert 0 < len(made) < len(expected)


@pytest.mark.parametrize("mode", MODES)
def test_loading_replaces_what_is_being_saved(tmp_path, mode):
    run = Training("luma", mode, tmp_path)
    other = Training("luma", steps=6)
    expected = run.fields()
    with gate() as waiting:
        handle = run.save(tmp_path / "c", progress=waiting)
        run.optimizer.load_state_dict(other.optimizer.state_dict())
        if mode != "disk":
            run.step(3)
    handle.result()
    assert_saved(tmp_path / "c", expected)


def test_weights_and_extra_are_copied_at_once(tmp_path):
    run, extra = Training(), torch.arange(3000)
    with gate() as waiting:
        handle = run.save(tmp_path, model=run.model, extra=extra, progress=waiting)
        weight = run.model[0].weight.detach().clone()
        with torch.no_grad():
            run.model[0].weight.zero_()
        extra.zero_()
    handle.result()
    found = checkpoint.open(tmp_path)
    assert torch.equal(found.extra(), torch.arange(3000))
    checkpoint.load(tmp_path, model=run.model)
    assert torch.equal(run.model[0].weight, weight)


def test_two_saves_hold_at_the_same_time(tmp_path):
    run = Training()
    expected = []
    with gate() as waiting:
        for name in "ab":
            expected.append(run.fields())
            run.save(tmp_path / name, progress=waiting)
            run.step(3)
    checkpoint.wait_for_saves()
    for name, fields in zip("ab", expected, strict=True):
        assert_saved(tmp_path / name, fields)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_steps_at_any_moment(tmp_path, mode, compression):
    run = Training("luma", mode, tmp_path)
    chance = random.Random(mode + compression)
    store_chance = random.Random(7)

    def slowly():
        time.sleep(store_chance.choice([0, 0, 0.001, 0.003]))

    expected = {}
    for number in range(12):
        place = tmp_path / f"c{number}"
        expected[place] = run.fields()
        run.save(WatchedStore(place, slowly), compression=compression, max_shard_bytes=5000)
        for step in range(chance.randrange(1, 4)):
            time.sleep(chance.choice([0, 0.001, 0.01]))
            run.step(number + step)
    checkpoint.wait_for_saves()
    for place, fields in expected.items():
        assert_saved(place, fields)
