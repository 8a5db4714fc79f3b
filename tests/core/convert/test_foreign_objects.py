"""What training programs save beside the state: left out, named, or refused, and never run."""

import argparse
import builtins
import collections
import datetime
import enum
import os
import pathlib
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from luma_core import convert
from luma_core.errors import ConversionError, UnsafePickleError


class Settings(dict):
    """A dict with attributes, as many programs keep their settings."""


class Values(list):
    pass


class Mode(enum.Enum):
    FAST = 1


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 3


class Calls:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def state_dict(**options):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    made = torch.optim.AdamW(model.named_parameters(), **options)
    model(torch.randn(4, 5)).sum().backward()
    made.step()
    return made.state_dict()


def _settings():
    made = Settings(lr=1, nested=Settings(x=[1]))
    made.__dict__["attribute"] = 2
    return made


OBJECTS = {
    "namespace": argparse.Namespace(lr=1, inner=argparse.Namespace(x=2)),
    "dict": _settings(),
    "list": Values([1, Slots()]),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "enum": Mode.FAST,
    "path": pathlib.Path("x"),
    "date": datetime.datetime(2026, 1, 1),
    "array": np.arange(3),
    "generator": np.random.default_rng(0),
    "scalar": np.float64(0.5),
    "text": np.str_("x"),
    "module": nn.Linear(2, 2),
    "error": ValueError("x"),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_state_do_not_stand_in_the_way(tmp_path, kind, legacy):
    if legacy and kind == "module":
        pytest.skip("torch kept modules with their source then")
    content = {"args": OBJECTS[kind], "optimizer": state_dict(), "again": [OBJECTS[kind]]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    source = convert.open_source(tmp_path / "a.pt")
    want = content["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(source.read("weight").exp_avg, want)


@pytest.mark.parametrize(
    "number", [np.float64(3e-4), np.float32(0.5), np.int64(1), np.array(0.25, ">f8")[()]]
)
def test_numpy_numbers_are_read_as_numbers(tmp_path, number):
    content = state_dict()
    content["param_groups"][0]["lr"] = number
    torch.save({"optimizer": content}, tmp_path / "a.pt")
    lr = convert.open_source(tmp_path / "a.pt").groups()[0]["lr"]
    assert type(lr) in (int, float)
    assert lr == number.item()


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_numpy_numbers_are_read_from_dcp_folders(tmp_path):
    from torch.distributed.checkpoint import save

    content = state_dict()
    names = content["param_groups"][0].pop("param_names")
    content["param_groups"][0].update(params=names, lr=np.float64(3e-4))
    content["state"] = dict(zip(names, content["state"].values(), strict=True))
    save({"optim": content}, checkpoint_id=tmp_path / "d", no_dist=True)
    assert convert.open_source(tmp_path / "d").groups()[0]["lr"] == 3e-4


def test_an_object_in_the_state_itself_is_named(tmp_path):
    content = state_dict()
    content["param_groups"][0]["note"] = argparse.Namespace(x=1)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match=r"\['note'\] is <argparse.Namespace>"):
        convert.open_source(tmp_path / "a.pt")
    content = state_dict()
    content["state"][0]["exp_avg"] = np.ones((3, 5))
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match="'weight': exp_avg is _reconstruct"):
        convert.open_source(tmp_path / "a.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (open, ("ran", "w"), r"io\.open"),
        (builtins.eval, ("open('ran', 'w')",), r"builtins\.eval"),
        (os.system, ("touch ran",), ""),
        (subprocess.check_call, (["touch", "ran"],), r"subprocess\.check_call"),
        (pathlib.Path.touch, (pathlib.Path("ran"),), ""),
    ],
)
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    tmp_path, monkeypatch, function, arguments, named, legacy
):
    monkeypatch.chdir(tmp_path)
    content = {**state_dict(), "x": Calls(function, *arguments)}
    torch.save(content, "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafePickleError, match=f"would run code .*{named}"):
        convert.open_source("a.pt")
    assert not pathlib.Path("ran").exists()


def test_functions_of_other_packages_are_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"optimizer": state_dict(), "x": Calls(torch.save, 1, "ran")}, "a.pt")
    assert convert.open_source("a.pt").named
    assert not pathlib.Path("ran").exists()


def test_a_copy_is_not_made_of_a_file_whose_objects_it_would_lack(tmp_path):
    mark = {"pytorch-lightning_version": "2", "state_dict": {}, "optimizer_states": [state_dict()]}
    original = tmp_path / "a.ckpt"
    torch.save({**mark, "hyper_parameters": argparse.Namespace(lr=1)}, original)
    assert convert.open_source(original).format == "lightning"
    with pytest.raises(UnsafePickleError, match=r"objects of 'argparse\.Namespace', which a copy"):
        convert.convert(original, tmp_path / "b.ckpt", to="lightning", model=original)
    assert not (tmp_path / "b.ckpt").exists()
