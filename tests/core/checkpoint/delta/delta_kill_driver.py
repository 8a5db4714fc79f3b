"""Kills a process that saves steps with differences, at random, and looks what is left.

Usage: ``delta_kill_driver.py URL sync|async KILLS SEED``. Prints, as JSON, the latest step after
each kill; ends with an error where any step is not whole, or the latest is older than one that a
save had returned before.
"""

import json
import random
import sys
from itertools import count

import torch
from killing import found_by, kill_once, reported

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


def saves(url, wait):
    """Go on from the latest step for ever."""
    manager = CheckpointManager(url, **OPTIONS)
    optimizer, params, generator = make_optimizer()
    last = manager.latest() or 0
    if last:
        extra = manager.load(optimizer=optimizer).extra
        generator.set_state(extra["rng"])
    for step in count(last + 1):
        train(optimizer, params, generator)
        extra = {"step": step, "rng": generator.get_state()}
        yield (
            step,
            manager.save(
                step, optimizer=optimizer, extra=extra, wait=wait, max_shard_bytes=100_000
            ),
        )


def found(url):
    """Return the latest step and the longest chain; every step is verified, the latest loaded."""
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
        told = kill_once(
            lambda report: reported(saves(url, wait), wait, report),
            chance.uniform(0.05, LONGEST_SECONDS),
            until_first=True,
        )
        step, longest = found_by(lambda: found(url))
        assert step >= told, f"a save of step {told} returned, and {step} was found"
        steps.append(step)
        chains.append(longest)
    print(json.dumps({"steps": steps[1:], "chains": chains}))


if __name__ == "__main__":
    main()
