"""What all optimizers promise alike: noise from the seed alone, and no loss to memory formats."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from luma_core import checkpoint, convert
from luma_core.errors import ConversionError
from luma_core.optim.adamw_state import AdamWStateOptimizer
from tests.optimizers import VARIANTS, Build

Make = Callable[..., nn.Module]
Train = Callable[..., float]

every_optimizer = pytest.mark.parametrize("build", VARIANTS.values(), ids=VARIANTS.keys())


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_seeds_are_bit_identical_and_others_are_not(
    make_model: Make, train: Train, build: Build, dtype: torch.dtype
) -> None:
    found = []
    for seed in (4, 4, 5):
        model = make_model(dtype=dtype)
        train(model, build(model.named_parameters(), seed=seed), 5)
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@every_optimizer
def test_replicas_round_alike_whatever_generators_are_seeded_with(
    make_model: Make, train: Train, build: Build
) -> None:
    found = []
    for rank in range(2):
        model = make_model(dtype=torch.bfloat16)
        torch.manual_seed(rank)
        random.seed(rank)
        np.random.seed(rank)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        optimizer = build(model.named_parameters())
        train(model, optimizer, 3)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
        assert json.loads(json.dumps(optimizer.group_options()))[0]["seed"] == 0
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*found)


@every_optimizer
def test_non_contiguous_parameters_step_like_contiguous_ones(build: Build) -> None:
    torch.manual_seed(0)
    value, grad = torch.randn(64, 8, 5, 5), torch.randn(64, 8, 5, 5)
    plain = nn.Parameter(value.clone())
    last = nn.Parameter(value.clone(memory_format=torch.channels_last))
    for param in (plain, last):
        optimizer = build([("conv", param)], seed=3)
        for _ in range(3):
            param.grad = grad.clone(memory_format=torch.preserve_format)
            optimizer.step()
    assert not last.is_contiguous()
    assert torch.equal(plain, last)


@every_optimizer
def test_tiny_updates_of_bfloat16_parameters_are_not_lost(build: Build) -> None:
    """Each step moves by far less than half a last-place unit: rounding to nearest stalls."""
    moved = {}
    for dtype, stochastic in (
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.bfloat16, False),
    ):
        param = nn.Parameter(torch.ones(64, 1024, dtype=dtype))
        optimizer = build(
            [("w", param)], lr=5e-4, weight_decay=0.0, seed=0, stochastic_rounding=stochastic
        )
        for _ in range(100):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved[dtype, stochastic] = float(1 - param.detach().double().mean())
    assert moved[torch.bfloat16, False] == 0
    assert moved[torch.bfloat16, True] == pytest.approx(moved[torch.float32, True], rel=0.05)


@every_optimizer
def test_a_checkpoint_converts_to_adamw_as_it_is_exported(
    make_model: Make, train: Train, tmp_path: Path, build: Build
) -> None:
    model = make_model()
    optimizer = build(model.named_parameters(), lr=3e-3, seed=3)
    train(model, optimizer, 4)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    if not isinstance(optimizer, AdamWStateOptimizer):
        with pytest.raises(ConversionError, match="holds AdamW's exp_avg and exp_avg_sq"):
            convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
        return
    convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    exported = optimizer.export_adamw_state()
    assert content["param_groups"] == exported["param_groups"]
    for index, state in enumerate(optimizer.parameter_states()):
        entry = exported["state"][index]
        assert torch.equal(entry["exp_avg"], state.decode("exp_avg"))
        assert all(torch.equal(content["state"][index][key], entry[key]) for key in entry)
    adamw = torch.optim.AdamW(model.named_parameters())
    adamw.load_state_dict(content)
    train(model, adamw, 2, start=4)
