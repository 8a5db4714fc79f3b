"""Saved objects with odd values anywhere in them: read, or refused by an error of ours."""

import itertools
import random
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from luma_core import convert
from luma_core.errors import LumaError
from tests.fuzz import mutations

ODD = mutations.odd_objects()
EXAMPLES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def adamw_state(named=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3))
    params = model.named_parameters() if named else model.parameters()
    adamw = torch.optim.AdamW(params)
    model(torch.randn(4, 5)).square().sum().backward()
    adamw.step()
    return adamw.state_dict()


def flat_state():
    state = adamw_state()
    names = state["param_groups"][0].pop("param_names")
    found = {}
    for index, name in enumerate(names):
        for key, value in state["state"][index].items():
            found[f"state.{name}.{key}"] = value
        for key, value in state["param_groups"][0].items():
            if key != "params":
                found[f"param_groups.{name}.{key}"] = value
    return found


def bitsandbytes_state():
    state = adamw_state()
    for entry in state["state"].values():
        shape = entry.pop("exp_avg").shape
        entry.pop("exp_avg_sq")
        entry["step"] = 1
        for index in (1, 2):
            entry[f"state{index}"] = torch.zeros(shape, dtype=torch.uint8)
            entry[f"qmap{index}"] = torch.linspace(0, 1, 256)
            entry[f"absmax{index}"] = torch.ones(1)
    return state


def flashoptim_state():
    state = adamw_state()
    for entry in state["state"].values():
        shape = entry.pop("exp_avg").shape
        entry.pop("exp_avg_sq")
        for moment, dtype in (("exp_avg", torch.int8), ("exp_avg_sq", torch.uint8)):
            entry[f"{moment}::quantized"] = torch.zeros(shape, dtype=dtype)
            entry[f"{moment}::scales"] = torch.ones(1, dtype=torch.float16)
    return state


KINDS = {
    "adamw": adamw_state,
    "counted": lambda: {"optimizer": adamw_state(named=False)},
    "lightning": lambda: {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {"w": torch.zeros(3, 5)},
        "optimizer_states": [adamw_state(named=False)],
    },
    "flat": flat_state,
    "bitsandbytes": bitsandbytes_state,
    "flashoptim": flashoptim_state,
}


def survives(path):
    """Read all that the file gives; only errors of ours may come out."""
    try:
        source = convert.open_source(path)
        for info in source.parameters():
            found = source.read(info.name)
            assert tuple(found.exp_avg.shape) == tuple(found.exp_avg_sq.shape) == info.shape
    except LumaError:
        return False
    return True


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", KINDS)
def test_every_odd_value_at_every_place(tmp_path, kind):
    content = KINDS[kind]()
    path = tmp_path / ("a.ckpt" if kind == "lightning" else "a.pt")
    torch.save(content, path)
    assert survives(path)
    places = [*mutations.paths(content)]
    chosen = random.Random(0).sample([*itertools.product(places, ODD)], 250)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, odd in [*chosen, *(((), odd) for odd in ODD)]:
            torch.save(mutations.replaced(content, place, odd), path)
            survives(path)
        for place in places:
            torch.save(mutations.without(content, place), path)
            survives(path)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(seed=st.integers(0, 2**32))
def test_changed_bytes_of_a_file(tmp_path, kind, seed):
    path = tmp_path / ("a.ckpt" if kind == "lightning" else "a.pt")
    original = tmp_path / "original"
    if not original.exists():
        torch.save(KINDS[kind](), original)
    path.write_bytes(mutations.changed_bytes(original.read_bytes(), random.Random(seed)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(path)
