"""What the server keeps of checkpoints that are gone is collected, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from luma_core import checkpoint
from luma_core.checkpoint.storage.remote import FsspecStore
from luma_core.checkpoint.storage.store import Store
from luma_server import Settings, create_app
from luma_server.catalog import summary_cache as kept
from luma_server.catalog.claims import CLAIM_NAME, claimed
from luma_server.catalog.place import Root
from luma_server.service import Service
from luma_server.statistics_cache import UNUSED_SECONDS

OLD = time.time() - UNUSED_SECONDS - 60


def put(store: Store, name: str, data: bytes = b"{}") -> None:
    with store.write(name) as out:
        out.write(data)
        out.commit()


def age(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))


@pytest.fixture
def service(root) -> Service:
    service = Service(Settings(root=root, allow_anonymous=True))
    yield service
    service.close()


@pytest.fixture
def measure(root, serving) -> Callable[[str], str]:
    """Has the statistics of a checkpoint computed; gives the name under which they are kept."""

    def ask(place: str) -> str:
        folder = root / ".luma" / "stats"
        before = set(folder.iterdir()) if folder.exists() else set()
        with serving(create_app(Settings(root=root, allow_anonymous=True))) as url:
            answer = httpx.get(f"{url}/v1/checkpoints/{place}/stats", trust_env=False, timeout=60)
        assert answer.status_code == 200
        (new,) = set(folder.iterdir()) - before
        return new.name

    return ask


def test_statistics_of_what_was_replaced_or_removed_go(root, service, measure, optimizer) -> None:
    replaced, removed, there = measure("gpt/9"), measure("gpt/10"), measure("bert/final")
    folder = root / ".luma" / "stats"
    checkpoint.save(root / "gpt" / "9", optimizer=optimizer(7), overwrite=True)
    shutil.rmtree(root / "gpt" / "10")
    service.sweep()
    assert {path.name for path in folder.iterdir()} == {replaced, removed, there}
    age(folder)
    service.sweep()
    assert {path.name for path in folder.iterdir()} == {there}


def test_statistics_of_an_equal_checkpoint_elsewhere_stay(root, service, measure) -> None:
    name = measure("gpt/9")
    (root / "gpt" / "9").rename(root / "bert" / "9")
    age(root / ".luma" / "stats")
    service.sweep()
    assert [path.name for path in (root / ".luma" / "stats").iterdir()] == [name]


def test_what_the_server_did_not_write_stays(root, service) -> None:
    folder = root / ".luma" / "stats"
    folder.mkdir(parents=True)
    foreign = ["notes.json", f"{'a' * 64}.json", f"{'A' * 64}.01234567.json", f"{'a' * 64}.0.json"]
    for name in foreign:
        (folder / name).write_text("{}")
    (folder / f"{'a' * 64}.01234567.json.d").mkdir()
    ours = folder / f"{'a' * 64}.01234567.json"
    ours.write_text("{}")
    left = folder / f".{'a' * 64}.01234567.json.{'0' * 16}.luma-tmp"
    left.write_text("cut")
    age(folder)
    service.sweep()
    assert not ours.exists()
    assert not left.exists()
    assert len(list(folder.iterdir())) == len(foreign) + 1


def test_nothing_goes_while_checkpoints_cannot_be_listed(root, service, monkeypatch) -> None:
    folder = root / ".luma" / "stats"
    folder.mkdir(parents=True)
    ours = folder / f"{'a' * 64}.01234567.json"
    ours.write_text("{}")
    age(folder)

    def fail() -> set[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(service.catalog, "digests", fail)
    with pytest.raises(OSError, match="Input/output error"):
        service.sweep()
    assert ours.exists()


def test_claims_of_servers_that_are_gone_go(monkeypatch) -> None:
    service = Service(Settings(root="memory://tidied-claims", allow_anonymous=True))
    root = service.catalog.root
    dead = [root.private("measuring", "a" * 64), root.private("claims", "gpt", "9")]
    for store in dead:
        put(store, CLAIM_NAME)
    modified, gone = FsspecStore.modified, {store.url for store in dead}

    def long_ago(store: FsspecStore, name: str) -> float | None:
        written = modified(store, name)
        return OLD if written is not None and store.url in gone else written

    monkeypatch.setattr(FsspecStore, "modified", long_ago)
    with claimed(root, "gpt", "10"), service._statistics.computing("b" * 64):
        service.sweep()
        service.catalog.sweep()
        assert [store.names() for store in dead] == [[], []]
        alive = [root.private("measuring", "b" * 64), root.private("claims", "gpt", "10")]
        assert [store.names() for store in alive] == [[CLAIM_NAME], [CLAIM_NAME]]
    service.close()


def test_summaries_of_runs_that_are_gone_go(monkeypatch, optimizer) -> None:
    place = "memory://tidied-summaries"
    service = Service(Settings(root=place, allow_anonymous=True, list_cache_seconds=0))
    checkpoint.save(f"{place}/there/1", optimizer=optimizer())
    stores = [Root(place).private("summaries", run) for run in ("there", "gone")]
    for store in stores:
        put(store, "summaries-1.json")
    service.catalog.sweep()
    assert [len(store.names()) for store in stores] == [1, 1]
    monkeypatch.setattr(kept, "UNUSED_SECONDS", 0.0)
    service.catalog.sweep()
    assert [len(store.names()) for store in stores] == [1, 0]
    service.close()


def test_a_server_tidies_up_now_and_then(root, monkeypatch, serving) -> None:
    tidied: list[bool] = []
    monkeypatch.setattr("luma_server.application_state.SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(
        "luma_server.application_state.ApplicationState.sweep", lambda _, tidy: tidied.append(tidy)
    )
    with serving(create_app(Settings(root=root, allow_anonymous=True))):
        while len(tidied) < 15:
            time.sleep(0.01)
    assert [number for number, tidy in enumerate(tidied[:15]) if tidy] == [1, 13]
