"""Kills a saving process with SIGKILL at each of its storage operations, and reports what is left.

Usage: ``crash_driver.py FOLDER fresh|overwrite``. Prints, as JSON, what each attempt left behind:
``none``, ``old`` or ``new``; anything else is a description of what was wrong.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from luma_core import checkpoint
from luma_core.checkpoint.storage import local
from luma_core.errors import CheckpointNotFoundError
from luma_core.optim import LUMA


def make_run(steps):
    torch.manual_seed(steps)
    model = nn.Linear(40, 3)
    optimizer = LUMA(model.named_parameters(), seed=1, min_compress_elements=1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 40)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def save(folder, run):
    model, optimizer = run
    checkpoint.save(
        folder,
        optimizer=optimizer,
        model=model,
        extra={"rng": torch.arange(9), "steps": optimizer.parameter_states()[0].step},
        overwrite=True,
        max_shard_bytes=600,
    )


def content(run):
    model, optimizer = run
    tensors = list(model.state_dict().values())
    for state in optimizer.parameter_states():
        tensors += [torch.tensor([state.step, state.noise_key]), *state.fields.values()]
    return tensors


def die_at(fatal):
    """Make the process kill itself at its ``fatal``-th storage operation."""
    count = itertools.count(1)

    def boundary():
        if next(count) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(function):
        def wrapped(*args, **kwargs):
            boundary()
            return function(*args, **kwargs)

        return wrapped

    write = local.LocalWriter.write

    def write_in_two(self, data):
        half = len(data) // 2
        write(self, bytes(data[:half]))
        self.flush()
        boundary()
        write(self, bytes(data[half:]))

    local.LocalWriter.write = before(write_in_two)
    for name in ("fsync", "replace", "unlink", "mkdir"):
        setattr(os, name, before(getattr(os, name)))


def attempt(folder, run, fatal):
    """Return whether the save ended before its ``fatal``-th operation."""
    child = os.fork()
    if child == 0:
        die_at(fatal)
        save(folder, run)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


def left_behind(folder, runs):
    if not checkpoint.exists(folder):
        try:
            checkpoint.load(folder)
        except CheckpointNotFoundError:
            return "none"
        return "loads without a manifest"
    report = checkpoint.verify(folder)
    if not report.ok:
        return str(report.problems)
    fresh = make_run(0)
    extra = checkpoint.load(folder, optimizer=fresh[1], model=fresh[0]).extra
    for label, run in runs.items():
        if extra["steps"] == run[1].parameter_states()[0].step:
            same = all(map(torch.equal, content(run), content(fresh)))
            return label if same else f"{label}, altered"
    return "neither"


def after_next_save(folder, run):
    save(folder, run)
    report = checkpoint.verify(folder)
    names = {file.name for file in checkpoint.open(folder).manifest.files} | {"luma.json"}
    left = {path.name for path in folder.iterdir()} - names
    return None if report.ok and not report.notes and not left else f"next save: {report} {left}"


def main():
    root, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    old, new = make_run(2), make_run(5)
    save(root / "base", old)
    found = []
    for fatal in range(1, 1000):
        folder = root / str(fatal)
        if mode == "overwrite":
            shutil.copytree(root / "base", folder)
        ended = attempt(folder, new, fatal)
        left = left_behind(folder, {"old": old, "new": new})
        found.append(after_next_save(folder, new) or left)
        shutil.rmtree(folder)
        if ended:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main()
