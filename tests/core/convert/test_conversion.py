"""State goes to torch.optim.AdamW and back without a bit of difference where none is needed."""

import math

import pytest
import torch
from torch import nn

from luma_core import checkpoint, convert
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConversionError,
    CorruptCheckpointError,
    StorageError,
)
from luma_core.optim import LUMA


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 40), nn.LayerNorm(40), nn.Linear(40, 6))


def train(model, optimizer, steps):
    for step in range(steps):
        x = torch.randn(16, 48, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.fixture(params=[True, False], ids=["named", "positional"])
def trained(request):
    model = make_model()
    params = model.named_parameters() if request.param else model.parameters()
    optimizer = LUMA(params, lr=0.01, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.1, seed=3)
    train(model, optimizer, 5)
    return model, optimizer


def test_luma_state_goes_on_in_adamw_as_its_export_does(tmp_path, trained):
    model, optimizer = trained
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    report = convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    exported = optimizer.export_adamw_state()
    assert content["param_groups"] == exported["param_groups"]
    assert content["state"].keys() == exported["state"].keys()
    for index, entry in exported["state"].items():
        for key, tensor in entry.items():
            assert torch.equal(content["state"][index][key], tensor)
    adamw = torch.optim.AdamW(model.named_parameters() if optimizer.named else model.parameters())
    layout = {key: type(value) for key, value in adamw.param_groups[0].items()}
    adamw.load_state_dict(content)
    assert {key: type(value) for key, value in adamw.param_groups[0].items()} == layout
    train(model, adamw, 1)
    assert float(adamw.state[model[0].weight]["step"]) == 6.0
    assert report.elements == sum(p.numel() for p in model.parameters())
    assert (report.source_format, report.target_format, report.parameters) == ("luma", "adamw", 6)
    assert report.result_bytes == (tmp_path / "a.pt").stat().st_size
    assert report.source_bytes == sum(p.stat().st_size for p in (tmp_path / "c").glob("opt*"))


@pytest.mark.parametrize("block_size", [16, 128, None])
def test_luma_to_adamw_to_luma_restores_every_value(tmp_path, block_size):
    model = make_model()
    optimizer = LUMA(model.named_parameters(), block_size=block_size, seed=1)
    train(model, optimizer, 5)
    checkpoint.save(tmp_path / "a", optimizer=optimizer)
    convert.convert(tmp_path / "a", tmp_path / "b.pt", to="adamw")
    convert.convert(tmp_path / "b.pt", tmp_path / "c", to="luma", block_size=block_size, seed=1)
    a, c = checkpoint.open(tmp_path / "a"), checkpoint.open(tmp_path / "c")
    assert a.parameter_names() == c.parameter_names()
    assert a.group_options() == c.group_options()
    for name in a.parameter_names():
        want, got = a.parameter_state(name), c.parameter_state(name)
        assert (got.step, got.codecs, got.noise_key) == (want.step, want.codecs, want.noise_key)
        for moment in want.codecs:
            values = [state.decode(moment).view(torch.int32) for state in (want, got)]
            assert torch.equal(*values)


def test_adamw_state_goes_on_in_luma(tmp_path):
    model = make_model()
    adamw = torch.optim.AdamW(
        [
            {"params": [model[0].weight, model[2].weight], "weight_decay": 0.3, "initial_lr": 0.5},
            {"params": [model[0].bias, *model[1].parameters(), model[2].bias], "lr": 0.25},
        ]
    )
    train(model, adamw, 4)
    torch.save(adamw.state_dict(), tmp_path / "a.pt")
    calls = []
    convert.convert(
        tmp_path / "a.pt", tmp_path / "c", to="luma", progress=lambda *call: calls.append(call)
    )
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] > 0
    assert checkpoint.verify(tmp_path / "c").ok
    groups = [{"params": group["params"]} for group in adamw.param_groups]
    luma = LUMA(groups)
    checkpoint.load(tmp_path / "c", optimizer=luma)
    assert [group["weight_decay"] for group in luma.param_groups] == [0.3, 0.01]
    assert [group["lr"] for group in luma.param_groups] == [1e-3, 0.25]
    assert luma.param_groups[0]["initial_lr"] == 0.5
    for param, state in adamw.state.items():
        assert int(luma.state[param]["step"]) == 4
        want = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
        names = [p for group in luma.param_groups for p in group["params"]]
        index = next(i for i, p in enumerate(names) if p is param)
        found = luma.parameter_state(f"param.{index}")
        got = found.decode("exp_avg") / (found.decode("exp_avg_sq").sqrt() + 1e-8)
        assert float((got - want).norm() / want.norm()) <= 1e-3
    train(model, luma, 1)
    back = convert.convert(tmp_path / "c", tmp_path / "b.pt", to="adamw")
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    assert content["param_groups"][0]["initial_lr"] == 0.5
    assert [group["params"] for group in content["param_groups"]] == [[0, 1], [2, 3, 4, 5]]
    assert back.parameters == 6


