"""What is no regular file is refused at once: a pipe that nobody writes to would wait for good."""

import os
import socket
import threading
from pathlib import Path

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint.storage.open import open_store
from luma_core.convert import convert
from luma_core.errors import LumaError

SECONDS = 20


def made_pipe(path):
    os.mkfifo(path)


def made_socket(path):
    place = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(place)


KINDS = {
    "pipe": made_pipe,
    "socket": made_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/null"),
    "folder": lambda path: path.mkdir(),
}


def outcome(work):
    """Return what work raises, which must come soon."""
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found, "it hangs"
    return found[0]


READS = {
    "read_range": lambda store: store.read_range("x", 0, 9),
    "read_into": lambda store: store.read_into("x", 0, memoryview(bytearray(9))),
    "reader": lambda store: store.reader("x"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READS)
def test_a_store_reads_regular_files_only(tmp_path, kind, read):
    KINDS[kind](tmp_path / "x")
    error = outcome(lambda: READS[read](open_store(tmp_path)))
    assert isinstance(error, OSError)
    assert open_store(tmp_path).size("x") is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["luma.json", "optimizer-00001-of-00001.safetensors"])
def test_a_checkpoint_with_something_else_for_a_file_is_refused(tmp_path, new_run, kind, file):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model)
    opened = checkpoint.open(tmp_path)
    (tmp_path / file).unlink()
    KINDS[kind](tmp_path / file)
    for work in (
        lambda: checkpoint.load(tmp_path, optimizer=run.optimizer),
        lambda: checkpoint.open(tmp_path).read("0.weight", "exp_avg"),
    ):
        assert isinstance(outcome(work), LumaError)
    if file != "luma.json":
        assert isinstance(outcome(lambda: opened.read("0.weight", "exp_avg")), LumaError)
        assert not outcome(lambda: checkpoint.verify(tmp_path)).ok


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_reads_regular_files_only(tmp_path, kind):
    KINDS[kind](tmp_path / "state.pt")
    assert isinstance(
        outcome(lambda: convert(tmp_path / "state.pt", tmp_path / "out", to="luma")), LumaError
    )


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_something_else_beside_a_checkpoint_does_no_harm(tmp_path, new_run, kind):
    run = new_run()
    KINDS[kind](tmp_path / "optimizer-00009-of-00009.safetensors")
    saved = outcome(lambda: checkpoint.save(tmp_path, optimizer=run.optimizer))
    assert isinstance(saved, checkpoint.Manifest)
    assert torch.equal(
        checkpoint.open(tmp_path).read("0.weight", "exp_avg", field="codes"),
        run.optimizer.state[run.model[0].weight]["exp_avg.codes"],
    )
