"""LAMB's state in and out: state_dict, checkpoints, statistics, and exchange with AdamW."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import LAMB, checkpoint, stats
from luma_core.errors import StateMismatchError

Make = Callable[..., nn.Module]
Train = Callable[..., float]
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, "trust_clip": True}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("codec", ["luma16", "bf16", "fp32"])
@pytest.mark.parametrize("way", ["state_dict", "checkpoint"])
def test_resuming_is_bit_identical(
    make_model: Make, train: Train, tmp_path: Path, way: str, codec: str
) -> None:
    model = make_model()
    optimizer = LAMB(model.named_parameters(), codec=codec, seed=3, **OPTIONS)
    train(model, optimizer, 4)
    resumed = make_model(seed=9)
    again = LAMB(resumed.named_parameters(), codec=codec)
    if way == "state_dict":
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        resumed.load_state_dict(weights)
        again.load_state_dict(state)
    else:
        checkpoint.save(tmp_path / "c", optimizer=optimizer, model=model)
        assert checkpoint.verify(tmp_path / "c").ok
        checkpoint.load(tmp_path / "c", optimizer=again, model=resumed)
    assert {key: again.param_groups[0][key] for key in OPTIONS} == OPTIONS
    train(model, optimizer, 4, start=4)
    train(resumed, again, 4, start=4)
    assert same(model, resumed)


def test_a_checkpoint_says_what_it_is_and_is_measured_like_the_optimizer(
    make_model: Make, train: Train, tmp_path: Path
) -> None:
    model = make_model()
    optimizer = LAMB(model.named_parameters(), seed=3, **OPTIONS)
    train(model, optimizer, 3)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    opened = checkpoint.open(tmp_path / "c")
    assert opened.algorithm == "lamb"
    assert opened.group_options() == optimizer.group_options()
    assert stats.compute(opened) == stats.compute(optimizer)


@pytest.mark.parametrize("block_size", [128, None])
def test_export_then_import_restores_every_value(
    make_model: Make, train: Train, block_size: int | None
) -> None:
    model = make_model()
    optimizer = LAMB(model.named_parameters(), block_size=block_size, seed=3, **OPTIONS)
    train(model, optimizer, 3)
    exported = optimizer.export_adamw_state()
    other = LAMB(model.named_parameters(), block_size=block_size, trust_clip=True, seed=3)
    other.import_adamw_state(exported)
    for want, got in zip(optimizer.parameter_states(), other.parameter_states(), strict=True):
        assert (got.step, got.noise_key) == (want.step, want.noise_key)
        for moment in want.codecs:
            assert torch.equal(want.decode(moment), got.decode(moment))
    group = other.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["eps"]) == (1e-2, 0.1, 1e-6)
    assert (group["trust_clip"], group["max_grad_norm"]) == (True, None)


def test_imported_adamw_state_has_adamws_meaning(make_model: Make, train: Train) -> None:
    """Without weight decay LAMB is AdamW, so it goes on as AdamW does."""
    theirs, ours = make_model(), make_model()
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0)
    train(theirs, adamw, 5)
    ours.load_state_dict(theirs.state_dict())
    lamb = LAMB(ours.parameters(), codec="fp32", seed=0)
    lamb.import_adamw_state(adamw.state_dict())
    train(theirs, adamw, 5, start=5)
    train(ours, lamb, 5, start=5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_saved_options_that_cannot_work_change_nothing(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LAMB(model.parameters(), seed=3)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    state["param_groups"] = [{**state["param_groups"][0], "max_grad_norm": -1.0}]
    with pytest.raises(StateMismatchError, match=r"max_grad_norm=-1.0 must be a finite number"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["max_grad_norm"] is None
