"""A save behind training that fails when nothing follows it: who is told, and how."""

import subprocess
import sys

import pytest

from luma_core import checkpoint
from luma_core.errors import StorageError

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
    assert "StorageError: an earlier save behind training failed" in done.stderr
    assert "luma: error" not in done.stderr


def test_waiting_raises_every_failure_once(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path / "good", optimizer=run.optimizer, wait=False)
    checkpoint.wait_for_saves()
    assert checkpoint.exists(tmp_path / "good")
    (tmp_path / "file").write_text("")
    checkpoint.save(tmp_path / "file" / "c", optimizer=run.optimizer, wait=False)
    with pytest.raises(StorageError, match="an earlier save"):
        checkpoint.wait_for_saves()
    checkpoint.wait_for_saves()
