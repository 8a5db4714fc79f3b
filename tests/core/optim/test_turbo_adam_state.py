"""TurboAdam's state in and out: state_dict, checkpoints, statistics, and exchange with AdamW."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import TurboAdam, checkpoint, stats

Make = Callable[..., nn.Module]
Train = Callable[..., float]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"preset": "8bit"},
    {"m_codec": "costate", "error_feedback": True},
]


def trained(
    make_model: Make, train: Train, steps: int = 4, **options: Any
) -> tuple[nn.Module, TurboAdam]:
    model = make_model()
    optimizer = TurboAdam(model.named_parameters(), lr=3e-3, seed=3, **options)
    train(model, optimizer, steps)
    return model, optimizer


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("way", ["state_dict", "checkpoint", "deepcopy"])
def test_resuming_is_bit_identical(
    make_model: Make, train: Train, tmp_path: Path, way: str, options: dict[str, Any]
) -> None:
    model, optimizer = trained(make_model, train, **options)
    resumed = make_model(seed=9)
    again = TurboAdam(resumed.named_parameters(), **options)
    if way == "state_dict":
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        resumed.load_state_dict(weights)
        again.load_state_dict(state)
    elif way == "checkpoint":
        checkpoint.save(tmp_path / "c", optimizer=optimizer, model=model)
        assert checkpoint.verify(tmp_path / "c").ok
        checkpoint.load(tmp_path / "c", optimizer=again, model=resumed)
    else:
        resumed, again = copy.deepcopy((model, optimizer))
    train(model, optimizer, 4, start=4)
    train(resumed, again, 4, start=4)
    assert same(model, resumed)
    for want, got in zip(optimizer.parameter_states(), again.parameter_states(), strict=True):
        assert all(torch.equal(field, got.fields[key]) for key, field in want.fields.items())


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_checkpoint_says_what_it_is_and_is_measured_like_the_optimizer(
    make_model: Make, train: Train, tmp_path: Path, options: dict[str, Any]
) -> None:
    _, optimizer = trained(make_model, train, **options)
    manifest = checkpoint.save(tmp_path / "c", optimizer=optimizer)
    opened = checkpoint.open(tmp_path / "c")
    assert opened.algorithm == "turbo_adam"
    assert opened.group_options() == optimizer.group_options()
    assert stats.compute(opened) == stats.compute(optimizer)
    assert stats.diff(optimizer, opened).identical
    held = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert manifest.summary.state_bytes == held


def test_saved_codecs_are_loaded_whatever_the_optimizer_was_built_with(
    make_model: Make, train: Train, tmp_path: Path
) -> None:
    model, optimizer = trained(make_model, train, preset="8bit", m_bits=4)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    other = TurboAdam(model.named_parameters())
    checkpoint.load(tmp_path / "c", optimizer=other)
    assert other.param_groups[0]["codecs"] == optimizer.param_groups[0]["codecs"]


def test_a_group_with_codecs_of_its_own_comes_back_with_them(
    make_model: Make, train: Train, tmp_path: Path
) -> None:
    def build(model: nn.Module) -> TurboAdam:
        named = list(model.named_parameters())
        own = {"params": named[4:], "preset": "8bit", "block_size": 64}
        return TurboAdam([{"params": named[:4]}, own], lr=3e-3, seed=3)

    model, resumed = make_model(), make_model()
    optimizer, again = build(model), build(resumed)
    train(model, optimizer, 3)
    checkpoint.save(tmp_path / "c", optimizer=optimizer, model=model)
    checkpoint.load(tmp_path / "c", optimizer=again, model=resumed)
    train(model, optimizer, 3, start=3)
    train(resumed, again, 3, start=3)
    assert same(model, resumed)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_imported_adamw_state_is_coded_and_goes_on_like_adamw(
    make_model: Make, train: Train, options: dict[str, Any]
) -> None:
    theirs, ours = make_model(), make_model()
    adamw = torch.optim.AdamW(theirs.parameters(), lr=3e-3)
    train(theirs, adamw, 20)
    ours.load_state_dict(theirs.state_dict())
    turbo = TurboAdam(ours.parameters(), seed=0, **options)
    turbo.import_adamw_state(adamw.state_dict())
    assert turbo.param_groups[0]["lr"] == 3e-3
    for param, state in zip(theirs.parameters(), turbo.parameter_states(), strict=True):
        assert state.step == 20
        assert int(turbo.state[next(ours.parameters())]["step"]) == 20
        for moment in ("exp_avg", "exp_avg_sq"):
            want = adamw.state[param][moment]
            got = state.decode(moment)
            error = (got - want).norm() / want.norm().clamp(min=1e-30)
            assert float(error) < (0.7 if "m_codec" in options else 0.4), (state.name, moment)
    want, got = train(theirs, adamw, 20, start=20), train(ours, turbo, 20, start=20)
    assert got == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"m_codec": "costate"}], ids=str)
def test_export_then_import_restores_the_first_moment(
    make_model: Make, train: Train, options: dict[str, Any]
) -> None:
    model, optimizer = trained(make_model, train, **options)
    other = TurboAdam(model.named_parameters(), seed=3, **options)
    other.import_adamw_state(optimizer.export_adamw_state())
    for want, got in zip(optimizer.parameter_states(), other.parameter_states(), strict=True):
        assert (got.step, got.noise_key) == (want.step, want.noise_key)
        assert torch.equal(want.decode("exp_avg"), got.decode("exp_avg"))
