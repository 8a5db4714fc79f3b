"""Foreign formats at fsspec URLs: read and written as local ones are."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from luma_core import checkpoint, convert
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConversionError,
    StorageError,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture
def memory():
    """The root of a store in memory that is empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield "memory://bucket/runs"
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def trained(tmp_path):
    """A model, its optimizer, and files of both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(3, 40)).square().sum().backward()
    adamw.step()
    options = StateDictOptions(full_state_dict=True)
    torch.save(get_optimizer_state_dict(model, adamw, options=options), tmp_path / "named.pt")
    torch.save(adamw.state_dict(), tmp_path / "counted.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return model, adamw


def put(path, url):
    fs, target = fsspec.url_to_fs(url)
    fs.makedirs(target.rpartition("/")[0], exist_ok=True)
    fs.put_file(str(path), target)


def same_state(source, trained):
    model, adamw = trained
    assert {info.name for info in source.parameters()} == {n for n, _ in model.named_parameters()}
    for name, param in model.named_parameters():
        found = source.read(name)
        for moment in MOMENTS:
            assert torch.equal(getattr(found, moment), adamw.state[param][moment])


TARGETS = [
    ("adamw", "a.pt"),
    ("fsdp", "deeper/a.pt"),
    ("dcp", "dcp"),
    ("deepspeed-universal", "ds/step1"),
    ("luma", "luma"),
]


def goes_there_and_back(root, local, to, name):
    model = str(local / "weights.pt") if to == "deepspeed-universal" else None
    report = convert.convert(local / "named.pt", f"{root}/{name}", to=to, model=model, codec="fp32")
    fs, path = fsspec.url_to_fs(root)
    stored = {file: fs.size(file) for file in fs.find(path)}
    want = sum(size for file, size in stored.items() if not file.endswith("luma.json"))
    assert report.result_bytes == want
    source = convert.open_source(f"{root}/{name}")
    assert source.format == {"fsdp": "adamw"}.get(to, to)
    assert 0 < source.stored_bytes <= want
    return source, stored


@pytest.mark.parametrize(("to", "name"), TARGETS)
def test_state_goes_to_a_url_and_comes_back(tmp_path, memory, trained, to, name):
    source, _ = goes_there_and_back(memory, tmp_path, to, name)
    same_state(source, trained)


@pytest.mark.parametrize(("to", "name"), TARGETS)
def test_nothing_is_replaced_unasked_and_all_of_it_when_asked(tmp_path, memory, trained, to, name):
    _, stored = goes_there_and_back(memory, tmp_path, to, name)
    model = tmp_path / "weights.pt" if to == "deepspeed-universal" else None
    fs, path = fsspec.url_to_fs(memory)
    with pytest.raises(CheckpointExistsError):
        convert.convert(tmp_path / "named.pt", f"{memory}/{name}", to=to, model=model)
    assert {file: fs.size(file) for file in fs.find(path)} == stored
    convert.convert(
        tmp_path / "named.pt", f"{memory}/{name}", to=to, model=model, overwrite=True, codec="fp32"
    )
    same_state(convert.open_source(f"{memory}/{name}"), trained)
    if to in ("dcp", "deepspeed-universal"):
        fs.pipe_file(f"{path}/{name}/mine.txt", b"mine")
        with pytest.raises(CheckpointExistsError, match="other files"):
            convert.convert(
                tmp_path / "named.pt", f"{memory}/{name}", to=to, model=model, overwrite=True
            )


def test_a_file_does_not_replace_a_folder_and_none_is_made_of_nothing(tmp_path, memory, trained):
    put(tmp_path / "counted.pt", f"{memory}/folder/a.pt")
    with pytest.raises(CheckpointExistsError, match="is a folder"):
        convert.convert(tmp_path / "counted.pt", f"{memory}/folder", to="adamw", overwrite=True)
    with pytest.raises(CheckpointNotFoundError, match="no optimizer state here"):
        convert.open_source(f"{memory}/nothing")


@pytest.mark.parametrize("kind", ["safetensors", "index", "torch", "folder"])
def test_names_come_from_a_model_at_a_url(tmp_path, memory, trained, kind):
    model, _ = trained
    weights = {name: param.detach().clone() for name, param in model.named_parameters()}
    put(tmp_path / "counted.pt", f"{memory}/counted.pt")
    # Three parameters of one shape differ in more than a number, so shapes do not tell them.
    last = "2.bias"
    if kind in ("safetensors", "folder"):
        save_file({key: x for key, x in weights.items() if key != last}, tmp_path / "m.safetensors")
        put(tmp_path / "m.safetensors", f"{memory}/m/model.safetensors")
        url = f"{memory}/m" + ("/model.safetensors" if kind == "safetensors" else "")
    elif kind == "index":
        save_file(weights, tmp_path / "m.safetensors")
        put(tmp_path / "m.safetensors", f"{memory}/m/part.safetensors")
        index = {"weight_map": dict.fromkeys(weights, "part.safetensors")}
        (tmp_path / "i.json").write_text(json.dumps(index))
        put(tmp_path / "i.json", f"{memory}/m/model.safetensors.index.json")
        url = f"{memory}/m/model.safetensors.index.json"
    else:
        put(tmp_path / "weights.pt", f"{memory}/m/weights.pt")
        url = f"{memory}/m/weights.pt"
    if kind == "torch":
        same_state(convert.open_source(f"{memory}/counted.pt", model=url), trained)
        return
    # Read in full, or there would be no complaint about these very shapes.
    message = "have one shape" if kind == "index" else "has 0 parameters|have one shape"
    with pytest.raises(ConversionError, match=message):
        convert.open_source(f"{memory}/counted.pt", model=url)


def test_a_training_folder_at_a_url_gets_names_from_its_own_model(tmp_path, memory, trained):
    put(tmp_path / "counted.pt", f"{memory}/checkpoint-1/optimizer.pt")
    put(tmp_path / "weights.pt", f"{memory}/checkpoint-1/pytorch_model.bin")
    source = convert.open_source(f"{memory}/checkpoint-1")
    assert source.format == "trainer"
    same_state(source, trained)


def test_an_index_at_a_url_cannot_name_files_elsewhere(tmp_path, memory, trained):
    put(tmp_path / "counted.pt", f"{memory}/counted.pt")
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    put(tmp_path / "i.json", f"{memory}/m/model.safetensors.index.json")
    with pytest.raises(ConversionError, match="not the name of a file"):
        convert.open_source(f"{memory}/counted.pt", model=f"{memory}/m")


def test_a_failed_hand_over_publishes_nothing(tmp_path, memory, trained, monkeypatch):
    kind = type(fsspec.filesystem("memory"))

    def broken(self, lpath, rpath, **options):
        self.pipe_file(rpath, Path(lpath).read_bytes()[:100])
        raise PermissionError("no more")

    monkeypatch.setattr(kind, "put_file", broken)
    for to, name in TARGETS[:3]:
        with pytest.raises(StorageError, match="no more"):
            convert.convert(tmp_path / "named.pt", f"{memory}/{name}", to=to)
    fs, path = fsspec.url_to_fs(memory)
    assert fs.find(path) == []


def test_a_copy_that_is_cut_is_not_read(tmp_path, memory, trained, monkeypatch):
    put(tmp_path / "named.pt", f"{memory}/a.pt")
    kind = type(fsspec.filesystem("memory"))

    def cut(self, rpath, lpath, **options):
        Path(lpath).write_bytes(self.cat_file(rpath)[:-10])

    monkeypatch.setattr(kind, "get_file", cut)
    with pytest.raises(StorageError, match="bytes came of"):
        convert.open_source(f"{memory}/a.pt")


def test_copies_leave_no_files_behind(tmp_path, memory, trained, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for to, name in TARGETS:
        source, _ = goes_there_and_back(f"{memory}/{to}", tmp_path, to, name)
        same_state(source, trained)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.heavy
@pytest.mark.parametrize(("to", "name"), TARGETS)
def test_state_goes_to_s3_and_comes_back(tmp_path, trained, seaweedfs, monkeypatch, to, name):
    for key, value in seaweedfs.environment.items():
        monkeypatch.setenv(key, value)
    root = f"s3://{seaweedfs.bucket}/convert/{to}"
    source, _ = goes_there_and_back(root, tmp_path, to, name)
    same_state(source, trained)
    model = tmp_path / "weights.pt" if to == "deepspeed-universal" else None
    with pytest.raises(CheckpointExistsError):
        convert.convert(tmp_path / "named.pt", f"{root}/{name}", to=to, model=model)
    convert.convert(
        tmp_path / "named.pt", f"{root}/{name}", to=to, model=model, overwrite=True, codec="fp32"
    )
    same_state(convert.open_source(f"{root}/{name}"), trained)
    convert.convert(f"{root}/{name}", tmp_path / "back", to="luma")
    assert checkpoint.verify(tmp_path / "back").ok
    shutil.rmtree(tmp_path / "back")
