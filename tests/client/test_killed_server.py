"""A server that is killed while it is sent a checkpoint, and comes back."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import torch

from luma_client import Client, Retries
from luma_client.console.server_process import ServerProcess
from luma_core import LUMA, checkpoint
from luma_core.checkpoint.storage.local import LocalStore

ELEMENTS = 6_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> LocalStore:
    """A checkpoint of several parts of the size that the server asks for."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(ELEMENTS // 1000, 1000))
    param.grad = torch.randn_like(param)
    optimizer = LUMA([("w", param)], seed=0)
    optimizer.step()
    folder = tmp_path_factory.mktemp("source") / "c"
    checkpoint.save(folder, optimizer=optimizer, compression="none")
    return LocalStore(folder)


def server(root: Path, port: int, log) -> ServerProcess:
    return ServerProcess(root=str(root), port=port, more=["--no-auth"], log=log)


def test_a_push_survives_the_death_of_the_server(source, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    manifest = (source.path / "luma.json").read_bytes()
    alive, killed = threading.Event(), threading.Event()
    sent: list[int] = []

    def watch(done_bytes: int, total_bytes: int) -> None:
        sent.append(done_bytes)
        if done_bytes > 0:
            alive.set()
            killed.wait(30)

    def push() -> None:
        retries = Retries(attempts=60, first_wait_seconds=0.05, longest_wait_seconds=0.5)
        with Client(f"http://127.0.0.1:{port}", retries=retries) as client:
            client.upload(source, manifest, "run", "1", progress=watch)

    with (tmp_path / "log").open("wb") as log:
        first = server(root, port, log)
        pushing = threading.Thread(target=push)
        try:
            pushing.start()
            assert alive.wait(60)
            first._process.kill()
            first._process.wait()
        finally:
            first.stop()
        assert not checkpoint.exists(root / "run" / "1")
        killed.set()
        with server(root, port, log):
            pushing.join(60)
            assert not pushing.is_alive()
    total = source.size(max(name for name in source.names() if name != "luma.json"))
    assert sent[-1] == total
    assert sent == sorted(sent)
    assert checkpoint.verify(root / "run" / "1").ok


def test_a_push_to_a_server_that_stays_away_ends_with_an_error(source, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    manifest = (source.path / "luma.json").read_bytes()
    retries = Retries(attempts=3, first_wait_seconds=0.05, longest_wait_seconds=0.1)
    with (tmp_path / "log").open("wb") as log, server(root, 0, log) as running:

        def kill(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > 0:
                running._process.kill()
                running._process.wait()

        with (
            Client(running.url, retries=retries) as client,
            pytest.raises(OSError, match=r"127\.0\.0\.1"),
        ):
            client.upload(source, manifest, "run", "1", progress=kill)
    assert not checkpoint.exists(root / "run" / "1")
