"""Whoever drops an optimizer has the memory of its state and parameters back at once."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA, checkpoint, stats
from luma_core.errors import LumaError, StorageError
from luma_core.optim import CompressedOptimizer, step_in_backward
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.offload.files import FileArena
from tests.optimizers import CLASSES

Use = Callable[[nn.Module, Any, Path], object]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Without the collector of cycles, what is in one stays."""
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # The first of a process is in one, of imports.
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def steps(model: nn.Module, optimizer: CompressedOptimizer, _: Path) -> None:
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
    optimizer.zero_grad()


def loads(model: nn.Module, optimizer: Any, folder: Path) -> None:
    steps(model, optimizer, folder)
    optimizer.load_state_dict(optimizer.state_dict())
    steps(model, optimizer, folder)
    if isinstance(optimizer, AdamWStateOptimizer):
        optimizer.import_adamw_state(optimizer.export_adamw_state())
    stats.compute(optimizer)


def saves(model: nn.Module, optimizer: CompressedOptimizer, folder: Path) -> None:
    steps(model, optimizer, folder)
    checkpoint.save(folder / "a", optimizer=optimizer, model=model)
    checkpoint.load(folder / "a", optimizer=optimizer, model=model)
    steps(model, optimizer, folder)


def steps_in_backward(model: nn.Module, optimizer: CompressedOptimizer, _: Path) -> None:
    handles = step_in_backward(model, optimizer)
    for _ in range(2):
        model(torch.ones(2, 300)).sum().backward()
    handles.remove()


def fails(model: nn.Module, optimizer: CompressedOptimizer, folder: Path) -> None:
    steps(model, optimizer, folder)
    for param in model.parameters():
        param.grad = torch.ones_like(param).to_sparse()
    with pytest.raises(LumaError):
        optimizer.step()
    with pytest.raises(LumaError):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    with pytest.raises(LumaError):
        optimizer.add_param_group({"params": [("x", nn.Parameter(torch.ones(2)))], "lr": -1.0})
    optimizer.zero_grad()


USES: dict[str, Use] = {
    "fresh": lambda *_: None,
    "stepped": steps,
    "loaded": loads,
    "saved": saves,
    "stepped in backward": steps_in_backward,
    "failed": fails,
}


def left(model: nn.Module, optimizer: CompressedOptimizer) -> list[weakref.ref[Any]]:
    """Return weak references to all that must be gone with the optimizer and its model."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    found = [optimizer, *model.parameters(), *values]
    found += [value.untyped_storage() for value in values]
    return [weakref.ref(item) for item in found]


def assert_gone(refs: list[weakref.ref[Any]]) -> None:
    """Check that nothing is left, once threads that write files let go of what they wrote."""
    for _ in range(1000):
        if all(ref() is None for ref in refs):
            return
        time.sleep(0.01)
    assert not [ref() for ref in refs if ref() is not None]


def made(build: Callable[..., Any], offload: str | None, folder: Path) -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Linear(300, 64), nn.Linear(64, 3))
    directory = folder / "state" if offload == "disk" else None
    return model, build(model.named_parameters(), offload=offload, offload_directory=directory)


@pytest.mark.parametrize("offload", [None, "host", "disk"])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("build", CLASSES)
def test_nothing_is_left_of_a_dropped_optimizer(
    tmp_path: Path, build: Callable[..., Any], use: Use, offload: str | None
) -> None:
    model, optimizer = made(build, offload, tmp_path)
    use(model, optimizer, tmp_path)
    refs = left(model, optimizer)
    del model, optimizer
    assert_gone(refs)
    # The directory is free for the next one.
    made(build, offload, tmp_path)


def test_a_failed_disk_keeps_nobody_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    model, optimizer = made(LUMA, "disk", tmp_path)
    steps(model, optimizer, tmp_path)
    monkeypatch.setattr(FileArena, "_moved", broken)
    for _ in range(2):
        with pytest.raises(StorageError):
            saves(model, optimizer, tmp_path)
    refs = left(model, optimizer)
    del model, optimizer
    assert_gone(refs)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [None, "host", "disk", "cpu-step"])
@pytest.mark.parametrize("build", CLASSES)
def test_nothing_is_left_on_a_device(
    tmp_path: Path, build: Callable[..., Any], offload: str | None
) -> None:
    model, optimizer = made(build, None, tmp_path)
    model.cuda()
    directory = tmp_path / "state" if offload == "disk" else None
    optimizer = build(model.named_parameters(), offload=offload, offload_directory=directory)
    steps(model, optimizer, tmp_path)
    refs = left(model, optimizer)
    del model, optimizer
    assert_gone(refs)
