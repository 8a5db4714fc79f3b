"""Folders of several files with damage anywhere: read, or refused by an error of ours."""

import copy
import dataclasses
import io
import pickle
import random
import shutil
import sys
import types
import warnings
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luma_core import convert
from luma_core.convert.formats.dcp_metadata import read_metadata
from luma_core.convert.places import LocalFolder
from tests.fuzz import mutations
from tests.fuzz.test_objects import ODD, adamw_state, survives

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def make_dcp(folder):
    state = adamw_state()
    names = state["param_groups"][0].pop("param_names")
    state["state"] = {name: state["state"][i] for i, name in enumerate(names)}
    state["param_groups"][0]["params"] = names
    dcp.save({"optim": state}, checkpoint_id=folder / "made", no_dist=True)
    return folder / "made"


def make_universal(folder):
    torch.save(adamw_state(), folder / "a.pt")
    shapes = {"0.weight": (3, 5), "0.bias": (3,), "1.weight": (3, 3), "1.bias": (3,)}
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "w.pt")
    to, model = "deepspeed-universal", folder / "w.pt"
    convert.convert(folder / "a.pt", folder / "made", to=to, model=model)
    return folder / "made"


@dataclasses.dataclass
class Address:
    numel: int
    start: int


Address.__module__ = "deepspeed.utils.tensor_fragment"
Address.__qualname__ = "fragment_address"


def _stub_of_deepspeed():
    """Modules in which pickle finds `Address` where it says that it is."""
    names = ("deepspeed", "deepspeed.utils", "deepspeed.utils.tensor_fragment")
    stubs = {name: types.ModuleType(name) for name in names}
    stubs[names[-1]].fragment_address = Address
    return stubs


def make_zero(folder):
    """Shards as ZeRO-2 lays them out; DeepSpeed's own are read in the conversion tests."""
    made = folder / "made"
    made.mkdir()
    shapes = {"a": torch.Size([3, 5]), "b": torch.Size([4])}
    torch.save({"param_shapes": [shapes]}, made / "mp_rank_00_model_states.pt")
    for rank in range(2):
        where = {"a": Address(5, 0), "b": Address(4, 5)} if rank else {"a": Address(10, 0)}
        flat = {"step": torch.tensor(1.0), "exp_avg": torch.ones(10), "exp_avg_sq": torch.ones(10)}
        group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
        state = {
            "base_optimizer_state": {"state": {0: flat}, "param_groups": [group]},
            "param_slice_mappings": [where],
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        with mock.patch.dict(sys.modules, _stub_of_deepspeed()):
            torch.save({"optimizer_state_dict": state}, made / name)
    return made


MAKERS = {"dcp": make_dcp, "universal": make_universal, "zero": make_zero}


@pytest.fixture(scope="module", params=MAKERS)
def original(request, tmp_path_factory):
    made = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    assert survives(made)
    return made


@pytest.mark.usefixtures("little_memory")
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_changed_bytes_of_a_file(tmp_path, original, seed):
    rng = random.Random(seed)
    copied = tmp_path / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(original, copied)
    path = rng.choice(sorted(path for path in copied.rglob("*") if path.is_file()))
    path.write_bytes(mutations.changed_bytes(path.read_bytes(), rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(copied)


@pytest.mark.usefixtures("little_memory")
def test_odd_values_in_the_files(tmp_path, original):
    files = sorted(path for path in original.rglob("*.pt") if path.is_file())
    address = (Address, f"{Address.__module__}.{Address.__qualname__}")
    with torch.serialization.safe_globals([address]):
        contents = {path: torch.load(path, weights_only=True) for path in files}
    places = [
        (path, place)
        for path, content in contents.items()
        for place in [(), *(mutations.paths(content) if isinstance(content, dict) else ())]
    ]
    rng = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, place in rng.choices(places, k=80) if places else ():
            copied = tmp_path / "copy"
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(original, copied)
            changed = mutations.replaced(contents[path], place, rng.choice(ODD))
            with mock.patch.dict(sys.modules, _stub_of_deepspeed()):
                torch.save(changed, copied / path.relative_to(original))
            survives(copied)


def metadata_changes(metadata):
    """Yield functions that replace one field of a copy of DCP metadata."""

    def field_of(name, index, field):
        return lambda copied, odd: object.__setattr__(
            list(getattr(copied, name).values())[index], field, odd
        )

    def item_of(name, key):
        return lambda copied, odd: getattr(copied, name).__setitem__(key, odd)

    for name in ("state_dict_metadata", "planner_data", "storage_data"):
        yield lambda copied, odd, name=name: setattr(copied, name, odd)
        for index, (key, value) in enumerate(getattr(metadata, name).items()):
            yield item_of(name, key)
            for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
                yield field_of(name, index, field.name)


@pytest.mark.usefixtures("little_memory")
def test_every_odd_value_in_the_metadata_of_dcp(tmp_path):
    made = make_dcp(tmp_path)
    metadata = read_metadata(LocalFolder(made))
    changes = list(metadata_changes(metadata))
    rng = random.Random(0)
    for odd in (torch.Size([1 << 40]), torch.Size([-1]), 1 << 62, -5, {"a": 1}, [(1,)], "x", None):
        for change in rng.sample(changes, 30):
            changed = copy.deepcopy(metadata)
            change(changed, odd)
            out = io.BytesIO()
            pickle.dump(changed, out)
            (made / ".metadata").write_bytes(out.getvalue())
            survives(made)
