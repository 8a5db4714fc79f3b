"""Offloading from a CUDA device: slots, saving and loading, and what failed pinning leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA, checkpoint
from luma_core.optim.offload import arena as arenas

from .offloaded import assert_same, bits, give_gradients, named_parameters

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", ["host", "disk"])
def test_state_that_stays_in_its_slots_is_stepped_right(mode: str, tmp_path: Path) -> None:
    """It is stepped again while it is still on its way back from the step before."""
    found = []
    away: dict[str, Any] = {"offload": mode, "offload_buffer_bytes": 64 << 20}
    if mode == "disk":
        away["offload_directory"] = tmp_path
    for options in ({}, away):
        named = [(name, nn.Parameter(p.detach().cuda())) for name, p in named_parameters()]
        optimizer = LUMA(named, lr=1e-2, seed=3, **options)
        source = named_parameters()
        give_gradients(source, 0)
        for (_, param), (_, like) in zip(named, source, strict=True):
            assert like.grad is not None
            param.grad = like.grad.cuda()
        for _ in range(20):
            optimizer.step()
        found.append({key: value.cpu() for key, value in bits(named, optimizer).items()})
    assert_same(found[1], found[0])


@pytest.mark.parametrize("mode", ["host", "disk", "cpu-step"])
def test_saving_and_loading_take_no_memory_of_the_device(mode: str, tmp_path: Path) -> None:
    away: dict[str, Any] = {"offload": mode, "offload_buffer_bytes": 2 << 20}
    if mode == "disk":
        away["offload_directory"] = tmp_path / "state"
    param = nn.Parameter(torch.zeros(4000, 1000, device="cuda"))
    param.grad = torch.ones_like(param)
    optimizer = LUMA([param], lr=1e-2, seed=3, **away)
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state_dict()["state"][0].items()}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    checkpoint.load(tmp_path / "c", optimizer=optimizer)
    assert torch.cuda.max_memory_allocated() - held < 1 << 20
    assert_same(optimizer.state_dict()["state"][0], before)
    optimizer.step()
    assert int(optimizer.state_dict()["state"][0]["step"]) == 2


def test_pinning_that_fails_leaves_no_error_for_the_next_launch() -> None:
    arena = arenas.HostArena(1 << 20, pin=True)
    assert arena.pinned
    # It is registered already.
    assert "error" in arenas.register(arena.bytes.data_ptr(), arena.bytes.numel())
    assert float(torch.ones(3, device="cuda").sum()) == 3
