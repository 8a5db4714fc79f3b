"""A server as a store: the promises of all stores, and those of saving and loading."""

from __future__ import annotations

import io
import itertools

import httpx
import pytest
import torch

from luma_client import Client, LumaStore
from luma_client.staging import StagedFile
from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager
from luma_core.checkpoint.storage.commit import ConditionalPut
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import ABSENT
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    ConfigurationError,
    CorruptCheckpointError,
    ServiceError,
    StorageError,
)
from luma_core.testing.store import (
    StoreConformance,
    loaded_steps,
    put,
    save,
    trained,
)

_runs = itertools.count()


@pytest.fixture
def url(server) -> str:
    """A checkpoint that is not there yet."""
    return f"{server.url}/store-{next(_runs)}/1"


class TestLumaStore(StoreConformance):
    """Objects that are no checkpoint are staged on this side, so that is where they are reached."""

    @pytest.fixture
    def store(self, url):
        return open_store(url)

    def get(self, store, name):
        found = store.staging.get(name)
        return None if found is None else found.read(0, found.size_bytes)

    def set(self, store, name, data):
        store.staging.put(name, StagedFile(io.BytesIO(data), len(data)))

    def test_a_checkpoint_may_build_on_one_beside_it(self, server):
        """Checkpoints lie beside each other in a run."""
        run = open_store(f"{server.url}/store-{next(_runs)}")
        super().test_a_checkpoint_may_build_on_one_beside_it(run)

    def test_strategy(self, store):
        assert isinstance(store, LumaStore)
        assert isinstance(store.strategy, ConditionalPut)


def test_what_was_saved_is_a_plain_folder_on_the_server(server, url):
    save(open_store(url), 2)
    folder = server.root.joinpath(*url.split("/")[3:])
    assert loaded_steps(open_store(folder)) == 2
    assert loaded_steps(open_store(url)) == 2
    save(open_store(url), 3, overwrite=True)
    files = {file.name for file in checkpoint.open(url).manifest.files}
    assert {path.name for path in folder.iterdir()} == files | {"luma.json"}
    assert loaded_steps(open_store(folder)) == 3


def test_nobody_else_sees_what_is_staged(url):
    mine, other = open_store(url), open_store(url)
    put(mine, "optimizer-00001-of-00001.safetensors", b"abc")
    assert mine.names() == ["optimizer-00001-of-00001.safetensors"]
    assert other.names() == []
    assert not checkpoint.exists(other)


def test_two_clients_see_each_others_checkpoints_at_once(url):
    first, second = open_store(url), open_store(url)
    save(first, 2)
    seen = second.version("luma.json")
    assert seen == first.version("luma.json") != ABSENT
    assert second.size("luma.json") == first.size("luma.json")
    assert first.names() == second.names()
    with pytest.raises(CheckpointExistsError):
        save(second, 3)
    save(second, 3, overwrite=True)
    assert first.version("luma.json") != seen
    assert loaded_steps(first) == 3


def test_of_two_clients_that_replace_one_checkpoint_one_is_told(url):
    save(open_store(url), 2)

    def meanwhile(done_bytes: int, total_bytes: int) -> None:
        if done_bytes == total_bytes:
            save(open_store(url), 4, overwrite=True)

    with pytest.raises(ConcurrentSaveError, match="in the meantime"):
        save(open_store(url), 3, overwrite=True, progress=meanwhile)
    assert loaded_steps(open_store(url)) == 4


def test_a_save_that_fails_leaves_no_session(server, url, monkeypatch):
    def sessions() -> int:
        answer = httpx.get(f"{server.address}/v1/uploads", trust_env=False, timeout=60)
        return len(answer.json()["items"])

    def fail(*_arguments: object) -> int:
        raise OSError(5, "the disk of this machine failed")

    before = sessions()
    monkeypatch.setattr("luma_client.store._Staged.read_into", fail)
    with pytest.raises(StorageError, match="the disk of this machine"):
        save(open_store(url), 2)
    assert sessions() == before
    assert not checkpoint.exists(url)


def test_single_tensors_and_rows_are_read_in_ranges(url):
    save(open_store(url), 2)
    optimizer = trained(2)[1]
    with checkpoint.open(url) as opened:
        rows = opened.read("weight", "exp_avg", rows=slice(1, 3))
        whole = opened.parameter_state("weight")
    expected = next(s for s in optimizer.parameter_states() if s.name == "weight")
    assert rows.shape == (2, 40)
    assert all(torch.equal(whole.fields[key], expected.fields[key]) for key in expected.fields)


@pytest.mark.parametrize("wait", [True, False])
def test_a_manager_keeps_the_steps_of_a_run(server, wait):
    run = f"managed-{next(_runs)}"
    model, optimizer = trained(1)
    manager = CheckpointManager(f"{server.url}/{run}", keep_last=2, keep_every=4)
    for step in (2, 4, 6, 8, 10):
        saved = manager.save(step, optimizer=optimizer, model=model, wait=wait)
    if not wait:
        saved.result()
    assert manager.steps() == [4, 8, 10]
    assert CheckpointManager(f"{server.url}/{run}").latest() == 10
    fresh, target = trained(0)
    manager.load(optimizer=target, model=fresh)
    assert target.parameter_states()[0].step == 1
    assert manager.rewind(4) == [8, 10]
    assert manager.steps() == [4]
    with Client(server.address) as client:
        assert [info.step for info in client.checkpoints(run=run)] == ["00000004"]
    # The folder is a manager's own to one who reads it directly.
    assert CheckpointManager(server.root / run).rewind(0) == [4]


def test_a_manager_leaves_what_is_pinned_and_what_it_did_not_save(server):
    run = f"managed-{next(_runs)}"
    _, optimizer = trained(1)
    checkpoint.save(f"{server.url}/{run}/00000001", optimizer=optimizer)
    manager = CheckpointManager(f"{server.url}/{run}", keep_last=1)
    manager.save(2, optimizer=optimizer)
    with Client(server.address) as client:
        client.pin(run, "00000002")
        manager.save(3, optimizer=optimizer)
        manager.save(4, optimizer=optimizer)
        assert manager.steps() == [1, 2, 4]
        client.pin(run, "00000002", pinned=False)
    assert manager.prune() == [2]


def test_a_damaged_file_on_the_server_is_found(server, url):
    save(open_store(url), 2)
    folder = server.root.joinpath(*url.split("/")[3:])
    shard = max(folder.glob("optimizer-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    report = checkpoint.verify(url)
    assert [problem.file for problem in report.problems] == [shard.name]
    model, optimizer = trained(0)
    with pytest.raises(CorruptCheckpointError):
        checkpoint.load(url, optimizer=optimizer, model=model)


def test_places_that_hold_no_checkpoint(server):
    _, optimizer = trained(1)
    for url in (server.url, f"{server.url}/run", f"{server.url}/run/1/more"):
        with pytest.raises(ConfigurationError, match="a run and a step"):
            checkpoint.save(url, optimizer=optimizer)
        with pytest.raises(CheckpointNotFoundError):
            checkpoint.open(url)


def test_neighbours(server, url):
    store = open_store(url)
    run = url.split("/")[3]
    assert store.place == (f"{server.address}/{run}", "1")
    assert store.beside("2").url == f"{server.url}/{run}/2"
    assert store.beside("1").place == store.place
    with pytest.raises(ConfigurationError, match="beside"):
        open_store(server.url).beside("x")


def test_a_server_that_does_not_answer():
    _, optimizer = trained(1)
    with pytest.raises(ServiceError, match="cannot connect"):
        checkpoint.save("luma://127.0.0.1:1/run/1", optimizer=optimizer)
