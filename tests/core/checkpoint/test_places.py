"""A place is what it named when it was given: no later change of directory moves it."""

from pathlib import Path

import pytest
import torch

from luma_core import checkpoint, convert
from luma_core.checkpoint import CheckpointManager
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.open import open_store
from luma_core.errors import StorageError
from luma_core.optim import LUMA
from luma_core.paths import resolve_path
from tests.core.checkpoint.staging.async_training import gate


@pytest.fixture
def run(new_run):
    return new_run()


@pytest.fixture
def leave(tmp_path, monkeypatch):
    """Begin in one directory; calling this goes to another."""
    for name in ("before", "after", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "before")
    return lambda: monkeypatch.chdir(tmp_path / "after")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("run", "before/run"),
        (Path("run/1"), "before/run/1"),
        ("./run", "before/run"),
        ("../run", "before/../run"),
        ("", "before"),
        (".", "before"),
        ("local://run", "before/run"),
        ("LOCAL://run", "before/run"),
        ("local://~/run", "home/run"),
        ("~", "home"),
        ("~/run", "home/run"),
        (Path("~/run"), "home/run"),
        ("./~/run", "before/~/run"),
        ("run/~", "before/run/~"),
        ("~nobody-of-that-name/run", "before/~nobody-of-that-name/run"),
    ],
)
def test_a_store_stays_where_its_place_was(tmp_path, leave, place, expected):
    store = open_store(place)
    leave()
    assert store.url == str(tmp_path / expected)


def test_a_store_that_is_made_directly_stays_too(tmp_path, leave):
    store = LocalStore(Path("run")).folder("1").beside("2")
    leave()
    assert store.url == str(tmp_path / "before/run/2")


def test_the_home_directory_is_no_part_of_other_urls(tmp_path, leave):
    assert open_store("memory://~/run").url == "memory://~/run"
    assert open_store(f"file://{tmp_path}/~/run").url == f"{tmp_path}/~/run"


def test_an_asynchronous_save_ends_where_it_began(tmp_path, leave, run):
    first = checkpoint.save("run/1", optimizer=run.optimizer)
    with gate() as waiting:
        handle = checkpoint.save(
            *("run/2",), optimizer=run.optimizer, base="run/1", wait=False, progress=waiting
        )
        leave()
    handle.result()
    assert checkpoint.verify(tmp_path / "before/run/2").ok
    assert checkpoint.open(tmp_path / "before/run/1").manifest.digest == first.digest
    assert not any((tmp_path / "after").iterdir())


def test_a_manager_stays_with_its_run(tmp_path, leave, run):
    manager = CheckpointManager("run", keep_last=1)
    handle = manager.save(1, optimizer=run.optimizer, wait=False)
    opened = manager.open if handle.result() else None
    leave()
    assert manager.latest() == 1
    assert opened().manifest.summary.step == 3
    manager.save(2, optimizer=run.optimizer)
    assert manager.steps() == [2]
    assert [entry.name for entry in (tmp_path / "before/run").iterdir()] == ["00000002"]
    assert not any((tmp_path / "after").iterdir())


def test_what_is_opened_stays_readable(leave, run):
    checkpoint.save("run", optimizer=run.optimizer)
    convert.convert("run", "run.pt", to="adamw")
    opened, source = checkpoint.open("run"), convert.open_source("run.pt")
    leave()
    assert opened.read("0.weight", "exp_avg").shape == (40, 48)
    assert source.read("0.weight").exp_avg.shape == (40, 48)


@pytest.mark.parametrize("to", ["adamw", "dcp", "luma"])
def test_a_conversion_goes_where_it_was_to_go(tmp_path, leave, run, to):
    checkpoint.save("run", optimizer=run.optimizer)
    report = convert.convert("run", "out/made", to=to, progress=lambda *_: leave())
    assert (tmp_path / "before/out/made").exists()
    assert not any((tmp_path / "after").iterdir())
    assert report.destination == "out/made"


def test_flattening_goes_where_it_was_to_go(tmp_path, leave, run):
    checkpoint.save("run", optimizer=run.optimizer)
    checkpoint.flatten("run", "~/flat", progress=lambda *_: leave())
    assert checkpoint.verify(tmp_path / "home/flat").ok


def test_state_on_disk_stays_in_its_directory(tmp_path, leave):
    weight = torch.nn.Parameter(torch.randn(64, 64))
    home = torch.nn.Parameter(torch.randn(64, 64))
    relative, under_home = (
        LUMA([("w", param)], seed=0, offload="disk", offload_directory=place)
        for param, place in ((weight, Path("off")), (home, "~/off"))
    )
    leave()
    for param, optimizer in ((weight, relative), (home, under_home)):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert (tmp_path / "before/off").is_dir()
    assert (tmp_path / "home/off").is_dir()
    assert not any((tmp_path / "after").iterdir())


def test_a_relative_place_in_a_directory_that_is_gone_is_told(tmp_path, leave, run):
    manager = CheckpointManager("run")
    leave()
    (tmp_path / "before").rmdir()
    manager.save(1, optimizer=run.optimizer)
    assert checkpoint.verify(tmp_path / "before/run/00000001").ok
    (tmp_path / "after").rmdir()
    for use in (CheckpointManager, checkpoint.open, resolve_path, convert.open_source):
        with pytest.raises(StorageError, match=r"'x' is relative, and the current .* removed"):
            use("x")
    with pytest.raises(StorageError, match="Give an absolute path"):
        LUMA(run.model.parameters(), offload="disk", offload_directory="x")
    assert open_store(tmp_path).url == str(tmp_path)


@pytest.mark.parametrize("then", ["nothing", "another folder"])
def test_a_folder_that_is_moved_during_a_save_fails_it(tmp_path, run, then):
    before = checkpoint.save(tmp_path / "run/1", optimizer=run.optimizer)

    def move(done, total):
        if done and not (tmp_path / "moved").exists():
            (tmp_path / "run").rename(tmp_path / "moved")
            if then == "another folder":
                (tmp_path / "run/1").mkdir(parents=True)

    with pytest.raises(StorageError, match=r"run/1.*(moved or removed|No such file)"):
        checkpoint.save(
            *(tmp_path / "run/1",),
            optimizer=run.optimizer,
            max_shard_bytes=1,
            overwrite=True,
            progress=move,
        )
    assert not checkpoint.exists(tmp_path / "run/1")
    assert checkpoint.verify(tmp_path / "moved/1").ok
    assert checkpoint.open(tmp_path / "moved/1").manifest.digest == before.digest