def test_parameters_without_state_stay_without(tmp_path):
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = LUMA([("unused", unused), ("used", used)])
    used.grad = torch.ones(3)
    optimizer.step()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(content["state"]) == [1]
    assert content["param_groups"][0]["params"] == [0, 1]
    with pytest.raises(ConversionError, match="'unused' has no state"):
        convert.open_source(tmp_path / "a.pt")


def test_scalars_empty_and_strided_moments_convert(tmp_path):
    params = [torch.tensor(2.0), torch.zeros(0, 40), torch.randn(64, 4, 8, 8)]
    params = [nn.Parameter(p) for p in params]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    adamw = torch.optim.AdamW(params)
    for param in params:
        param.grad = torch.randn_like(param)
    adamw.step()
    torch.save(adamw.state_dict(), tmp_path / "a.pt")
    convert.convert(tmp_path / "a.pt", tmp_path / "b.pt", to="adamw")
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    for index, param in enumerate(params):
        assert torch.equal(content["state"][index]["exp_avg"], adamw.state[param]["exp_avg"])
    convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma")
    stored = checkpoint.open(tmp_path / "c").parameter_state("param.2").decode("exp_avg")
    assert torch.allclose(stored, adamw.state[params[2]]["exp_avg"], rtol=1e-2, atol=1e-6)


def test_a_destination_is_not_overwritten_unasked(tmp_path, trained):
    checkpoint.save(tmp_path / "c", optimizer=trained[1])
    (tmp_path / "a.pt").write_text("mine")
    with pytest.raises(CheckpointExistsError, match="there is a file already"):
        convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
    assert (tmp_path / "a.pt").read_text() == "mine"
    convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw", overwrite=True)
    with pytest.raises(CheckpointExistsError, match="there is a checkpoint already"):
        convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma")
    convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma", overwrite=True)
    with pytest.raises(CheckpointExistsError, match="is a folder"):
        convert.convert(tmp_path / "c", tmp_path / "c", to="adamw", overwrite=True)
    convert.convert(tmp_path / "c", tmp_path / "c", to="luma", overwrite=True, block_size=64)
    assert checkpoint.verify(tmp_path / "c").ok
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", "c"}


def test_a_failed_conversion_leaves_the_destination_as_it_was(tmp_path, trained):
    checkpoint.save(tmp_path / "c", optimizer=trained[1])
    (tmp_path / "a.pt").write_text("mine")
    shard = tmp_path / "c" / "optimizer-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptCheckpointError):
        convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw", overwrite=True)
    with pytest.raises(CorruptCheckpointError):
        convert.convert(tmp_path / "c", tmp_path / "new" / "c", to="luma")
    assert (tmp_path / "a.pt").read_text() == "mine"
    assert not list((tmp_path / "new" / "c").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", "c", "new"}


@pytest.mark.parametrize(("moment", "value"), [("exp_avg", math.nan), ("exp_avg_sq", -1.0)])
def test_moments_that_cannot_be_coded_are_refused(tmp_path, moment, value):
    model = make_model()
    adamw = torch.optim.AdamW(model.named_parameters())
    train(model, adamw, 1)
    adamw.state[model[0].weight][moment][3, 4] = value
    torch.save(adamw.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConversionError, match=rf"'0.weight': {moment} holds 1 "):
        convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma")
    assert not checkpoint.exists(tmp_path / "c")


def test_formats_are_told_apart_or_asked_for(tmp_path, trained):
    checkpoint.save(tmp_path / "c", optimizer=trained[1])
    assert set(convert.format_names()) == {*convert.source_names(), *convert.target_names()}
    assert convert.open_source(tmp_path / "c").format == "luma"
    convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
    assert convert.open_source(tmp_path / "a.pt", format="adamw").format == "adamw"
    with pytest.raises(CheckpointNotFoundError):
        convert.open_source(tmp_path / "a.pt", format="luma")
    with pytest.raises(ConfigurationError, match="to='bf16' is not a format"):
        convert.convert(tmp_path / "c", tmp_path / "b", to="bf16")
    with pytest.raises(ConfigurationError, match="to='trainer' cannot be written"):
        convert.convert(tmp_path / "c", tmp_path / "b", to="trainer")
    with pytest.raises(ConfigurationError, match="format='fsdp' cannot be read"):
        convert.open_source(tmp_path / "a.pt", format="fsdp")
    with pytest.raises(ConfigurationError, match="block_size=0"):
        convert.convert(tmp_path / "c", tmp_path / "b", to="luma", block_size=0)
    with pytest.raises(CheckpointNotFoundError, match="no optimizer state here"):
        convert.open_source(tmp_path)
    with pytest.raises(StorageError, match="'nowhere'"):
        convert.convert(tmp_path / "c", "nowhere://bucket/a.pt", to="adamw")
