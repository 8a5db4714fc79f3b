"""The contract of a store, and which names and places are taken."""

import contextlib
import re
import threading
from pathlib import Path

import pytest

from luma_core import checkpoint
from luma_core.checkpoint.format.compression import CHUNK_BYTES
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.s3 import PART_BYTES, PARTS_IN_FLIGHT
from luma_core.errors import (
    ConcurrentSaveError,
    ConfigurationError,
    StorageError,
    UnsafeNameError,
)


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "a" / "b")


def _files(store):
    return [path.name for path in store.path.iterdir()]


def test_an_object_appears_when_it_is_committed(store):
    assert store.names() == []
    with store.write("x") as out:
        out.write(b"abc")
        out.write(memoryview(b"de"))
        assert store.names() == []
        assert store.size("x") is None
        out.commit()
        assert store.names() == ["x"]
    assert store.size("x") == 5
    assert store.read_range("x", 1, 3) == b"bc"
    assert store.read_range("x", 3, 99) == b"de"
    assert _files(store) == ["x"]


def test_an_object_that_is_not_committed_leaves_no_trace(store):
    with store.write("x") as out:
        out.write(b"new")
    with pytest.raises(TypeError), store.write("x") as out:
        out.write("not bytes")
    assert not _files(store)


def test_an_object_is_replaced_whole(store):
    for content in (b"old", b"newer"):
        with store.write("x") as out:
            out.write(content)
            assert content == b"old" or store.read_range("x", 0, 9) == b"old"
            out.commit()
    assert store.read_range("x", 0, 9) == b"newer"
    with pytest.raises(ValueError, match="committed"):
        out.write(b"")
    with pytest.raises(ValueError, match="committed"):
        out.commit()


def test_missing_objects(store):
    with pytest.raises(FileNotFoundError):
        store.read_range("x", 0, 1)
    store.delete("x")
    assert store.size("x") is None


def test_leftovers_of_killed_writers_are_invisible_and_removable(store):
    out = store.write("x")
    out.write(b"abc")
    assert store.names() == []
    (store.path / ".mine.tmp").write_bytes(b"")
    store.discard_leftovers()
    assert _files(store) == [".mine.tmp"]
    out.discard()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "a b", ".hidden", "-x", "a\0", "a\n", "é"],
)
def test_unsafe_names_are_refused_everywhere(store, name):
    with pytest.raises(UnsafeNameError, match="not safe"):
        checkpoint.storage.check_name(name)
    for use in (store.size, store.delete, store.write, lambda n: store.read_range(n, 0, 1)):
        with pytest.raises(UnsafeNameError):
            use(name)


@pytest.mark.parametrize("name", ["x" * 201, "C:x", "%2e", None, 3])
def test_names_that_are_too_long_or_no_names_are_refused(name):
    with pytest.raises(UnsafeNameError, match="1 to 200 letters"):
        checkpoint.storage.check_name(name)


@pytest.mark.parametrize("name", ["a", "step-100", "run_1.final", "7", "x" * 200, "a..b"])
def test_safe_names_are_returned(name):
    assert checkpoint.storage.check_name(name) == name


@pytest.mark.parametrize(
    "url", ["nowhere://host/x", "reference::http://x", "simplecache::s3://b/x"]
)
def test_places_that_no_store_handles_are_told_by_their_scheme(url):
    for use in (checkpoint.open, checkpoint.exists, checkpoint.verify):
        with pytest.raises(StorageError, match=f"no store for '{url.split('://')[0]}' locations"):
            use(url)


def test_a_file_url_is_a_path(tmp_path, new_run):
    place = tmp_path / "with space"
    run = new_run()
    checkpoint.save(f"file://{tmp_path}/with%20space", optimizer=run.optimizer)
    assert checkpoint.exists(place)
    assert checkpoint.exists(str(place))
    assert open_store(place.as_uri()).url == str(place)
    with pytest.raises(StorageError, match="no store for 'file' locations"):
        checkpoint.exists("file://elsewhere/x")


def test_a_file_in_the_way_is_told(tmp_path, new_run):
    (tmp_path / "f").write_text("")
    with pytest.raises(StorageError, match="A part of that path is a file"):
        checkpoint.save(tmp_path / "f" / "c", optimizer=new_run().optimizer)
    with pytest.raises(StorageError):
        checkpoint.save(tmp_path / "f", optimizer=new_run().optimizer)


def test_a_backend_that_is_not_installed_says_what_to_install(monkeypatch):
    def missing(scheme):
        raise ImportError(f"Install something for {scheme}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(StorageError, match=re.escape("pip install 'luma-state[s3]'")):
        checkpoint.open("s3://bucket/x")
    with pytest.raises(StorageError, match="Install something for gs"):
        checkpoint.open("gs://bucket/x")


@pytest.mark.parametrize("url", ["memory://", "memory:///", "s3://"])
def test_a_url_must_name_a_folder(url):
    with pytest.raises(StorageError, match="names no folder"):
        checkpoint.exists(url)


def test_two_processes_cannot_save_to_one_local_folder(tmp_path, new_run):
    run = new_run()
    with LocalStore(tmp_path).exclusive() as alone:
        assert alone
        with pytest.raises(ConcurrentSaveError, match="somebody else is saving"):
            checkpoint.save(tmp_path, optimizer=run.optimizer)
    checkpoint.save(tmp_path, optimizer=run.optimizer)


@pytest.mark.parametrize("value", [0, (128 << 20) - 1, 1e9, True, None])
def test_a_memory_bound_that_cannot_work_is_refused(tmp_path, new_run, value):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer)
    uses = (
        lambda: checkpoint.save(
            tmp_path, optimizer=new_run().optimizer, overwrite=True, max_memory_bytes=value
        ),
        lambda: checkpoint.open(tmp_path, max_memory_bytes=value),
        lambda: checkpoint.load(tmp_path, max_memory_bytes=value),
        lambda: checkpoint.verify(tmp_path, max_memory_bytes=value),
    )
    for use in uses:
        with pytest.raises(ConfigurationError, match="max_memory_bytes="):
            use()


@pytest.mark.parametrize("max_memory_bytes", [128 << 20, 300 << 20, 512 << 20, 4 << 30])
def test_a_memory_bound_is_divided_among_lanes(max_memory_bytes):
    budget = Budget.of(max_memory_bytes)
    coding = (2 * budget.workers + 1) * CHUNK_BYTES * 2
    upload = (PARTS_IN_FLIGHT + 1) * PART_BYTES
    assert budget.lanes >= 1
    assert budget.workers >= 2
    assert budget.lanes * (coding + budget.scratch_bytes + upload) <= max_memory_bytes


def test_a_folder_that_others_remove_is_locked_where_it_is(tmp_path: Path) -> None:
    """What is written under the lock is never in a folder that is gone."""
    folder, failures, written = tmp_path / "run" / "1", [], []

    def save() -> None:
        for turn in range(300):
            store = LocalStore(folder)
            try:
                with contextlib.suppress(ConcurrentSaveError), store.exclusive():
                    (folder / "x").write_text(str(turn))
                    (folder / "x").unlink()
                    written.append(turn)
                    store.remove_folder()
                    LocalStore(folder.parent).remove_folder()
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert written
