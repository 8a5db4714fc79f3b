"""Kills a process that saves steps with differences, at random, and looks what is left.

Usage: ``delta_kill_driver.py URL sync|async KILLS SEED``. Prints, as JSON, the latest step after
each kill; ends with an error where any step is not whole, or the latest is older than one that a
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
from luma_core.checkpoint import CheckpointManager
from luma_core.optim import LUMA

LONGEST_SECONDS = 0.6
OPTIONS = {"keep_last": 2, "keep_every": 100, "max_chain": 4}


def make_optimizer():
    generator = torch.Generator().manual_seed(0)
    params = [
        ("p", torch.nn.Parameter(torch.zeros(256, 300))),
        ("q", torch.nn.Parameter(torch.zeros(9))),
    ]
    optimizer = LUMA(params, seed=1, min_compress_elements=100)
    return optimizer, [param for _, param in params], generator


def train(optimizer, params, generator):
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


def save_for_ever(url, wait, told):
    """Go on from the latest step until killed; report each that a save or a handle returned."""
    manager = CheckpointManager(url, **OPTIONS)
    optimizer, params, generator = make_optimizer()
    step = manager.latest() or 0
    if step:
        extra = manager.load(optimizer=optimizer).extra
        generator.set_state(extra["rng"])
    flying = []
    while True:
        step += 1
        train(optimizer, params, generator)
        extra = {"step": step, "rng": generator.get_state()}
        saved = manager.save(
            step, optimizer=optimizer, extra=extra, wait=wait, max_shard_bytes=100_000
        )
        if not wait:
            flying.append((step, saved))
            if len(flying) < 2:
                continue
            number, handle = flying.pop(0)
            handle.result()
        os.write(told, (number if not wait else step).to_bytes(8, "little"))


def in_child(work):
    """Run ``work(pipe)`` in a forked process, so that this one never opens a store of its own."""
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


def kill_once(url, wait, step, seconds):
    """Return the last step that was reported before the process was killed."""
    child, reports = in_child(lambda told: save_for_ever(url, wait, told))
    with reports:
        data = reports.read(8)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        data += reports.read()
    assert data, "the process ended before its first save"
    return max(step, int.from_bytes(data[-8:], "little"))


def look(url):
    """Return the latest step and the longest chain; every step is verified, the latest loaded."""
    child, reports = in_child(lambda told: os.write(told, json.dumps(found(url)).encode()))
    with reports:
        data = reports.read()
    os.waitpid(child, 0)
    return json.loads(data)


def found(url):
    manager = CheckpointManager(url, **OPTIONS)
    longest = 1
    for step in manager.steps():
        report = checkpoint.verify(manager.store(step))
        assert report.ok, (step, report.problems)
        longest = max(longest, manager.open(step).manifest.chain)
    optimizer, _, _ = make_optimizer()
    step = manager.load(optimizer=optimizer).extra["step"]
    assert step == manager.latest()
    check_values(optimizer, step)
    return step, longest


def check_values(optimizer, step):
    """Training is repeatable bit for bit, so the state of a step is known."""
    expected, params, generator = make_optimizer()
    for _ in range(step):
        train(expected, params, generator)
    for got, want in zip(optimizer.parameter_states(), expected.parameter_states(), strict=True):
        assert got.step == want.step == step
        assert all(torch.equal(got.fields[key], want.fields[key]) for key in want.fields)


def main():
    url, wait, kills = sys.argv[1], sys.argv[2] == "sync", int(sys.argv[3])
    chance = random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)
    steps, chains = [0], []
    for _ in range(kills):
        told = kill_once(url, wait, steps[-1], chance.uniform(0.05, LONGEST_SECONDS))
        step, longest = look(url)
        assert step >= told, f"a save of step {told} returned, and {step} was found"
        steps.append(step)
        chains.append(longest)
    print(json.dumps({"steps": steps[1:], "chains": chains}))


if __name__ == "__main__":
    main()
