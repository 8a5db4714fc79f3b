"""Checkpoints that hold differences to others, and those that only say so."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_core.checkpoint.format.manifest import canonical_json


@pytest.fixture
def chained(root) -> Path:
    """``{root}/chain``: a full checkpoint ``1``, and ``2`` with differences to it."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = LUMA([("p", param)], seed=1)
    for step in (1, 2):
        param.grad = torch.randn_like(param)
        optimizer.step()
        base = root / "chain" / "1" if step > 1 else None
        checkpoint.save(root / "chain" / str(step), optimizer=optimizer, base=base)
    return root / "chain"


def steps(http) -> list[str]:
    return [one["step"] for one in http.get("/v1/checkpoints?run=chain").json()["items"]]


def test_both_are_listed_and_read(http, chained) -> None:
    assert steps(http) == ["1", "2"]
    assert http.get("/v1/checkpoints/chain/2/stats").status_code == 200


def test_one_without_its_base_is_not_there(http, chained, check_problem) -> None:
    shutil.rmtree(chained / "1")
    assert steps(http) == []
    check_problem(http.get("/v1/checkpoints/chain/2/stats"), 404, "checkpoint_not_found")


def test_one_that_names_itself_as_its_base_is_told(http, chained, check_problem) -> None:
    path = chained / "2" / "luma.json"
    body = json.loads(path.read_text())["manifest"]
    body["base"]["folder"] = "2"
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    path.write_bytes(canonical_json({"checksum": f"sha256:{digest}", "manifest": body}))
    assert steps(http) == ["1", "2"]
    check_problem(http.get("/v1/checkpoints/chain/2/stats"), 500, "corrupt_checkpoint")
    check_problem(http.get("/v1/checkpoints/chain/2"), 500, "corrupt_checkpoint")
