"""An asynchronous save that fails when nothing follows it: who is told, and how."""

import errno
import subprocess
import sys

import pytest

from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager
from luma_core.errors import CheckpointError, ConfigurationError, LumaError, StorageError

FAILING = """
import logging, sys
import torch
from luma_core import checkpoint
from luma_core.optim import LUMA
optimizer = LUMA([("p", torch.nn.Parameter(torch.zeros(64, 64)))])
optimizer.init_state()
if "log" in sys.argv:
    logging.basicConfig(filename=sys.argv[1] + "/log.txt")
place = sys.argv[1] + "/file/c"
checkpoint.save(place, optimizer=optimizer, wait=False)
if "wait" in sys.argv:
    checkpoint.wait_for_saves()
print("done")
"""


def _run(folder, *options):
    (folder / "file").write_text("")
    return subprocess.run(
        [sys.executable, "-c", FAILING, str(folder), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("logs", [False, True])
def test_a_failure_that_nobody_asked_for_is_printed_once_when_the_process_ends(tmp_path, logs):
    done = _run(tmp_path, *(["log"] if logs else []))
    assert (done.stdout, done.returncode) == ("done\n", 0)
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith(f"luma: error: {tmp_path}/file/c: the save failed: ")
    assert "A part of that path is a file" in lines[0]
    if logs:
        assert "the save failed" in (tmp_path / "log.txt").read_text()


def test_a_script_that_waits_for_its_saves_fails_with_them(tmp_path):
    done = _run(tmp_path, "wait")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "StorageError: an earlier asynchronous save failed" in done.stderr
    assert "luma: error" not in done.stderr


def test_waiting_raises_every_failure_once(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path / "good", optimizer=run.optimizer, wait=False)
    checkpoint.wait_for_saves()
    assert checkpoint.exists(tmp_path / "good")
    (tmp_path / "file").write_text("")
    checkpoint.save(tmp_path / "file" / "c", optimizer=run.optimizer, wait=False)
    with pytest.raises(StorageError, match="an earlier asynchronous save"):
        checkpoint.wait_for_saves()
    checkpoint.wait_for_saves()


def failing_with(error):
    def fail(done, total):
        raise error

    return fail


@pytest.fixture
def run(new_run):
    return new_run()


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("who", ["result", "save behind", "save", "manager", "wait"])
def test_the_step_that_failed_is_named(tmp_path, run, who):
    manager, other = CheckpointManager(tmp_path / "run"), CheckpointManager(tmp_path / "other")
    handle = manager.save(40, optimizer=run.optimizer, wait=False, progress=failing_with(FULL))
    checkpoint.staging.async_executor.finish()
    ask = {
        "result": handle.result,
        "save behind": lambda: manager.save(41, optimizer=run.optimizer, wait=False),
        "save": lambda: checkpoint.save(tmp_path / "c", optimizer=run.optimizer),
        "manager": lambda: other.save(7, optimizer=run.optimizer),
        "wait": checkpoint.wait_for_saves,
    }
    with pytest.raises(StorageError) as caught:
        ask[who]()
    folder = tmp_path / "run/00000040"
    assert f"step 40 in {folder}: No space left on device." in caught.value.message
    assert caught.value.errno == errno.ENOSPC
    assert "Free some space there" in caught.value.hint
    assert ("Nothing was saved by this call" in caught.value.hint) == (
        who not in ("result", "wait")
    )
    assert isinstance(caught.value.__cause__, StorageError)
    assert caught.value.__cause__.__cause__ is FULL
    # It is told once, and what was refused because of it can be saved now.
    checkpoint.wait_for_saves()
    assert manager.save(41, optimizer=run.optimizer).summary.step == 3


def test_each_of_several_steps_that_failed_is_named(tmp_path, run):
    manager = CheckpointManager(tmp_path)
    for step in (1, 2):
        manager.save(step, optimizer=run.optimizer, wait=False, progress=failing_with(FULL))
    checkpoint.staging.async_executor.finish()
    with pytest.raises(
        StorageError, match=r"earlier asynchronous save .*: step 1 in .*'step 2 in .*0002'\."
    ):
        manager.save(3, optimizer=run.optimizer, wait=False)
    with pytest.raises(StorageError, match=r"earlier asynchronous save failed: step 2 in"):
        checkpoint.wait_for_saves()
    manager.save(3, optimizer=run.optimizer, wait=False).result()
    assert manager.steps() == [3]


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError("no room"), KeyError("k")])
def test_an_error_of_another_kind_is_kept_and_names_its_step(tmp_path, run, error):
    manager = CheckpointManager(tmp_path)
    handle = manager.save(5, optimizer=run.optimizer, wait=False, progress=failing_with(error))
    checkpoint.staging.async_executor.finish()
    with pytest.raises(CheckpointError, match=rf"step 5 in .*00000005: {type(error).__name__}: "):
        checkpoint.wait_for_saves()
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            handle.result()
        assert caught.value is error
        assert [note for note in error.__notes__ if note.startswith("step 5 in")] == error.__notes__


def test_a_save_without_a_step_is_named_by_its_folder_once(tmp_path, run):
    message = "x must be y."
    for place in ("a", "b"):
        error = ConfigurationError(message, hint="Do z.")
        checkpoint.save(
            tmp_path / place, optimizer=run.optimizer, wait=False, progress=failing_with(error)
        )
    checkpoint.staging.async_executor.finish()
    for place in ("a", "b"):
        with pytest.raises(ConfigurationError) as caught:
            checkpoint.wait_for_saves()
        assert caught.value.message.endswith(f"failed: {tmp_path}/{place}: {message}")
        assert caught.value.__cause__.message == message


def test_what_is_printed_at_the_end_names_the_step(tmp_path, run, capsys):
    manager = CheckpointManager(tmp_path)
    manager.save(8, optimizer=run.optimizer, wait=False, progress=failing_with(FULL))
    checkpoint.staging.async_executor._finish_and_tell()
    assert f"step 8 in {tmp_path}/00000008: No space left" in capsys.readouterr().err
    with pytest.raises(LumaError, match="step 8 in"):
        checkpoint.wait_for_saves()
