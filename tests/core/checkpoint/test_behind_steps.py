"""What a save behind training saves is the state at the call, whatever steps follow, and when."""

import os
import random
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam, changes, checkpoint
from luma_core.checkpoint import CheckpointManager, copies, staging, writer
from luma_core.checkpoint.held import HostTensor
from luma_core.checkpoint.local import LocalStore
from luma_core.errors import ConfigurationError, StateChangedError, StorageError
from luma_core.optim import step_in_backward
from luma_core.optim.offload import Offloader
from luma_core.optim.offload.files import Folder

OPTIMIZERS = {"luma": LUMA, "turboadam": TurboAdam, "lamb": LAMB, "adam-mini": AdamMini}
MODES = ["resident", "host", "disk", "cpu-step"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Let small tensors be held, in several pieces each, and all modes offload the CPU's."""
    monkeypatch.setattr(staging, "SMALL_BYTES", 0)
    for module in (staging, writer):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(Offloader, "takes", lambda *_: True)
    # As on a file system that cannot clone files.
    monkeypatch.setattr(Folder, "clone", lambda *_: None)
    yield
    checkpoint.background.finish()
    assert not changes.anybody_reads()
    checkpoint.background.before_save(wait=True)


class Training:
    """A small model with an optimizer, some steps into training."""

    def __init__(self, kind="luma", mode="resident", folder=None, steps=3):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 60), nn.Linear(60, 32), nn.Linear(32, 3))
        options = {} if mode == "resident" else {"offload": mode, "offload_buffer_bytes": 1 << 20}
        if mode == "disk":
            options["offload_directory"] = folder / "state"
        named = [(f"mlp.{name}", param) for name, param in self.model.named_parameters()]
        self.optimizer = OPTIMIZERS[kind](named, lr=1e-2, seed=1, **options)
        self.in_backward = None
        for step in range(steps):
            self.step(step)

    def step(self, index):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(index))
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()

    def fields(self):
        return {
            f"{state.name} {key}": value.clone()
            for state in self.optimizer.parameter_states()
            for key, value in state.fields.items()
        }

    def save(self, place, **options):
        return checkpoint.save(
            place, optimizer=self.optimizer, wait=False, overwrite=True, **options
        )


def saved_fields(folder):
    return {
        f"{state.name} {key}": value
        for state in checkpoint.open(folder).states()
        for key, value in state.fields.items()
    }


def assert_saved(folder, expected):
    found = saved_fields(folder)
    assert found.keys() == expected.keys()
    assert not [key for key in found if not torch.equal(found[key], expected[key])]


class WatchedStore(LocalStore):
    """A folder that calls a function before each write."""

    def __init__(self, folder, called):
        super().__init__(folder)
        self.called = called

    def write(self, name, *, expected=None):
        made = super().write(name, expected=expected)
        own = made.write

        def write(data):
            self.called()
            own(data)

        made.write = write
        return made


@contextmanager
def gate():
    """Hold a save before it reads anything, until the block ends."""
    opened = threading.Event()
    try:
        yield lambda *_: opened.wait(60)
    finally:
        opened.set()


@pytest.fixture
def no_copies_behind(monkeypatch):
    monkeypatch.setattr(HostTensor, "copy_behind", lambda _: None)


@pytest.fixture
def made(monkeypatch):
    """The kinds of all memory for copies, in the order in which it was made."""
    found = []
    new = copies._new
    monkeypatch.setattr(copies, "_new", lambda kind: found.append(kind) or new(kind))
    return found


