"""What a real server computes for the client."""

from __future__ import annotations

import time

import pytest
import torch

from luma_client import Client
from luma_core import LUMA, checkpoint, stats
from luma_core.errors import CheckpointExistsError, CheckpointNotFoundError, ServiceError


@pytest.fixture(scope="module")
def run(server) -> str:
    for step in (1, 2):
        torch.manual_seed(0)
        params = {name: torch.nn.Parameter(torch.randn(4, 64)) for name in ("h.0.w", "h.1.w", "x")}
        optimizer = LUMA(params.items(), seed=0)
        for _ in range(step):
            for param in params.values():
                param.grad = torch.randn_like(param)
            optimizer.step()
        checkpoint.save(server.root / "analysed" / str(step), optimizer=optimizer)
    return "analysed"


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


def test_modules(client, run):
    modules = client.modules(run, "1")
    assert [(module.module, module.parameters) for module in modules.items] == [("h", 2), ("x", 1)]
    assert len(client.modules(run, "1", depth=2).items) == 3


def test_series(client, run):
    deadline = time.monotonic() + 60
    found = client.series(run, metric="update.rms", module="h")
    while any(point.state == "pending" for point in found.items):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = client.series(run, metric="update.rms", module="h")
    assert [point.optimizer_step for point in found.items] == [1, 2]
    assert all(point.value for point in found.items)
    assert client.series(run, parameter="x").items[0].value != found.items[0].value
    assert [p.step for p in client.series(run, min_step=2).items] == ["2"]
    assert [p.step for p in client.series(run, max_step=1).items] == ["1"]
    with pytest.raises(ServiceError):
        client.series(run, metric="nonsense")


def test_compare(client, run, server):
    found = client.compare((run, "1"), (run, "2"))
    with (
        checkpoint.open(server.root / run / "1") as a,
        checkpoint.open(server.root / run / "2") as b,
    ):
        assert found.difference == stats.diff(a, b)
    assert client.compare((run, "1"), (run, "1")).difference.identical
    with pytest.raises(CheckpointNotFoundError):
        client.compare((run, "1"), (run, "3"))


def ended(client: Client, job_id: str) -> str:
    deadline = time.monotonic() + 100
    while (job := client.job(job_id)).state in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return job.state


@pytest.mark.heavy
def test_conversions(client, run, tmp_path):
    made = client.convert(run, "1", format="luma", codec="fp32", to=("converted", "1"))
    file = client.convert(run, "1", format="adamw")
    assert {made.id, file.id} <= {job.id for job in client.jobs()}
    assert ended(client, made.id) == "done"
    assert client.info("converted", "1").elements == 768
    with pytest.raises(CheckpointExistsError):
        client.convert(run, "1", format="luma", to=("converted", "1"))
    assert ended(client, file.id) == "done"
    client.save_job_result(file.id, tmp_path / "adamw.pt")
    assert len(torch.load(tmp_path / "adamw.pt", weights_only=True)["state"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["adamw.pt"]
    assert client.cancel_job(file.id).state == "done"
    with pytest.raises(ServiceError):
        client.save_job_result(made.id, tmp_path / "none")
    with pytest.raises(CheckpointNotFoundError):
        client.save_job_result("0" * 32, tmp_path / "none")
    assert not (tmp_path / "none").exists()
