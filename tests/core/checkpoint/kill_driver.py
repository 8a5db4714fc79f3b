"""Kills a process that saves one checkpoint after another, at random, and looks what is left.

Usage: ``kill_driver.py URL sync|async KILLS SEED``. Prints, as JSON, the step that was found after
each kill; ends with an error at the first checkpoint that is not whole, or older than one that a
save had returned before.
"""

import json
import os
import random
import signal
import sys
import time
import traceback

import torch

from luma_core import checkpoint
from luma_core.optim import LUMA

LONGEST_SECONDS = 1.5


def make_run():
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 300)
    optimizer = LUMA(model.named_parameters(), seed=1, min_compress_elements=1)
    model(torch.randn(4, 256)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def value(step):
    return torch.full((9,), step)


def save_for_ever(url, wait, run, step, told):
    """Save steps until killed; report each that a save or a handle returned."""
    model, optimizer = run
    flying = []
    while True:
        step += 1
        saved = checkpoint.save(
            url,
            optimizer=optimizer,
            model=model,
            extra={"step": step, "value": value(step)},
            overwrite=True,
            max_shard_bytes=100_000,
            wait=wait,
        )
        if not wait:
            flying.append((step, saved))
            if len(flying) < 2:
                continue
            number, handle = flying.pop(0)
            handle.result()
        os.write(told, (number if not wait else step).to_bytes(8, "little"))


def in_child(work):
    """Run ``work(pipe)`` in a forked process, so that this one never opens a store of its own.

    A child that shares an event loop's descriptors with its parent would disturb it.
    """
    out, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            work(told)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(told)
    return child, os.fdopen(out, "rb")


def kill_once(url, wait, run, step, seconds):
    """Return the last step that was reported before the process was killed.

    The first process is given until its first report, or a slow machine would show nothing.
    """
    child, reports = in_child(lambda told: save_for_ever(url, wait, run, step, told))
    with reports:
        data = b"" if step else reports.read(8)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        data += reports.read()
    return int.from_bytes(data[-8:], "little") if data else step


def look(url, run):
    """Return what `found` does."""
    child, reports = in_child(lambda told: os.write(told, json.dumps(found(url, run)).encode()))
    with reports:
        data = reports.read()
    os.waitpid(child, 0)
    return json.loads(data)


def found(url, run):
    """Return the step of the checkpoint, every byte of it checked; 0 where there is none."""
    if not checkpoint.exists(url):
        return 0
    report = checkpoint.verify(url)
    assert report.ok, report.problems
    model, optimizer = make_run()
    extra = checkpoint.load(url, optimizer=optimizer, model=model).extra
    for got, expected in zip(optimizer.parameter_states(), run[1].parameter_states(), strict=True):
        assert all(torch.equal(got.fields[key], expected.fields[key]) for key in expected.fields)
    assert torch.equal(extra["value"], value(extra["step"]))
    return extra["step"]


def main():
    url, wait, kills = sys.argv[1], sys.argv[2] == "sync", int(sys.argv[3])
    chance = random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)
    run = make_run()
    steps = [0]
    for _ in range(kills):
        told = kill_once(url, wait, run, steps[-1], chance.uniform(0.05, LONGEST_SECONDS))
        steps.append(look(url, run))
        assert steps[-1] >= told, f"a save of step {told} returned, and {steps[-1]} was found"
    print(json.dumps(steps[1:]))


if __name__ == "__main__":
    main()
