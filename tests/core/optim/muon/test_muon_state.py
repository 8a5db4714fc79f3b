"""Muon's state goes through state dicts, checkpoints, offload and statistics, and is told apart."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA, Muon, checkpoint, convert, stats
from luma_core.errors import StateMismatchError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(50, 64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)
        self.head = nn.Linear(64, 50)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


OPTIONS: dict[str, dict[str, Any]] = {
    "luma16": {},
    "8bit": {"codec": "8bit"},
    "fp32": {"codec": "fp32"},
    "neurons": {"neuron_beta2": 0.9},
    "whole": {"block_size": None, "split_rows": 32},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("way", ["state_dict", "checkpoint", "disk"])
def test_a_run_goes_on_bit_for_bit(options: Any, way: str, tmp_path: Path) -> None:
    offload = {"offload": "disk", "offload_directory": tmp_path} if way == "disk" else {}
    model = Model()
    optimizer = Muon(model.named_parameters(), **options, **offload)
    train(model, optimizer, range(3))
    weights, state = (copy.deepcopy(x.state_dict()) for x in (model, optimizer))
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    train(model, optimizer, range(3, 5))
    other = Model()
    other.load_state_dict(weights)
    resumed = Muon(other.named_parameters(), **options)
    if way == "checkpoint":
        checkpoint.load(tmp_path / "c", optimizer=resumed)
    else:
        resumed.load_state_dict(state)
    train(other, resumed, range(3, 5))
    for found, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_state_dict_from_before_the_first_step_counts_nothing() -> None:
    model = Model()
    optimizer = Muon(model.named_parameters())
    optimizer.init_state()
    fresh = Muon(model.named_parameters())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(int(entry["step"]) == 0 for entry in fresh.state.values())


def test_state_takes_2_bytes_of_a_matrix_and_1() -> None:
    for options, most in (({}, 2.02), ({"codec": "8bit"}, 1.02), ({"neuron_beta2": 0.9}, 2.04)):
        param = nn.Parameter(torch.zeros(256, 512))
        optimizer = Muon([("w", param)], **options)
        optimizer.init_state()
        nbytes = sum(v.nbytes for k, v in optimizer.state[param].items() if "." in k)
        assert nbytes / param.numel() <= most


def test_a_checkpoint_names_the_algorithm_and_each_parameters_moments(tmp_path: Path) -> None:
    model = Model()
    optimizer = Muon(model.named_parameters(), neuron_beta2=0.9)
    train(model, optimizer, range(2))
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    with checkpoint.open(tmp_path / "c") as opened:
        assert opened.manifest.algorithm == "muon"
        moments = {entry.name: list(entry.codecs) for entry in opened.manifest.parameters}
        assert stats.compute(opened).total.moments == stats.compute(optimizer).total.moments
    assert moments["up.weight"] == ["momentum_buffer", "neuron_variance"]
    assert moments["embed.weight"] == ["exp_avg", "exp_avg_sq"]


def test_parameters_that_another_rule_stepped_are_refused_or_start_fresh(tmp_path: Path) -> None:
    model = Model()
    optimizer = Muon([("up", model.up.weight), ("down", model.down.weight)])
    model.up.weight.grad = torch.ones(128, 64)
    model.down.weight.grad = torch.ones(64, 128)
    optimizer.step()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    other = Muon([("up", model.up.weight), ("down", model.down.weight)], overrides={"up": "adamw"})
    with pytest.raises(StateMismatchError, match="was saved with the moments"):
        checkpoint.load(tmp_path / "c", optimizer=other)
    report = checkpoint.load(tmp_path / "c", optimizer=other, strict=False)
    assert report.optimizer is not None
    assert report.optimizer.new == ("up",)
    assert not other.state[model.up.weight]
    assert "momentum_buffer.codes" in other.state[model.down.weight]


@pytest.mark.parametrize("neuron_beta2", [None, 0.9])
@pytest.mark.parametrize("codec", ["fp32", "luma16", "bf16"])
def test_a_checkpoint_converts_to_other_codecs(
    codec: str, neuron_beta2: float | None, tmp_path: Path
) -> None:
    model = Model()
    optimizer = Muon(model.named_parameters(), neuron_beta2=neuron_beta2)
    train(model, optimizer, range(2))
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    report = convert.convert(tmp_path / "c", tmp_path / "d", to="luma", codec=codec)
    limit = 0.005 if codec == "bf16" else 0.0
    assert report.errors["momentum_buffer"].relative_rms <= limit
    assert report.errors["exp_avg"].relative_rms <= limit
    other = Muon(Model().named_parameters(), neuron_beta2=neuron_beta2, codec=codec)
    checkpoint.load(tmp_path / "d", optimizer=other)
    for found, expected in zip(other.parameter_states(), optimizer.parameter_states(), strict=True):
        for moment in expected.codecs:
            torch.testing.assert_close(
                found.decode(moment), expected.decode(moment), rtol=0.005, atol=1e-6
            )
    train(Model(), other, range(1))


def test_state_of_other_algorithms_is_refused() -> None:
    model = Model()
    luma = LUMA([("up", model.up.weight)])
    muon = Muon([("up", model.up.weight)])
    for optimizer in (luma, muon):
        optimizer.init_state()
    with pytest.raises(StateMismatchError, match="has the moments"):
        muon.load_state_dict(luma.state_dict())
    with pytest.raises(StateMismatchError, match="has the moments"):
        luma.load_state_dict(muon.state_dict())
