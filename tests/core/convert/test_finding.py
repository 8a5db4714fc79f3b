"""Which optimizer's state is meant in a file of several, and where it is found."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import convert
from luma_core.errors import CheckpointNotFoundError, ConversionError


def state_dict(size):
    param = nn.Parameter(torch.ones(size))
    optimizer = torch.optim.AdamW([("w", param)])
    param.grad = torch.ones(size)
    optimizer.step()
    return optimizer.state_dict()


LIGHTNING = {"pytorch-lightning_version": "2", "state_dict": {}}


@pytest.mark.parametrize(
    "nest",
    [
        lambda sd: {"opt": sd},
        lambda sd: {"optimizers": [sd], "scheduler": {"last_epoch": 3}},
        lambda sd: {"optimizers": {"fields": sd}, "scaler": {"scale": 2.0}},
        lambda sd: {"optimizer": {"optimizer_state_dict": sd, "fp32_from_fp16": [[torch.ones(1)]]}},
        lambda sd: ((3, torch.ones(2), sd, 1.0), 7000),
        lambda sd: {"training": {"run": {"optim_state": sd}}, "ema": {"w": torch.ones(2)}},
    ],
)
def test_the_only_state_is_found_wherever_it_is(tmp_path, nest):
    torch.save(nest(state_dict(2)), tmp_path / "a.pt")
    assert convert.open_source(tmp_path / "a.pt").parameters()[0].shape == (2,)


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.ckpt", lambda a, b: {**LIGHTNING, "optimizer_states": [a, b]}, "optimizer_states.{}"),
        ("a.pt", lambda a, b: {"optimizers": {0: a, 1: b}}, "optimizers.{}"),
        ("a.pt", lambda a, b: [[a], {"1": b}], "{0}.{0}"),
    ],
)
def test_one_of_several_is_chosen_behind_the_path(tmp_path, name, content, places):
    torch.save(content(state_dict(2), state_dict(3)), tmp_path / name)
    places = [places.format(index) for index in (0, 1)]
    if places[0] == "0.0":
        places[1] = "1.1"
    said = f"holds the state of 2 optimizers: {places[0]!r}, {places[1]!r}."
    with pytest.raises(ConversionError, match=re.escape(said)) as raised:
        convert.open_source(tmp_path / name)
    assert f"{name}#{places[0]}'" in raised.value.hint
    for index, size in enumerate((2, 3)):
        for choice in (index, places[index]):
            source = convert.open_source(f"{tmp_path / name}#{choice}")
            assert source.parameters()[0].shape == (size,)
    for wrong in ("2", "x", "optimizer"):
        with pytest.raises(ConversionError, match=f"no optimizer state dict at {wrong!r}"):
            convert.open_source(f"{tmp_path / name}#{wrong}")


def test_one_state_that_lies_there_twice_is_two(tmp_path):
    same = state_dict(2)
    torch.save({"optimizers": [same, same]}, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match="2 optimizers"):
        convert.open_source(tmp_path / "a.pt")


def test_a_name_with_the_mark_in_it_is_a_name(tmp_path):
    torch.save(state_dict(2), tmp_path / "a#1.pt")
    assert convert.open_source(tmp_path / "a#1.pt").parameters()
    convert.convert(tmp_path / "a#1.pt", tmp_path / "b#2.pt", to="adamw")
    assert Path(tmp_path / "b#2.pt").exists()
    with pytest.raises(CheckpointNotFoundError):
        convert.open_source(tmp_path / "missing.pt#1")


def test_the_chosen_state_is_replaced_in_a_copy(tmp_path):
    content = {**LIGHTNING, "optimizer_states": [state_dict(2), state_dict(3)]}
    torch.save(content, tmp_path / "a.ckpt")
    new = state_dict(3)
    new["state"][0]["step"] = torch.tensor(9.0)
    torch.save(new, tmp_path / "new.pt")
    with pytest.raises(ConversionError, match="2 optimizers"):
        convert.convert(
            tmp_path / "new.pt", tmp_path / "b.ckpt", to="lightning", model=tmp_path / "a.ckpt"
        )
    chosen = f"{tmp_path / 'a.ckpt'}#1"
    convert.convert(tmp_path / "new.pt", tmp_path / "b.ckpt", to="lightning", model=chosen)
    states = torch.load(tmp_path / "b.ckpt", weights_only=True)["optimizer_states"]
    assert [int(state["state"][0]["step"]) for state in states] == [1, 9]


def test_content_that_holds_itself_ends(tmp_path):
    content = {"a": [state_dict(2)]}
    content["self"] = content
    torch.save(content, tmp_path / "a.pt")
    assert convert.open_source(tmp_path / "a.pt").parameters()[0].shape == (2,)
