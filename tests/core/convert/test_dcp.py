"""State by name: folders of torch.distributed.checkpoint, and full state dicts like FSDP's."""

import io
import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from luma_core import checkpoint, convert
from luma_core.convert.formats.dcp_metadata import read_metadata
from luma_core.convert.places import LocalFolder
from luma_core.errors import CheckpointExistsError, ConversionError, UnsafePickleError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


class Model(nn.Module):
    """Names with dots, and a parameter with a name like a key of the state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 4))
        self.step = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layers(x) * self.step


def make():
    model = Model()
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.layers.parameters()), "initial_lr": 0.5},
            {"params": [model.step], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    return model, optimizer


def train(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(3, 40, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()


@pytest.fixture
def trained():
    model, optimizer = make()
    train(model, optimizer)
    return model, optimizer


def save(model, optimizer, folder, *, root="optim", flat=False):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = {root: get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.save({**state, "model": model.state_dict()}, checkpoint_id=folder, no_dist=True)


def check_source(source, model, optimizer):
    assert source.named
    want = {name: optimizer.state[param] for name, param in model.named_parameters()}
    assert {info.name for info in source.parameters()} == set(want)
    for name, state in want.items():
        found = source.read(name)
        assert torch.equal(found.exp_avg, state["exp_avg"])
        assert torch.equal(found.exp_avg_sq, state["exp_avg_sq"])
        assert found.info.step == 1
        group = source.groups()[found.info.group]
        assert group["weight_decay"] == (0.0 if name == "step" else 0.01)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("root", ["optim", "optimizer"])
def test_a_folder_is_read(tmp_path, trained, flat, root):
    save(*trained, tmp_path / "d", root=root, flat=flat)
    source = convert.open_source(tmp_path / "d")
    assert source.format == "dcp"
    check_source(source, *trained)
    assert 0 < source.stored_bytes < sum(p.stat().st_size for p in (tmp_path / "d").iterdir())


def test_a_folder_goes_through_luma_and_on_in_torch(tmp_path, trained):
    save(*trained, tmp_path / "d")
    convert.convert(tmp_path / "d", tmp_path / "c", to="luma", codec="fp32")
    report = convert.convert(tmp_path / "c", tmp_path / "back", to="dcp")
    assert report.result_bytes == sum(p.stat().st_size for p in (tmp_path / "back").iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"d", "c", "back"}
    check_source(convert.open_source(tmp_path / "back"), *trained)
    model, optimizer = make()
    train(model, optimizer)
    state = {"optim": get_optimizer_state_dict(model, optimizer)}
    for entry in state["optim"]["state"].values():
        entry["exp_avg"].zero_()
    dcp.load(state, checkpoint_id=tmp_path / "back", no_dist=True)
    set_optimizer_state_dict(model, optimizer, state["optim"])
    for model_, optimizer_ in (trained, (model, optimizer)):
        train(model_, optimizer_)
    for name, param in model.named_parameters():
        assert torch.equal(param, dict(trained[0].named_parameters())[name])
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


@pytest.mark.parametrize("flat", [False, True])
def test_a_full_state_dict_by_name_goes_through_and_on(tmp_path, trained, flat):
    model, optimizer = trained
    options = StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=flat)
    torch.save(get_optimizer_state_dict(model, optimizer, options=options), tmp_path / "a.pt")
    check_source(convert.open_source(tmp_path / "a.pt"), *trained)
    convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma", codec="fp32")
    convert.convert(tmp_path / "c", tmp_path / "b.pt", to="fsdp")
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    other, fresh = make()
    set_optimizer_state_dict(other, fresh, content, options=StateDictOptions(full_state_dict=True))
    for name, param in other.named_parameters():
        want = optimizer.state[dict(model.named_parameters())[name]]
        assert torch.equal(fresh.state[param]["exp_avg"], want["exp_avg"])
        assert float(fresh.state[param]["step"]) == 1


def test_a_state_in_pieces_is_put_together(tmp_path, trained):
    """Pieces as sharded training leaves them, made by splitting one tensor's item in two."""
    save(*trained, tmp_path / "d")
    key = "optim.state.layers.0.weight.exp_avg"
    metadata = read_metadata(LocalFolder(tmp_path / "d"))
    whole = trained[1].state[trained[0].layers[0].weight]["exp_avg"]
    index = next(index for index in metadata.storage_data if index.fqn == key)
    info = metadata.storage_data.pop(index)
    chunks = []
    for rank, (start, stop) in enumerate(((0, 3), (3, 8))):
        content = io.BytesIO()
        torch.save(whole[start:stop].clone(), content)
        name = f"__{rank + 1}_0.distcp"
        (tmp_path / "d" / name).write_bytes(content.getvalue())
        offsets = torch.Size([start, 0])
        part = type(info)(name, 0, len(content.getvalue()))
        metadata.storage_data[MetadataIndex(key, offsets)] = part
        chunks.append(ChunkStorageMetadata(offsets, torch.Size([stop - start, 40])))
    metadata.state_dict_metadata[key].chunks = chunks
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps(metadata))
    check_source(convert.open_source(tmp_path / "d"), *trained)
    metadata.state_dict_metadata[key].chunks = chunks[:1]
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConversionError, match="not there in whole"):
        convert.open_source(tmp_path / "d").read("layers.0.weight")


