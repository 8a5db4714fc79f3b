"""Files of torch.save: what is read, and how others are refused."""

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from luma_core import convert
from luma_core.errors import CheckpointNotFoundError, ConversionError, UnsafePickleError


def state_dict(named=True, optimizer=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    params = model.named_parameters() if named else model.parameters()
    made = optimizer(params, **options)
    model(torch.randn(4, 5)).sum().backward()
    made.step()
    return made.state_dict()


@pytest.mark.parametrize(
    "nest",
    [
        lambda sd: sd,
        lambda sd: {"optimizer": sd, "model": OrderedDict(a=torch.ones(1)), "epoch": 3},
        lambda sd: {"optimizer_state_dict": sd},
        lambda sd: {"optimizer_states": [sd]},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_is_found_where_training_programs_put_it(tmp_path, nest, legacy):
    original = state_dict()
    torch.save(nest(original), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    source = convert.open_source(tmp_path / "a.pt")
    assert source.named
    assert [info.name for info in source.parameters()] == ["weight", "bias"]
    assert source.parameters()[0].shape == (3, 5)
    assert source.parameters()[0].step == 1
    assert torch.equal(source.read("bias").exp_avg_sq, original["state"][1]["exp_avg_sq"])


def test_parameters_without_names_are_counted_and_string_keys_are_names(tmp_path):
    torch.save(state_dict(named=False), tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert not source.named
    assert [info.name for info in source.parameters()] == ["param.0", "param.1"]
    content = state_dict(named=False)
    content["state"] = {"w": content["state"][0], "b": content["state"][1]}
    content["param_groups"][0]["params"] = ["w", "b"]
    torch.save(content, tmp_path / "b.pt")
    source = convert.open_source(tmp_path / "b.pt")
    assert source.named
    assert [info.name for info in source.parameters()] == ["w", "b"]


def test_capturable_steps_tensor_rates_and_half_moments_are_read(tmp_path):
    content = state_dict(lr=torch.tensor(0.5))
    content["state"][0]["step"] = 7
    for moment in ("exp_avg", "exp_avg_sq"):
        content["state"][1][moment] = content["state"][1][moment].bfloat16()
    torch.save(content, tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert [info.step for info in source.parameters()] == [7, 1]
    assert source.parameters()[1].dtype == "bfloat16"
    assert source.read("bias").exp_avg.dtype == torch.float32
    assert source.groups()[0]["lr"] == 0.5


def test_pickle_protocols_are_read_or_refused_without_a_warning(tmp_path):
    """Warnings are errors here, so a warning of torch's would end the test."""
    for protocol in (2, 3):
        torch.save(state_dict(), tmp_path / f"{protocol}.pt", pickle_protocol=protocol)
        assert len(convert.open_source(tmp_path / f"{protocol}.pt").parameters()) == 2
    for protocol in (4, 5):
        torch.save(state_dict(), tmp_path / f"{protocol}.pt", pickle_protocol=protocol)
        with pytest.raises(UnsafePickleError, match="pickle_protocol"):
            convert.open_source(tmp_path / f"{protocol}.pt")


def _state(content, **changes):
    content["state"][0].update(changes)


def _group(content, **changes):
    content["param_groups"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("state"), "no optimizer state dict"),
        (lambda c: c.update(param_groups={}), "no optimizer state dict"),
        (lambda c: c["param_groups"].append(3), "param_groups[1] must be a dict"),
        (lambda c: _group(c, params=[[0], 1]), "param_groups[0] must be a dict"),
        (lambda c: _group(c, param_names=["a"]), "one string for each"),
        (lambda c: _group(c, param_names=["a", "a"]), "'a' is used twice"),
        (lambda c: c["param_groups"][0].pop("eps"), "has no 'eps'"),
        (lambda c: _group(c, betas=(0.9, 1.5)), "betas="),
        (lambda c: _group(c, lr=float("nan")), "['lr'] is nan"),
        (lambda c: _group(c, other=torch.ones(3)), "['other'] is tensor"),
        (lambda c: _group(c, decoupled_weight_decay=False), "Adam with weight_decay=0.01"),
        (lambda c: _group(c, amsgrad=True), "amsgrad"),
        (lambda c: _group(c, params=[0, 7]), "'bias' has no state"),
        (lambda c: c["state"].update({5: {}}), "state for 5, which no parameter group lists"),
        (lambda c: c["state"].update({0: 1}), "the state is a int"),
        (lambda c: c["state"][0].pop("exp_avg"), "'weight' has 'exp_avg_sq', 'step'; AdamW's"),
        (lambda c: _state(c, momentum=torch.ones(1)), "'momentum'"),
        (lambda c: _state(c, max_exp_avg_sq=torch.ones(3, 5)), "amsgrad's running maximum"),
        (lambda c: _state(c, exp_avg=torch.ones(3, 4)), "exp_avg has shape [3, 4], exp_avg_sq"),
        (lambda c: _state(c, exp_avg=[1.0]), "exp_avg is list"),
        (lambda c: _state(c, exp_avg=torch.ones(3, 5).int()), "exp_avg is torch.int32"),
        (lambda c: _state(c, exp_avg_sq=torch.ones(3, 5).to_sparse()), "exp_avg_sq is torch.float"),
        (lambda c: _state(c, step="1"), "step is '1'"),
        (lambda c: _state(c, step=torch.ones(2)), "step is tensor"),
        (lambda c: _state(c, step=torch.tensor(-1.0)), "step is -1.0"),
        (lambda c: _state(c, step=torch.tensor(1.5)), "step is 1.5"),
        (lambda c: _state(c, step=torch.tensor(float("inf"))), "step is inf"),
        (lambda c: _state(c, step=float("nan")), "step is nan"),
        (lambda c: _state(c, step=2**63), "below 2**63"),
    ],
)
def test_state_that_is_not_adamws_is_refused_by_place(tmp_path, change, said):
    content = state_dict()
    change(content)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(Exception, match=re.escape(said)) as raised:
        convert.open_source(tmp_path / "a.pt")
    assert type(raised.value) is ConversionError
    assert str(tmp_path / "a.pt") in str(raised.value)


@pytest.mark.parametrize(
    ("moment", "value", "said"),
    [
        ("exp_avg", float("nan"), "exp_avg holds 1 values that are NaN or infinite"),
        ("exp_avg_sq", float("inf"), "exp_avg_sq holds 1 values that are NaN or infinite"),
        ("exp_avg_sq", -1.0, "exp_avg_sq holds 1 negative values"),
    ],
)
def test_moments_that_adamw_cannot_have_are_refused_when_read(tmp_path, moment, value, said):
    content = state_dict()
    content["state"][0][moment][0, 0] = value
    torch.save(content, tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    source.read("bias")
    with pytest.raises(ConversionError, match=re.escape(f"'weight': {said}")):
        source.read("weight")
    with pytest.raises(ConversionError, match="'weight'"):
        convert.convert(tmp_path / "a.pt", tmp_path / "b.pt", to="adamw")
    assert not (tmp_path / "b.pt").exists()


def test_moments_that_take_no_room_in_the_file_take_none_in_memory(tmp_path):
    content = state_dict()
    for moment in ("exp_avg", "exp_avg_sq"):
        content["state"][0][moment] = torch.zeros(1, 1).expand(1 << 25, 1 << 25)
    torch.save(content, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    with pytest.raises(ConversionError, match=r"'weight': a tensor of shape .* repeats its values"):
        convert.open_source(tmp_path / "a.pt")


def test_a_step_that_only_the_group_has_is_that_of_its_parameters(tmp_path):
    """As apex' FusedAdam keeps it."""
    content = state_dict()
    for entry in content["state"].values():
        del entry["step"]
    _group(content, step=7, bias_correction=True)
    torch.save(content, tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert [info.step for info in source.parameters()] == [7, 7]
    assert "step" not in source.groups()[0]


def test_adam_without_weight_decay_is_the_same_as_adamw(tmp_path):
    torch.save(state_dict(optimizer=torch.optim.Adam), tmp_path / "a.pt")
    assert len(convert.open_source(tmp_path / "a.pt").parameters()) == 2


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + b"\0" * 99, b"text", b"\x80\x02."])
def test_files_that_torch_did_not_save_are_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ConversionError, match=r"not a file of torch\.save"):
        convert.open_source(tmp_path / "a.pt")


def test_cut_files_are_refused(tmp_path):
    torch.save(state_dict(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for keep in range(0, len(content), 97):
        (tmp_path / "a.pt").write_bytes(content[:keep])
        with pytest.raises(ConversionError):
            convert.open_source(tmp_path / "a.pt")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        convert.open_source(tmp_path / "a.pt", format="adamw")
