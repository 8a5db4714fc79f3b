"""Kills a process that saves one checkpoint after another, at random, and looks what is left.

Usage: ``kill_driver.py URL sync|async KILLS SEED``. Prints, as JSON, the step that was found after
each kill; ends with an error at the first checkpoint that is not whole, or older than one that a
save had returned before.
"""

import json
import random
import sys
from itertools import count

import torch
from killing import found_by, kill_once, reported

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


def saves(url, wait, run, last):
    """Save steps for ever."""
    model, optimizer = run
    for step in count(last + 1):
        yield (
            step,
            checkpoint.save(
                url,
                optimizer=optimizer,
                model=model,
                extra={"step": step, "value": value(step)},
                overwrite=True,
                max_shard_bytes=100_000,
                wait=wait,
            ),
        )


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
        told = kill_once(
            lambda report: reported(saves(url, wait, run, steps[-1]), wait, report),
            chance.uniform(0.05, LONGEST_SECONDS),
            # Or a slow machine would show nothing.
            until_first=not steps[-1],
        )
        steps.append(found_by(lambda: found(url, run)))
        assert steps[-1] >= told, f"a save of step {told} returned, and {steps[-1]} was found"
    print(json.dumps(steps[1:]))


if __name__ == "__main__":
    main()
