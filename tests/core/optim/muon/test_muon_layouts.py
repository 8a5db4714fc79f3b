"""Muon goes on from other programs' state, and writes it, whether momentum is average or sum."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import Muon
from luma_core.errors import ConfigurationError, ConversionError, StateMismatchError

SUMS = {"torch": False, "keller": False, "moonlight": True, "dion": True}
MU = 0.9


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"up": (24, 40), "down": (40, 24), "bias": (24,), "norm": (40,)}
    return {name: nn.Parameter(torch.randn(shape) * 0.1) for name, shape in shapes.items()}


def train(params: dict[str, nn.Parameter], optimizers: list[Any], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def built(params: dict[str, nn.Parameter], **options: Any) -> Muon:
    items = list(params.items())
    return Muon(items[:2], adamw_params=items[2:], **{"momentum": MU, "codec": "fp32", **options})


def torch_pair(params: dict[str, nn.Parameter]) -> list[Any]:
    values = list(params.values())
    muon = torch.optim.Muon(values[:2], lr=0.02, momentum=MU, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(values[2:], lr=0.01, betas=(0.8, 0.9))]


def test_a_run_of_torch_goes_on() -> None:
    params = parameters()
    pair = torch_pair(params)
    train(params, pair, range(3))
    other = {name: nn.Parameter(param.detach().clone()) for name, param in params.items()}
    own = built(other, ns_dtype="bfloat16", adjust_lr_fn="original", lr=7.0)
    own.import_muon_state([optimizer.state_dict() for optimizer in pair])
    first, second = own.param_groups
    assert (first["lr"], first["adjust_lr_fn"]) == (0.02, "match_rms_adamw")
    assert (second["lr"], second["betas"]) == (0.01, (0.8, 0.9))
    assert first["codecs"]["momentum_buffer"]["name"] == "fp32"
    train(params, pair, range(3, 6))
    train(other, [own], range(3, 6))
    for name, param in params.items():
        torch.testing.assert_close(other[name].detach(), param.detach(), rtol=0, atol=2e-7)


def test_a_run_goes_on_in_torch() -> None:
    params = parameters()
    own = built(params, ns_dtype="bfloat16", adjust_lr_fn="original", ns_steps=3, eps=1e-6)
    train(params, [own], range(3))
    other = {name: nn.Parameter(param.detach().clone()) for name, param in params.items()}
    pair = torch_pair(other)
    for optimizer, state in zip(pair, own.export_muon_state("torch"), strict=True):
        optimizer.load_state_dict(state)
    train(params, [own], range(3, 6))
    train(other, pair, range(3, 6))
    for name, param in params.items():
        torch.testing.assert_close(other[name].detach(), param.detach(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("layout", SUMS)
@pytest.mark.parametrize("codec", ["fp32", "luma16", "8bit"])
def test_layouts_restore_what_they_were_written_from(layout: str, codec: str) -> None:
    params = parameters()
    adjust = {"moonlight": "match_rms_adamw", "dion": "unit_rms_norm"}.get(layout, "original")
    options: dict[str, Any] = {"codec": codec, "adjust_lr_fn": adjust, "min_compress_elements": 0}
    own = built(params, lr=0.03, **options)
    train(params, [own], range(3))
    written = own.export_muon_state(layout)
    other = built(params, lr=0.5, **options)
    other.import_muon_state(written)
    assert [group["lr"] for group in other.param_groups] == [0.03, 0.03]
    assert other.param_groups[0]["adjust_lr_fn"] == adjust
    for left, right in zip(other.parameter_states(), own.parameter_states(), strict=True):
        for moment in left.codecs:
            torch.testing.assert_close(left.decode(moment), right.decode(moment), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", SUMS)
def test_a_sum_is_told_from_an_average(layout: str) -> None:
    params = parameters()
    adjust = "match_rms_adamw" if SUMS[layout] else "original"
    own = built(params, adjust_lr_fn=adjust)
    train(params, [own], range(1))
    key = "momentum" if layout == "dion" else "momentum_buffer"
    written = own.export_muon_state(layout)[0]["state"][0]
    grad = params["up"].grad
    assert grad is not None
    expected = grad if SUMS[layout] else grad * (1 - MU)
    torch.testing.assert_close(written[key], expected)


def test_what_cannot_be_told_is_refused_unless_it_is_said() -> None:
    param = nn.Parameter(torch.zeros(24, 40))
    momentum = torch.ones(24, 40)
    group = {"lr": 0.1, "momentum": 0.5, "nesterov": True, "ns_steps": 5, "params": [0]}
    state = {"state": {0: {"momentum_buffer": momentum}}, "param_groups": [group]}
    own = Muon([param], codec="fp32")
    with pytest.raises(ConversionError, match="does not tell whose Muon it is") as caught:
        own.import_muon_state(state)
    assert "layout=" in str(caught.value.hint)
    assert not own.state
    for layout, factor in (("keller", 1.0), ("moonlight", 0.5)):
        own.import_muon_state(state, layout=layout)
        assert torch.equal(own.state[param]["momentum_buffer.value"], momentum * factor)
    assert own.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    with pytest.raises(ConfigurationError, match="layout='nadam' must be one of 'torch'"):
        own.import_muon_state(state, layout="nadam")


def bad_states() -> dict[str, tuple[dict[str, Any], Tensor | None, str]]:
    good = torch.zeros(24, 40)
    dion: dict[str, Any] = {"lr": 0.1, "mu": 0.9, "algorithm": "muon"}
    return {
        "scale": ({**dion, "adjust_lr": None}, good, "adjust_lr=None, a scale of 'dion'"),
        "momentum": ({**dion, "adjust_lr": "rms_norm"}, None, "the layout 'dion' has 'momentum'"),
        "values": ({**dion, "adjust_lr": "rms_norm"}, good * torch.nan, "NaN or infinite"),
    }


@pytest.mark.parametrize("kind", bad_states())
def test_state_that_is_none_is_refused_and_changes_nothing(kind: str) -> None:
    group, momentum, message = bad_states()[kind]
    param = nn.Parameter(torch.zeros(24, 40))
    own = Muon([param], lr=0.5)
    entries = {"other": torch.zeros(1)} if momentum is None else {"momentum": momentum}
    state = {"state": {0: entries}, "param_groups": [{**group, "params": [0]}]}
    with pytest.raises(ConversionError, match=message):
        own.import_muon_state(state)
    assert own.param_groups[0]["lr"] == 0.5
    assert not own.state


def test_state_of_other_shapes_and_scales_is_refused() -> None:
    param = nn.Parameter(torch.zeros(24, 40))
    own = Muon([param], adjust_lr_fn="spectral", ns_coefficients="polar_express")
    other = Muon([nn.Parameter(torch.zeros(24, 41))], adjust_lr_fn="original")
    other.init_state()
    with pytest.raises(StateMismatchError, match=r"its state has shape \[24, 41\]"):
        own.import_muon_state(other.export_muon_state("keller"))
    own.init_state()
    with pytest.raises(ConversionError, match="adjust_lr_fn='spectral' of a group is none of"):
        own.export_muon_state("torch")
    own.param_groups[0]["adjust_lr_fn"] = "original"
    with pytest.raises(ConversionError, match="has several triples"):
        own.export_muon_state("torch")
