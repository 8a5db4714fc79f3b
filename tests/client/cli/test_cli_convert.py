"""``luma convert`` with codecs, names and other tools' formats."""

import json
from typing import get_args, get_type_hints

import pytest
import torch
import typer
from torch import nn

from luma_client.cli import convert as command
from luma_core import checkpoint, convert


@pytest.fixture
def state(tmp_path):
    model = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 256)).square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return tmp_path


def test_a_codec_is_asked_for_and_its_errors_are_told(luma, state):
    arguments = ["convert", state / "a.pt", state / "c", "--to", "luma", "--codec", "turbo"]
    code, out, _ = luma(*arguments)
    assert code == 0
    assert "error of exp_avg_sq" in out
    assert "error of the update" in out
    assert "changed by more than a tenth" in out
    code, out, _ = luma(*arguments, "--overwrite", "--json")
    found = json.loads(out)
    assert checkpoint.open(state / "c").algorithm == "turbo_adam"
    assert found["result_bytes"] < 0.2 * found["source_bytes"]
    assert 0 < found["errors"]["exp_avg"]["relative_rms"] < 1
    assert 0 < found["update"]["changed"] < found["update"]["elements"] == found["elements"]
    _, _, err = luma(*arguments)
    assert "--to luma --codec turbo --overwrite" in err


def test_a_model_gives_names_for_a_format_that_needs_them(luma, state):
    arguments = ["convert", state / "a.pt", state / "d", "--to", "dcp"]
    code, _, err = luma(*arguments)
    assert (code, "--model" in err) == (6, True)
    code, out, _ = luma(*arguments, "--model", state / "model.pt")
    assert code == 0
    assert "error of" not in out
    code, out, _ = luma("inspect", state / "d", "--json")
    assert (code, json.loads(out)["format"]) == (0, "dcp")


def test_every_format_and_codec_that_can_be_written_can_be_asked_for():
    hints = get_type_hints(command.command, include_extras=True)
    parse = get_args(hints["to"])[1].parser
    for name in convert.target_names():
        assert parse(name) == name
    with pytest.raises(typer.BadParameter, match="'deepspeed' is not one of 'adamw', 'dcp'"):
        parse("deepspeed")
    hints = get_type_hints(command.command)
    for name in convert.codec_choices():
        assert name in get_args(hints["codec"])


def test_a_command_within_a_training_process_waits_for_no_other(luma, state, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "r"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    code, _, _ = luma("convert", state / "a.pt", state / "c", "--to", "luma")
    assert code == 0
    assert checkpoint.verify(state / "c").ok
