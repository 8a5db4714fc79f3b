"""Commands on checkpoints that hold differences to others."""

import json
import shutil

import pytest
import torch

from luma_core import checkpoint
from luma_core.optim import LUMA


@pytest.fixture
def runs(tmp_path):
    """A full checkpoint ``1``, two with differences, and ``full`` with what ``3`` holds."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = LUMA([("p", param)], seed=1)
    for step in range(20):
        param.grad = torch.randn_like(param)
        optimizer.step()
        if step > 16:
            base = tmp_path / str(step - 17) if step > 17 else None
            checkpoint.save(tmp_path / str(step - 16), optimizer=optimizer, base=base)
    checkpoint.save(tmp_path / "full", optimizer=optimizer)
    return tmp_path


def test_flatten(luma, runs):
    code, out, _ = luma("flatten", runs / "3", runs / "flat", "--json")
    assert code == 0
    found = json.loads(out)
    before = checkpoint.open(runs / "3").manifest.summary.stored_bytes
    after = checkpoint.open(runs / "flat").manifest
    assert found == {
        "source": str(runs / "3"),
        "destination": str(runs / "flat"),
        "chain": 3,
        "source_bytes": before,
        "result_bytes": after.summary.stored_bytes,
        "digest": after.digest,
    }
    assert before < after.summary.stored_bytes
    for name in ("1", "2", "3"):
        shutil.rmtree(runs / name)
    assert luma("diff", runs / "flat", runs / "full", "--quiet")[1] == "identical\n"


def test_flatten_tells_people_what_it_did(luma, runs):
    code, out, _ = luma("flatten", runs / "3", runs / "flat", "--compression", "none")
    assert code == 0
    assert "3 checkpoints, its own" in out
    assert "flat  full" in out
    code, _, err = luma("flatten", runs / "3", runs / "flat")
    assert code == 4
    assert "flat --overwrite" in err
    assert luma("flatten", runs / "3", runs / "flat", "--overwrite", "-q")[:2] == (
        0,
        f"{runs / 'flat'}\n",
    )


def test_inspect_shows_the_base_and_the_chain(luma, runs):
    found = json.loads(luma("inspect", runs / "3", "--json")[1])
    digest = checkpoint.open(runs / "2").manifest.digest
    assert found["base"] == {"folder": "2", "digest": digest, "chain": 2}
    assert (found["chain"], found["version"]) == (3, 2)
    assert "2; a chain of 3 checkpoints" in luma("inspect", runs / "3")[1]
    found = json.loads(luma("inspect", runs / "full", "--json")[1])
    assert (found["base"], found["chain"], found["version"]) == (None, 1, 1)
    assert "chain" not in luma("inspect", runs / "full")[1]


def test_every_reading_command_takes_one(luma, runs):
    stats = [json.loads(luma("stats", runs / name, "--json")[1]) for name in ("3", "full")]
    assert stats[0]["total"] == stats[1]["total"]
    assert luma("diff", runs / "3", runs / "full", "--quiet")[1] == "identical\n"
    assert luma("verify", runs / "3")[0] == 0
    for name in ("3", "full"):
        assert luma("convert", runs / name, runs / f"{name}.pt", "--to", "adamw")[0] == 0
    one, other = (torch.load(runs / f"{name}.pt")["state"][0] for name in ("3", "full"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_base_that_is_missing_is_told(luma, runs):
    shutil.rmtree(runs / "1")
    code, out, _ = luma("verify", runs / "3")
    assert code == 1
    assert "'1' beside it, which is missing" in out
    for command in (["stats"], ["flatten", runs / "flat"]):
        name, *rest = command
        code, _, err = luma(name, runs / "3", *rest)
        assert code == 5
        assert "'1' beside it, which is missing" in err
        assert "Put the folder '1' back" in err
    assert luma("inspect", runs / "3")[0] == 0
