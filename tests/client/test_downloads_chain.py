"""Checkpoints that hold differences to others come with those."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from luma_client import Client
from luma_core import LUMA, checkpoint
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.errors import BrokenChainError, ConfigurationError

from .transfers import watched


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A full checkpoint ``1``, and ``2`` and ``3`` with differences; ``other/1`` is another one."""
    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = LUMA([("p", param)], seed=1)
    for step in range(1, 4):
        param.grad = torch.randn_like(param)
        optimizer.step()
        base = folder / "gpt" / str(step - 1) if step > 1 else None
        checkpoint.save(folder / "gpt" / str(step), optimizer=optimizer, base=base)
    param.grad = torch.randn_like(param)
    optimizer.step()
    checkpoint.save(folder / "other" / "1", optimizer=optimizer)
    return folder


@pytest.fixture
def served(serving, originals, tmp_path):
    with serving(shutil.copytree(originals, tmp_path / "root")) as found:
        yield found


def test_the_whole_chain_is_pulled_beside_the_destination(served, originals, tmp_path):
    told: list[tuple[int, int]] = []
    with Client(served.address) as client:
        store = LocalStore(tmp_path / "back" / "mine")
        manifest = client.download("gpt", "3", store, progress=lambda *now: told.append(now))
    assert manifest.digest == checkpoint.open(originals / "gpt" / "3").manifest.digest
    assert checkpoint.verify(tmp_path / "back" / "mine").ok
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"mine", "1", "2"}
    size = sum(path.stat().st_size for path in (originals / "gpt").rglob("*.safetensors"))
    assert told[-1] == (size, size)


def test_bases_that_are_there_stay_and_others_are_not_replaced(served, originals, tmp_path):
    back = tmp_path / "back"
    shutil.copytree(originals / "gpt" / "1", back / "1")
    shard = next((back / "1").glob("*.safetensors"))
    before = shard.stat().st_mtime_ns
    with Client(served.address) as client:
        client.download("gpt", "2", LocalStore(back / "2"))
        assert shard.stat().st_mtime_ns == before
        assert checkpoint.verify(back / "2").ok
        shutil.rmtree(back)
        other = shutil.copytree(originals / "other" / "1", back / "1")
        with pytest.raises(ConfigurationError, match="'1', and another checkpoint has that place"):
            client.download("gpt", "2", LocalStore(back / "2"), overwrite=True)
        assert checkpoint.verify(other).ok
        assert not (back / "2").exists()


def test_a_destination_that_is_where_a_base_belongs_is_refused(served, tmp_path):
    with Client(served.address) as client, pytest.raises(ConfigurationError, match="as '1'"):
        client.download("gpt", "3", LocalStore(tmp_path / "back" / "1"))
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("how", "told"), [("missing", "is not on the server"), ("changed", "has changed there")]
)
def test_a_base_that_is_not_there_as_it_was(served, originals, tmp_path, how, told):
    def replace_base(request, response):
        base = served.root / "gpt" / "2"
        if request.url.path == "/v1/checkpoints/gpt/3":
            shutil.rmtree(base)
            if how == "changed":
                shutil.copytree(originals / "other" / "1", base)
        return response

    client, _ = watched(served, after=replace_base)
    with client, pytest.raises(BrokenChainError, match=f"gpt/2, which {told}"):
        client.download("gpt", "3", LocalStore(tmp_path / "back" / "3"))
    assert not (tmp_path / "back").exists()


def test_without_bases_only_the_checkpoint_comes(served, tmp_path):
    with Client(served.address) as client:
        client.download("gpt", "3", LocalStore(tmp_path / "back" / "3"), bases=False)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["3"]


def test_the_command_pulls_what_it_can_load(luma, served, tmp_path):
    target = tmp_path / "back" / "3"
    code, out, err = luma("pull", f"{served.url}/gpt/3", target, "--json")
    assert (code, json.loads(out)["chain"]) == (0, 3)
    assert "differences to 2" in err
    assert luma("verify", target)[0] == 0


def test_the_command_flattens_from_a_server(luma, served, tmp_path):
    code, _, _ = luma("flatten", f"{served.url}/gpt/3", tmp_path / "flat")
    assert code == 0
    assert checkpoint.open(tmp_path / "flat").manifest.base is None
    assert checkpoint.verify(tmp_path / "flat").ok
