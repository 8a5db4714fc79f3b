"""Asynchronous saves: what is saved, in which order, and where errors come out."""

import logging
import subprocess
import sys
import threading

import pytest
import torch

from luma_core import checkpoint
from luma_core.errors import CheckpointExistsError, StorageError


class Gate:
    """A progress callback that holds a save until it is opened."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, done_bytes, total_bytes):
        self.reached.set()
        assert self.opened.wait(60)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def opens_once_waited_for(gate, monkeypatch):
    """Opens the gate at the moment when a save begins to wait for another."""
    wait = checkpoint.staging.async_executor._wait

    def opening(handle):
        gate.opened.set()
        wait(handle)

    monkeypatch.setattr(checkpoint.staging.async_executor, "_wait", opening)


@pytest.fixture(autouse=True)
def nothing_left_over():
    yield
    checkpoint.staging.async_executor.before_save(wait=True)


def test_what_is_saved_is_the_state_at_the_call(tmp_path, new_run, same, gate):
    run, other = new_run(), new_run(steps=0)
    before = run.snapshot()
    extra = {"rng": torch.arange(5), "list": [1]}
    handle = checkpoint.save(
        tmp_path, optimizer=run.optimizer, model=run.model, extra=extra, wait=False, progress=gate
    )
    assert gate.reached.wait(60)
    assert not handle.done()
    run.step(10)
    extra["rng"].zero_()
    extra["list"].append(2)
    assert not checkpoint.exists(tmp_path)
    gate.opened.set()
    manifest = handle.result()
    assert handle.done()
    assert manifest == checkpoint.open(tmp_path).manifest
    loaded = checkpoint.load(tmp_path, optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), before)
    assert loaded.extra["list"] == [1]
    assert loaded.extra["rng"].tolist() == [0, 1, 2, 3, 4]
    assert not same(run.snapshot(), before)


def test_waiting_for_a_result_can_end(tmp_path, new_run, gate):
    handle = checkpoint.save(tmp_path, optimizer=new_run().optimizer, wait=False, progress=gate)
    with pytest.raises(TimeoutError, match=r"goes on after 0\.01 seconds"):
        handle.result(timeout_seconds=0.01)
    gate.opened.set()
    assert handle.result(60).summary.step == 3


@pytest.mark.usefixtures("opens_once_waited_for")
def test_saves_end_in_their_order(tmp_path, new_run, gate):
    run = new_run()

    def save(**options):
        return checkpoint.save(tmp_path, optimizer=run.optimizer, overwrite=True, **options)

    first = save(wait=False, progress=gate)
    run.step(3)
    second = save(wait=False)
    assert not first.done()
    run.step(4)
    last = save()
    assert first.done()
    assert second.done()
    assert [first.result().generation, second.result().generation, last.generation] == [1, 2, 3]
    assert checkpoint.open(tmp_path).manifest.summary.step == 5


@pytest.mark.usefixtures("opens_once_waited_for")
def test_no_more_than_two_copies_are_held(tmp_path, new_run, gate):
    run = new_run()
    first = checkpoint.save(tmp_path / "1", optimizer=run.optimizer, wait=False, progress=gate)
    checkpoint.save(tmp_path / "2", optimizer=run.optimizer, wait=False)
    assert not first.done()
    checkpoint.save(tmp_path / "3", optimizer=run.optimizer, wait=False)
    assert first.done()


def test_an_error_is_raised_by_the_handle_and_not_again(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer)
    handle = checkpoint.save(tmp_path, optimizer=run.optimizer, wait=False)
    for _ in range(2):
        with pytest.raises(CheckpointExistsError, match="there is a checkpoint already"):
            handle.result()
    checkpoint.save(tmp_path, optimizer=run.optimizer, overwrite=True)


@pytest.mark.parametrize("wait", [True, False])
def test_an_error_that_nobody_asked_for_is_raised_by_the_next_save(tmp_path, new_run, wait):
    run = new_run()
    (tmp_path / "file").write_text("")
    handle = checkpoint.save(tmp_path / "file" / "c", optimizer=run.optimizer, wait=False)
    checkpoint.staging.async_executor.finish()
    assert handle.done()
    with pytest.raises(StorageError, match=r"an earlier asynchronous save failed: .*file"):
        checkpoint.save(tmp_path / "c", optimizer=run.optimizer, wait=wait)
    assert not checkpoint.exists(tmp_path / "c")
    checkpoint.save(tmp_path / "c", optimizer=run.optimizer)


def test_every_failure_is_told_once(tmp_path, new_run):
    run = new_run()
    (tmp_path / "file").write_text("")
    handles = [
        checkpoint.save(tmp_path / "file" / name, optimizer=run.optimizer, wait=False)
        for name in "ab"
    ]
    checkpoint.staging.async_executor.finish()
    for name in "ab":
        with pytest.raises(StorageError, match=rf"an earlier asynchronous save .*file/{name}"):
            checkpoint.save(tmp_path / "c", optimizer=run.optimizer)
    checkpoint.save(tmp_path / "c", optimizer=run.optimizer)
    for handle in handles:
        with pytest.raises(StorageError, match="A part of that path is a file"):
            handle.result()


EXIT = """
import sys, time
import torch
from luma_core import checkpoint
from luma_core.optim import LUMA
p = torch.nn.Parameter(torch.zeros(512, 1024))
optimizer = LUMA([("p", p)])
p.grad = torch.randn_like(p)
optimizer.step()
def slow(done, total):
    time.sleep(0.2)
for name in ("a", "b"):
    checkpoint.save(
        f"{sys.argv[1]}/{name}", optimizer=optimizer, extra=list(torch.zeros(3, 600, 1000)),
        max_shard_bytes=3_000_000, wait=False, progress=slow,
    )
raise SystemExit(3)
"""


def test_the_process_ends_after_its_saves(tmp_path):
    done = subprocess.run([sys.executable, "-c", EXIT, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    for name in ("a", "b"):
        assert checkpoint.verify(tmp_path / name).ok


def test_a_failure_that_nobody_heard_of_is_logged_at_exit(tmp_path, new_run, caplog):
    (tmp_path / "file").write_text("")
    checkpoint.save(tmp_path / "file" / "c", optimizer=new_run().optimizer, wait=False)
    with caplog.at_level(logging.ERROR, "luma"):
        checkpoint.staging.async_executor._finish_and_tell()
    assert "file/c: the save failed" in caplog.text
    with pytest.raises(StorageError, match="an earlier asynchronous save"):
        checkpoint.staging.async_executor.before_save(wait=True)


FORK = """
import os, sys, threading
import torch
from luma_core import checkpoint
from luma_core.optim import LUMA
optimizer = LUMA([("p", torch.nn.Parameter(torch.zeros(64, 64)))])
optimizer.init_state()
guard = threading.Event()
checkpoint.save(sys.argv[1], optimizer=optimizer, wait=False, progress=lambda *_: guard.wait())
child = os.fork()
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
guard.set()
"""


def test_a_forked_child_does_not_wait_for_saves_of_its_parent(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr
    assert checkpoint.verify(tmp_path).ok
