"""Training whose saves are asynchronous, for tests of what they save."""

import threading
from contextlib import contextmanager

import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam, checkpoint
from luma_core.checkpoint.storage.local import LocalStore

OPTIMIZERS = {"luma": LUMA, "turboadam": TurboAdam, "lamb": LAMB, "adam-mini": AdamMini}
MODES = ["resident", "host", "disk", "cpu-step"]


class Training:
    """A small model with an optimizer, some steps into training."""

    def __init__(self, kind="luma", mode="resident", folder=None, steps=3):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 60), nn.Linear(60, 32), nn.Linear(32, 3))
        options = {} if mode == "resident" else {"offload": mode, "offload_buffer_bytes": 1 << 20}
        if mode == "disk":
            options["offload_directory"] = folder / "state"
        named = [(f"mlp.{name}", param) for name, param in self.model.named_parameters()]
        self.optimizer = OPTIMIZERS[kind](named, lr=1e-2, seed=1, **options)
        self.in_backward = None
        for step in range(steps):
            self.step(step)

    def step(self, index):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(index))
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()

    def fields(self):
        return {
            f"{state.name} {key}": value.clone()
            for state in self.optimizer.parameter_states()
            for key, value in state.fields.items()
        }

    def save(self, place, **options):
        return checkpoint.save(
            place, optimizer=self.optimizer, wait=False, overwrite=True, **options
        )


def saved_fields(folder):
    return {
        f"{state.name} {key}": value
        for state in checkpoint.open(folder).states()
        for key, value in state.fields.items()
    }


def assert_saved(folder, expected):
    found = saved_fields(folder)
    assert found.keys() == expected.keys()
    assert not [key for key in found if not torch.equal(found[key], expected[key])]


class WatchedStore(LocalStore):
    """A folder that calls a function before each write."""

    def __init__(self, folder, called):
        super().__init__(folder)
        self.called = called

    def write(self, name, *, expected=None):
        made = super().write(name, expected=expected)
        own = made.write

        def write(data):
            self.called()
            own(data)

        made.write = write
        return made


@contextmanager
def gate():
    """Hold a save before it reads anything, until the block ends."""
    opened = threading.Event()
    try:
        yield lambda *_: opened.wait(60)
    finally:
        opened.set()
