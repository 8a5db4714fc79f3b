"""A disk that fails, at whatever operation, is a `StorageError` and harms nothing.

The file system under a folder answers one operation, the n-th, with EIO, for every n that some
work gets to.
"""

import errno
import fcntl
import itertools
import os

import pytest
import torch
from torch import nn

from luma_core import LUMA, checkpoint, stats
from luma_core.checkpoint import CheckpointManager
from luma_core.convert import convert
from luma_core.errors import CheckpointError, LumaError, StorageError

BY_PATH = ("open", "stat", "lstat", "mkdir", "rmdir", "unlink", "rename", "replace", "listdir")
BY_DESCRIPTOR = ("pwrite", "preadv", "fstat")


class Disk:
    """Counts operations below a folder, and fails one."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.done, self.failing, self.failed = str(folder), 0, None, ""
        for name in (*BY_PATH, "scandir"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), by_path=True))
        for name in BY_DESCRIPTOR:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), by_path=False))
        # Whether bytes reach a disk is no matter here, and takes most of the time.
        monkeypatch.setattr(os, "fsync", self._wrapped("fsync", lambda _: None, by_path=False))
        monkeypatch.setattr(fcntl, "flock", self._wrapped("flock", fcntl.flock, by_path=False))

    def _wrapped(self, name, function, *, by_path):
        def call(*args, **options):
            concerned = not by_path or str(args[0] if args else "").startswith(self.folder)
            if concerned and self.failing is not None:
                self.done += 1
                if self.done == self.failing:
                    self.failed = name
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return function(*args, **options)

        return call


@pytest.fixture
def disk(tmp_path, monkeypatch):
    return Disk(tmp_path, monkeypatch)


def trained():
    torch.manual_seed(0)
    model = nn.Linear(48, 40)
    optimizer = LUMA(model.named_parameters(), seed=1, min_compress_elements=8)
    model(torch.randn(2, 48)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved_files(folder):
    model, optimizer = trained()
    checkpoint.save(folder / "c", optimizer=optimizer, model=model, extra={"a": torch.ones(3)})
    manager = CheckpointManager(folder / "m", max_chain=3)
    for step in (1, 2):
        manager.save(step, optimizer=optimizer)
    torch.save(torch.optim.AdamW(model.parameters()).state_dict(), folder / "empty.pt")
    convert(folder / "c", folder / "state.pt", to="adamw")


def save(folder):
    model, optimizer = trained()
    checkpoint.save(
        folder / "c", optimizer=optimizer, model=model, extra=[torch.ones(2)], overwrite=True
    )


def load(folder):
    model, optimizer = trained()
    checkpoint.load(folder / "c", optimizer=optimizer, model=model)


def read(folder):
    opened = checkpoint.open(folder / "m/00000002")
    opened.read("weight", "exp_avg")
    checkpoint.open(folder / "c").extra()


def manage(folder):
    _, optimizer = trained()
    manager = CheckpointManager(folder / "m", max_chain=3, keep_last=2, grace_seconds=0)
    manager.steps(), manager.latest(), manager.open().extra()
    manager.save(3, optimizer=optimizer, overwrite=True)
    manager.load(optimizer=optimizer)
    manager.prune(), manager.collect_garbage(), manager.rewind(2)


WORK = {
    "save": save,
    "load": load,
    "read": read,
    "verify": lambda folder: checkpoint.verify(folder / "m/00000002"),
    "exists": lambda folder: checkpoint.exists(folder / "c"),
    "manage": manage,
    "flatten": lambda folder: checkpoint.flatten(
        folder / "m/00000002", folder / "flat", overwrite=True
    ),
    "stats": lambda folder: stats.compute(checkpoint.open(folder / "c")),
    "from torch": lambda folder: convert(
        folder / "state.pt", folder / "l", to="luma", overwrite=True
    ),
    "to torch": lambda folder: convert(folder / "c", folder / "t.pt", to="adamw", overwrite=True),
    "to folder": lambda folder: convert(folder / "c", folder / "d", to="dcp", overwrite=True),
}


@pytest.mark.parametrize("work", WORK)
def test_an_operation_that_fails_is_an_error_of_the_store(tmp_path, disk, work):
    saved_files(tmp_path)
    for failing in itertools.count(1):
        disk.done, disk.failing = 0, failing
        told = None
        try:
            WORK[work](tmp_path)
        except LumaError as error:
            told = error
        finally:
            gone, disk.failing = disk.done < failing, None
        if gone:
            assert told is None
            assert failing > 2
            break
        # What is left undone after a commit is only logged, and what cannot be told is not used.
        assert told is None or isinstance(told, CheckpointError), (disk.failed, failing)
        if told is not None and not isinstance(told, StorageError):
            assert "rror" in str(told) or "missing" in str(told), (disk.failed, told)
    assert checkpoint.verify(tmp_path / "c").ok
