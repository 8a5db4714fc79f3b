"""One command makes AdamW state small, in any of our codecs, and tells what that changed."""

import pytest
import torch
from torch import nn

from luma_core import LUMA, TurboAdam, checkpoint, convert
from luma_core.convert.codecs import target_codecs
from luma_core.errors import ConfigurationError, UnknownCodecError

CODECS = ["luma16", "fp32", "bf16", "turbo", "turbo-8bit"]
KINDS = {"luma": LUMA, "turbo_adam": TurboAdam}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 256), nn.LayerNorm(256), nn.Linear(256, 64))


def train(model, optimizer, steps=3):
    for step in range(steps):
        x = torch.randn(16, 512, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("adamw") / "a.pt"
    model = make_model()
    adamw = torch.optim.AdamW(model.named_parameters())
    train(model, adamw)
    torch.save(adamw.state_dict(), path)
    return model, adamw, path


def test_the_names_are_those_that_can_be_asked_for():
    assert list(convert.codec_choices()) == CODECS


@pytest.mark.parametrize("codec", CODECS)
def test_the_checkpoint_goes_on_in_its_optimizer(tmp_path, trained, codec):
    model, adamw, path = trained
    report = convert.convert(path, tmp_path / "c", to="luma", codec=codec)
    saved = checkpoint.open(tmp_path / "c")
    optimizer = KINDS[saved.algorithm](model.named_parameters())
    checkpoint.load(tmp_path / "c", optimizer=optimizer)
    assert saved.algorithm == ("turbo_adam" if codec.startswith("turbo") else "luma")
    for moment in ("exp_avg", "exp_avg_sq"):
        errors, squares, largest = 0.0, 0.0, 0.0
        for name, param in model.named_parameters():
            want = adamw.state[param][moment].double()
            error = optimizer.parameter_state(name).decode(moment) - want
            errors += float(error.square().sum())
            squares += float(want.square().sum())
            largest = max(largest, float(error.abs().max() / want.abs().max()))
        told = report.errors[moment]
        assert told.relative_rms == pytest.approx((errors / squares) ** 0.5, rel=1e-3, abs=1e-12)
        assert told.relative_max == pytest.approx(largest, rel=1e-3, abs=1e-12)
    train(model, optimizer, 1)
    assert int(optimizer.state[model[0].weight]["step"]) == 4


@pytest.mark.parametrize(
    ("codec", "share", "rms"),
    [("luma16", 0.5, 1e-3), ("turbo", 0.105, 1.0), ("fp32", 0.93, 0.0), ("bf16", 0.5, 3e-3)],
)
def test_it_is_as_small_as_promised(tmp_path, trained, codec, share, rms):
    report = convert.convert(trained[2], tmp_path / "c", to="luma", codec=codec)
    assert report.result_bytes <= share * report.source_bytes
    assert report.errors["exp_avg"].relative_rms <= rms
    assert rms == 0 or report.errors["exp_avg"].relative_rms > 0


@pytest.mark.parametrize("first", CODECS)
def test_every_codec_of_ours_is_a_source(tmp_path, trained, first):
    """What is decoded is what the checkpoint says, in float32 and in every other codec."""
    convert.convert(trained[2], tmp_path / "a", to="luma", codec=first)
    exact = convert.convert(tmp_path / "a", tmp_path / "b.pt", to="adamw")
    assert exact.errors["exp_avg"].relative_rms == exact.errors["exp_avg"].relative_max == 0
    state = torch.load(tmp_path / "b.pt", weights_only=True)["state"][0]
    assert torch.equal(
        state["exp_avg"],
        checkpoint.open(tmp_path / "a").parameter_state("0.weight").decode("exp_avg"),
    )
    for second in ("luma16", "turbo"):
        convert.convert(tmp_path / "a", tmp_path / second, to="luma", codec=second)
        got = checkpoint.open(tmp_path / second)
        assert got.algorithm == target_codecs(second, block_size=128).algorithm
        assert checkpoint.verify(tmp_path / second).ok
        assert [state.step for state in got.states()] == [3] * 6


def test_options_that_do_not_go_together_are_refused(tmp_path, trained):
    with pytest.raises(UnknownCodecError, match="codec='int8' must be one of 'luma16'"):
        convert.convert(trained[2], tmp_path / "c", to="luma", codec="int8")
    with pytest.raises(ConfigurationError, match="block_size=None does not go with codec='turbo'"):
        convert.convert(trained[2], tmp_path / "c", to="luma", codec="turbo", block_size=None)
    assert not checkpoint.exists(tmp_path / "c")