def test_states_without_names_cannot_be_kept_by_name(tmp_path):
    model, optimizer = make()
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    for to in ("dcp", "fsdp"):
        with pytest.raises(ConversionError, match="the source has no names"):
            convert.convert(tmp_path / "a.pt", tmp_path / "b", to=to)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ConversionError, match="cannot be told from shapes"):
        convert.convert(tmp_path / "a.pt", tmp_path / "b", to="dcp", model=tmp_path / "model.pt")
    assert not (tmp_path / "b").exists()


def test_folders_are_replaced_only_when_told_and_only_their_own_kind(tmp_path, trained):
    save(*trained, tmp_path / "d")
    convert.convert(tmp_path / "d", tmp_path / "c", to="luma")
    with pytest.raises(CheckpointExistsError, match="there already"):
        convert.convert(tmp_path / "c", tmp_path / "d", to="dcp")
    convert.convert(tmp_path / "c", tmp_path / "d", to="dcp", overwrite=True)
    assert convert.open_source(tmp_path / "d").named
    (tmp_path / "d" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointExistsError, match="other files"):
        convert.convert(tmp_path / "c", tmp_path / "d", to="dcp", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"c", "d"}
    assert checkpoint.verify(tmp_path / "c").ok


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_metadata_that_would_run_code_is_refused_and_runs_none(tmp_path, trained):
    save(*trained, tmp_path / "d")
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(UnsafePickleError, match=r"needs posix\.mkdir"):
        convert.open_source(tmp_path / "d")
    assert not (tmp_path / "ran").exists()


def test_values_that_would_run_code_are_refused_and_run_none(tmp_path, trained):
    state = {"optim": {"state": {}, "param_groups": [{"lr": Runs(tmp_path / "ran"), "params": []}]}}
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path / "d"), no_dist=True)
    with pytest.raises(ConversionError, match="would run code"):
        convert.open_source(tmp_path / "d")
    assert not (tmp_path / "ran").exists()


def test_damaged_folders_are_refused(tmp_path, trained):
    save(*trained, tmp_path / "d")
    metadata = tmp_path / "d" / ".metadata"
    content = metadata.read_bytes()
    for keep in range(0, len(content), 211):
        metadata.write_bytes(content[:keep])
        with pytest.raises(ConversionError):
            convert.open_source(tmp_path / "d")
    metadata.write_bytes(content)
    (tmp_path / "d" / "__0_0.distcp").write_bytes(b"short")
    with pytest.raises(ConversionError, match="damaged"):
        convert.open_source(tmp_path / "d")
    dcp.save({"model": trained[0].state_dict()}, checkpoint_id=tmp_path / "m", no_dist=True)
    with pytest.raises(ConversionError, match="state of 0 optimizers"):
        convert.open_source(tmp_path / "m")


def test_file_names_cannot_leave_the_folder(tmp_path, trained):
    save(*trained, tmp_path / "d")
    found = read_metadata(LocalFolder(tmp_path / "d"))
    for info in found.storage_data.values():
        object.__setattr__(info, "relative_path", "../secret")
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(ConversionError, match="not the name of a file"):
        convert.open_source(tmp_path / "d")
