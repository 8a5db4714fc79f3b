"""Pulls that are interrupted, damaged on the way, or have no room."""

from __future__ import annotations

import httpx
import pytest

from luma_client import Client
from luma_core import checkpoint
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.errors import (
    CheckpointExistsError,
    CorruptCheckpointError,
)

from .transfers import Watching, manifest_of, saved, watched


def test_an_interrupted_pull_fetches_only_what_is_missing(server, source, run, tmp_path):
    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2:
            raise KeyboardInterrupt

    def fetched(transport: Watching) -> set[str]:
        return {path for _, path in transport.asked if "/files/" in path}

    first, _ = watched(server)
    with first:
        first.upload(source, manifest_of(source), run, "1")
        with pytest.raises(KeyboardInterrupt):
            first.download(run, "1", LocalStore(tmp_path / "c"), progress=interrupt)
    there = {path.name for path in (tmp_path / "c").iterdir()}
    assert there
    assert "luma.json" not in there
    assert all(not name.endswith("luma-tmp") for name in there)
    second, transport = watched(server)
    with second:
        second.download(run, "1", LocalStore(tmp_path / "c"))
    assert not {path.rpartition("/")[2] for path in fetched(transport)} & there
    assert checkpoint.verify(tmp_path / "c").ok
    again, transport = watched(server)
    with again:
        again.download(run, "1", LocalStore(tmp_path / "c"))
    assert fetched(transport) == set()


def test_a_pull_that_is_damaged_on_the_way(server, source, run, tmp_path):
    def damage(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.method != "GET" or "/files/optimizer" not in request.url.path:
            return response
        data = response.read()
        headers = {k: v for k, v in response.headers.items() if k != "transfer-encoding"}
        return httpx.Response(206, content=bytes([data[0] ^ 1]) + data[1:], headers=headers)

    client, _ = watched(server, after=damage)
    with client:
        client.upload(source, manifest_of(source), run, "1")
        with pytest.raises(CorruptCheckpointError, match="SHA-256"):
            client.download(run, "1", LocalStore(tmp_path / "c"))
    assert not checkpoint.exists(tmp_path / "c")


def test_a_pull_replaces_another_checkpoint_only_on_request(server, source, run, tmp_path):
    here = saved(tmp_path / "c", seed=6)
    mine = manifest_of(here)
    with Client(server.address) as client:
        client.upload(source, manifest_of(source), run, "1")
        with pytest.raises(CheckpointExistsError):
            client.download(run, "1", here)
        assert manifest_of(here) == mine

        def interrupt(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > total_bytes // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.download(run, "1", here, overwrite=True, progress=interrupt)
        assert checkpoint.verify(here).ok
        assert manifest_of(here) == mine
        client.download(run, "1", here, overwrite=True)
    assert manifest_of(here) == manifest_of(source)
    assert checkpoint.verify(here).ok


def test_a_failing_destination_ends_the_pull(server, source, run, tmp_path):
    class Full(LocalStore):
        def write(self, name, *, expected=None):
            raise OSError(28, "No space left on device")

    with Client(server.address) as client:
        client.upload(source, manifest_of(source), run, "1")
        with pytest.raises(OSError, match="No space"):
            client.download(run, "1", Full(tmp_path / "c"))
