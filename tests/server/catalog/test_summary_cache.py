"""Summaries that the next server finds."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import fsspec
import pytest

from luma_core import checkpoint
from luma_core.errors import StorageError
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.summary_cache import SummaryCache


@pytest.fixture
def place(optimizer) -> Iterator[str]:
    """A root in memory, which as little as a bucket is a local folder."""
    url = f"memory://kept-{secrets.token_hex(4)}"
    for step in ("1", "2"):
        checkpoint.save(f"{url}/gpt/{step}", optimizer=optimizer(int(step)))
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


def listed(place: str) -> list:
    catalog = Catalog(place)
    try:
        return catalog.list()
    finally:
        catalog.close()


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The steps whose manifests are read."""
    steps: list[str] = []
    plain = Catalog._read_summary

    def watched(self, run, step):
        steps.append(step)
        return plain(self, run, step)

    monkeypatch.setattr(Catalog, "_read_summary", watched)
    return steps


def test_the_next_server_reads_no_manifest_again(place, read):
    first = listed(place)
    assert sorted(read) == ["1", "2"]
    assert listed(place) == first
    assert sorted(read) == ["1", "2"]


def test_a_deletion_reads_no_manifest_again_to_find_what_needs_it(place, read):
    listed(place)
    read.clear()
    catalog = Catalog(place)
    assert catalog.needed_by("gpt", "1") is None
    catalog.close()
    assert not read


def test_a_checkpoint_that_was_replaced_is_read(place, read, optimizer):
    before = listed(place)
    checkpoint.save(f"{place}/gpt/2", optimizer=optimizer(7), overwrite=True)
    read.clear()
    after = listed(place)
    assert read == ["2"]
    assert after[0] == before[0]
    assert after[1].digest != before[1].digest
    read.clear()
    assert listed(place) == after
    assert not read


def test_one_that_was_removed_is_not_listed(place):
    listed(place)
    fsspec.filesystem("memory").rm(f"{place}/gpt/1", recursive=True)
    assert [info.step for info in listed(place)] == ["2"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"1": ["x", {}]}', b"\xff" * 100])
def test_what_is_damaged_is_read_again(place, read, content):
    first = listed(place)
    fs = fsspec.filesystem("memory")
    (kept,) = fs.find(f"{place}/.luma/summaries")
    fs.pipe_file(kept, content)
    read.clear()
    assert listed(place) == first
    assert sorted(read) == ["1", "2"]


def test_a_root_that_cannot_be_written_is_listed_all_the_same(place, monkeypatch, caplog):
    def full(*_, **__):
        raise StorageError(f"{place}/.luma: no room.")

    monkeypatch.setattr("luma_core.checkpoint.storage.remote.FsspecStore.put", full)
    assert len(listed(place)) == 2
    assert "summaries were not cached: " in caplog.text


def test_closing_waits_for_what_is_being_written(place, monkeypatch):
    writing, go_on = threading.Event(), threading.Event()
    ended = []

    def slow(*_, **__):
        writing.set()
        go_on.wait(30)
        ended.append(True)
        raise StorageError(f"{place}/.luma: no room.")

    monkeypatch.setattr("luma_server.catalog.summary_cache.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("luma_core.checkpoint.storage.remote.FsspecStore.put", slow)
    catalog = Catalog(place)
    catalog.list()
    assert writing.wait(30)
    closing = threading.Thread(target=catalog.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    closing.join(30)
    assert ended


def test_a_local_root_keeps_none(root):
    catalog = Catalog(root)
    assert len(catalog.list()) == 3
    catalog.close()
    assert not (root / ".luma").exists()


def test_what_is_known_is_written_after_a_while(place, monkeypatch):
    monkeypatch.setattr("luma_server.catalog.summary_cache.SAVE_SECONDS", 0.01)
    catalog = Catalog(place)
    catalog.list()
    timer = catalog._saved._timer
    if timer is not None:
        timer.join(10)
    assert set(SummaryCache(catalog.root, dict).load("gpt")) == {"1", "2"}
    catalog.close()
