"""Whole checkpoints to a real server and back."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from luma_client import AsyncClient, Client
from luma_client.effects import Buffers
from luma_client.uploads import LANES
from luma_core import checkpoint
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    CorruptCheckpointError,
    ServiceError,
)

from .transfers import manifest_of, saved, watched

PART_BYTES = 1024


def test_a_checkpoint_is_pushed_and_pulled_whole(server, source, run, tmp_path):
    client, transport = watched(server)
    done = []
    with client:
        committed = client.upload(
            source, manifest_of(source), run, "1", progress=lambda *now: done.append(now)
        )
        assert (committed.run, committed.step) == (run, "1")
        assert 1 < transport.most <= LANES
        total = sum(file.bytes for file in client.checkpoint(run, "1").files)
        assert done[0] == (0, total)
        assert done[-1] == (total, total)
        assert done == sorted(done)
        pulled = []
        manifest = client.download(
            run, "1", LocalStore(tmp_path / "c"), progress=lambda *now: pulled.append(now)
        )
        assert pulled[-1] == (total, total)
    assert manifest.to_bytes() == manifest_of(source)
    names = sorted(path.name for path in source.path.iterdir())
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == names
    assert all((tmp_path / "c" / n).read_bytes() == (source.path / n).read_bytes() for n in names)
    assert checkpoint.verify(server.root / run / "1").ok


def test_the_same_with_an_event_loop(server, source, run, tmp_path):
    async def there_and_back() -> None:
        async with AsyncClient(server.address) as client:
            assert (await client.health()).status == "ok"
            await client.upload(source, manifest_of(source), run, "1")
            folders = [tmp_path / name for name in "ab"]
            await asyncio.gather(*(client.download(run, "1", LocalStore(at)) for at in folders))
            with pytest.raises(CheckpointNotFoundError):
                await client.checkpoint(run, "2")
            infos = await client.checkpoints(run=run)
            assert [info.step for info in infos] == ["1"]

    asyncio.run(there_and_back())
    assert checkpoint.verify(tmp_path / "a").ok
    assert checkpoint.verify(tmp_path / "b").ok


def test_files_that_the_server_has_are_not_sent(server, run, tmp_path):
    source = saved(tmp_path / "s", seed=7)
    client, transport = watched(server)
    with client:
        client.upload(source, manifest_of(source), run, "1")
        before = len(transport.parts())
        assert before > 4
        client.upload(source, manifest_of(source), run, "2")
        assert len(transport.parts()) == before
        assert [info.step for info in client.checkpoints(run=run)] == ["1", "2"]


def test_an_interrupted_push_goes_on_where_it_was(server, run, tmp_path):
    source = saved(tmp_path / "s", seed=1)

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2:
            raise KeyboardInterrupt

    first, begun = watched(server)
    with first, pytest.raises(KeyboardInterrupt):
        first.upload(source, manifest_of(source), run, "1", progress=interrupt)
    second, resumed = watched(server)
    with second:
        assert second.checkpoints(run=run) == []
        second.upload(source, manifest_of(source), run, "1")
    assert not set(begun.parts()[:-LANES]) & set(resumed.parts())
    assert len(resumed.parts()) < len(begun.parts())
    assert checkpoint.verify(server.root / run / "1").ok


def test_parts_that_were_damaged_on_the_way_are_sent_again(server, run, tmp_path):
    source = saved(tmp_path / "s", seed=2)
    damaged = []

    def damage(request: httpx.Request) -> httpx.Request:
        if "/parts/2" in request.url.path and len(damaged) < 2:
            damaged.append(request.url.path)
            data = request.read()
            content = bytes([data[0] ^ 1]) + data[1:]
            headers = {k: v for k, v in request.headers.items() if k != "content-length"}
            return httpx.Request(request.method, request.url, headers=headers, content=content)
        return request

    client, _ = watched(server, before=damage)
    with client:
        client.upload(source, manifest_of(source), run, "1")
    assert len(damaged) == 2
    assert checkpoint.verify(server.root / run / "1").ok


def test_a_source_that_is_not_what_its_manifest_says(server, run, tmp_path):
    source = saved(tmp_path / "s", seed=3)
    shard = max(source.path.glob("optimizer-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with Client(server.address) as client:
        with pytest.raises(CorruptCheckpointError, match=shard.name):
            client.upload(source, manifest_of(source), run, "1")
        shard.write_bytes(data[:-1])
        with pytest.raises(CorruptCheckpointError, match="the file ends at byte"):
            client.upload(source, manifest_of(source), run, "1")
        shard.unlink()
        with pytest.raises(FileNotFoundError):
            client.upload(source, manifest_of(source), run, "1")
        assert client.checkpoints(run=run) == []
        shard.write_bytes(data)
        client.upload(source, manifest_of(source), run, "1")
    assert checkpoint.verify(server.root / run / "1").ok


def test_a_session_that_is_lost_is_begun_anew(server, run, tmp_path):
    source = saved(tmp_path / "s", seed=4)
    lost = []

    def lose(request: httpx.Request) -> httpx.Request:
        if "/parts/" in request.url.path and not lost:
            session = request.url.path.split("/")[3]
            lost.append(session)
            url = f"{server.address}/v1/uploads/{session}"
            # Refused while the server is taking other parts of it.
            while httpx.delete(url, trust_env=False, timeout=60).status_code == 409:
                time.sleep(0.01)
        return request

    client, transport = watched(server, before=lose)
    with client:
        client.upload(source, manifest_of(source), run, "1")
    assert len({path.split("/")[3] for path in transport.parts()}) == 2
    assert checkpoint.verify(server.root / run / "1").ok


def test_the_answer_to_a_commit_is_lost(server, source, run):
    lost = []

    def lose(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path.endswith("/commit") and not lost:
            response.read()
            lost.append(response.status_code)
            raise httpx.ReadError("reset")
        return response

    client, _ = watched(server, after=lose)
    with client:
        client.upload(source, manifest_of(source), run, "1")
    assert lost == [201]


def test_what_is_there_is_replaced_only_on_request(server, source, run, tmp_path):
    other = saved(tmp_path / "s", seed=5)
    with Client(server.address) as client:
        first = client.upload(source, manifest_of(source), run, "1").digest
        with pytest.raises(CheckpointExistsError):
            client.upload(other, manifest_of(other), run, "1")
        assert client.checkpoint(run, "1").digest == first
        second = client.upload(other, manifest_of(other), run, "1", overwrite=True).digest
        assert client.checkpoint(run, "1").digest == second != first
        for expected in (first, "0" * 64):
            with pytest.raises(ConcurrentSaveError):
                client.upload(
                    source, manifest_of(source), run, "1", overwrite=True, expected=expected
                )
        assert client.checkpoint(run, "1").digest == second
        client.upload(source, manifest_of(source), run, "1", overwrite=True, expected=second)
        assert client.checkpoint(run, "1").digest == first
        assert client.checkpoints(run=run, limit=1)[0].digest == first
    assert checkpoint.verify(server.root / run / "1").ok


def test_a_pinned_checkpoint_stays(server, source, run):
    with Client(server.address) as client:
        client.upload(source, manifest_of(source), run, "1")
        client.pin(run, "1")
        assert client.info(run, "1").pinned
        with pytest.raises(ServiceError) as caught:
            client.delete(run, "1")
        assert caught.value.status == 409
        client.pin(run, "1", pinned=False)
        labels = client.set_labels(run, "1", {"quality": "best"}).labels
        assert labels == client.info(run, "1").labels == {"quality": "best"}
        assert client.checkpoints(run=run, labels={"quality": None, "other": "x"}) == []
        assert len(client.checkpoints(run=run, labels={"quality": "best"})) == 1
        client.delete(run, "1")
        client.delete(run, "1")
        assert client.checkpoints(run=run) == []


def test_listings_are_followed_to_the_end(server, source, run, monkeypatch):
    monkeypatch.setattr("luma_client.queries.PAGE_ITEMS", 2)
    with Client(server.address) as client:
        for step in range(5):
            client.upload(source, manifest_of(source), run, f"{step}")
        for limit, count in ((None, 5), (1, 1), (3, 3), (4, 4), (9, 5)):
            found = client.checkpoints(run=run, limit=limit)
            assert [info.step for info in found] == [str(step) for step in range(count)]
        assert run in [info.run for info in client.runs()]


def test_memory_does_not_grow_with_the_checkpoint(server, run, tmp_path, monkeypatch):
    source = saved(tmp_path / "s", seed=8)
    made: list[int] = []

    class Counted(Buffers):
        def take(self, count):
            made.append(0 if self._free else self._size_bytes)
            return super().take(count)

    monkeypatch.setattr("luma_client.uploads.Buffers", Counted)
    monkeypatch.setattr("luma_client.downloads.Buffers", Counted)
    monkeypatch.setattr("luma_client.downloads.PART_BYTES", PART_BYTES)
    with Client(server.address) as client:
        for transfer in (
            lambda: client.upload(source, manifest_of(source), run, "1"),
            lambda: client.download(run, "1", LocalStore(tmp_path / "c")),
        ):
            made.clear()
            transfer()
            assert len(made) > 3 * LANES
            assert sum(made) <= LANES * PART_BYTES


def test_a_cancelled_push_can_go_on(server, run, tmp_path):
    source = saved(tmp_path / "s", seed=9)

    async def cancelled() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > 0:
                loop.call_soon_threadsafe(begun.set)

        async with AsyncClient(server.address) as client:
            task = asyncio.create_task(
                client.upload(source, manifest_of(source), run, "1", progress=watch)
            )
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.checkpoints(run=run) == []
            await client.upload(source, manifest_of(source), run, "1")

    asyncio.run(cancelled())
    assert checkpoint.verify(server.root / run / "1").ok