@pytest.mark.parametrize("in_backward", [False, True], ids=["step", "step_in_backward"])
@pytest.mark.parametrize("mode", ["resident", "host", "cpu-step"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_that_come_before_the_first_byte_is_read(tmp_path, kind, mode, in_backward):
    run = Training(kind, mode)
    if in_backward:
        step_in_backward(run.model, run.optimizer)
    expected = run.fields()
    with gate() as held:
        handle = run.save(tmp_path / "c", progress=held)
        for step in range(3, 6):
            run.step(step)
    assert handle.result().summary.step == 3
    assert_saved(tmp_path / "c", expected)
    now = run.fields()
    assert any(not torch.equal(now[key], expected[key]) for key in now)


@pytest.mark.usefixtures("no_copies_behind")
@pytest.mark.parametrize("in_backward", [False, True], ids=["step", "step_in_backward"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_alone_keeps_what_it_changes(tmp_path, kind, in_backward):
    run = Training(kind)
    if in_backward:
        step_in_backward(run.model, run.optimizer)
    expected = run.fields()
    with gate() as held:
        handle = run.save(tmp_path / "c", progress=held)
        run.step(3)
        run.step(4)
    handle.result()
    assert_saved(tmp_path / "c", expected)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_waits_for_state_on_disk_and_none_is_copied(tmp_path, kind, made):
    run = Training(kind, "disk", tmp_path)
    expected = run.fields()
    stepping = threading.Thread(target=run.step, args=(3,))
    with gate() as held:
        handle = run.save(tmp_path / "c", progress=held)
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
    with gate() as held:
        handle = run.save(tmp_path / "c", progress=held)
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
    with gate() as held:
        run.save(tmp_path, progress=held)
        deadline = time.monotonic() + 60
        while changes.anybody_reads():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_was_read_is_not_copied(tmp_path, made, monkeypatch):
    monkeypatch.setattr(HostTensor, "copy_behind", lambda self: None)
    run = Training("luma", "host")
    expected = run.fields()
    read = threading.Event()
    with gate() as held:

        def hold_last(done, total):
            if 2 * done > total:
                read.set()
                held()

        handle = run.save(tmp_path, progress=hold_last, compression="none")
        assert read.wait(60)
        run.step(3)
    handle.result()
    assert_saved(tmp_path, expected)
    assert 0 < len(made) < len(expected)


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

    with gate() as held:
        monkeypatch.setattr(copies, "_new", fail)
        handle = run.save(tmp_path / "c", progress=held)
        run.step(3)
        run.step(4)
    with pytest.raises(MemoryError, match="no memory for a copy"):
        handle.result()
    assert not checkpoint.exists(tmp_path / "c")


@pytest.mark.usefixtures("no_copies_behind")
@pytest.mark.parametrize("then", ["nothing", "a step"])
@pytest.mark.parametrize("mode", ["resident", "host"])
def test_state_that_somebody_else_changed_is_not_saved(tmp_path, mode, then):
    run = Training("luma", mode)
    run.save(tmp_path).result()
    before = saved_fields(tmp_path)
    codes = run.optimizer.state[run.model[0].weight]["exp_avg.codes"]
    with gate() as held:
        handle = run.save(tmp_path, progress=held)
        codes[:2] = 0
        if then == "a step":
            run.step(3)
    with pytest.raises(StateChangedError, match=r"exp_avg.* was changed in place .* nothing was"):
        handle.result()
    assert_saved(tmp_path, before)
    run.save(tmp_path).result()


@pytest.mark.usefixtures("no_copies_behind")
@pytest.mark.parametrize("mode", ["resident", "host"])
def test_a_change_that_is_announced_is_not_seen(tmp_path, mode):
    run = Training("luma", mode)
    expected = run.fields()
    codes = run.optimizer.state[run.model[0].weight]["exp_avg.codes"]
    with gate() as held:
        handle = run.save(tmp_path, progress=held)
        checkpoint.before_change([codes[:2]])
        codes[:2] = 0
    handle.result()
    assert_saved(tmp_path, expected)


@pytest.mark.parametrize("mode", MODES)
def test_loading_replaces_what_is_being_saved(tmp_path, mode):
    run = Training("luma", mode, tmp_path)
    other = Training("luma", steps=6)
    expected = run.fields()
    with gate() as held:
        handle = run.save(tmp_path / "c", progress=held)
        run.optimizer.load_state_dict(other.optimizer.state_dict())
        if mode != "disk":
            run.step(3)
    handle.result()
    assert_saved(tmp_path / "c", expected)


def test_weights_and_extra_are_copied_at_once(tmp_path):
    run, extra = Training(), torch.arange(3000)
    with gate() as held:
        handle = run.save(tmp_path, model=run.model, extra=extra, progress=held)
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
    with gate() as held:
        for name in "ab":
            expected.append(run.fields())
            run.save(tmp_path / name, progress=held)
            run.step(3)
    checkpoint.wait_for_saves()
    for name, fields in zip("ab", expected, strict=True):
        assert_saved(tmp_path / name, fields)


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


@pytest.mark.usefixtures("no_copies_behind")
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
    with gate() as held:
        run.save(tmp_path / "c", progress=held)
        child = os.fork()
        if child == 0:
            os._exit(3 if changes.anybody_reads() else 7)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


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
