"""A live optimizer and the checkpoint saved from it have exactly the same statistics."""

from __future__ import annotations

import pytest
import torch

from luma_core import LUMA, checkpoint, stats


def trained(block_size: int | None = 128, steps: int = 3) -> LUMA:
    torch.manual_seed(5)
    shapes = {"emb": (70, 96), "conv": (6, 3, 5, 5), "flat": (300,), "norm": (), "none": (0, 4)}
    params = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    params["idle"] = torch.nn.Parameter(torch.zeros(5))
    optimizer = LUMA(params.items(), block_size=block_size, min_compress_elements=200, seed=1)
    for _ in range(steps):
        for name, param in params.items():
            if name != "idle":
                param.grad = torch.randn_like(param) * 1e-3
        params["flat"].grad[3] = torch.nan
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("block_size", [128, 48, None])
def test_live_equals_saved(tmp_path, block_size, compression) -> None:
    optimizer = trained(block_size)
    checkpoint.save(tmp_path / "ckpt", optimizer=optimizer, compression=compression)
    with checkpoint.open(tmp_path / "ckpt") as saved:
        live = stats.compute(optimizer)
        assert stats.compute(saved) == live
        assert stats.diff(optimizer, saved).identical
    assert live.total.step == 3
    assert live.total.nonfinite == 3
    assert live.total.parameters_without_state == 1


def test_saved_differs_from_the_optimizer_after_another_step(tmp_path) -> None:
    checkpoint.save(tmp_path / "ckpt", optimizer=trained(steps=2))
    with checkpoint.open(tmp_path / "ckpt") as saved:
        result = stats.diff(saved, trained(steps=3))
    assert not result.identical
    assert result.total.identical_parameters == 1  # the one without state
    assert result.total.update.differing > 0
