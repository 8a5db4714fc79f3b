"""What every store must do, as tests: a new store passes them by a small subclass.

Needs pytest. A subclass names a fixture ``store``, a new empty folder for each test, and two
functions that reach its objects without it::

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self):
            return MyStore(...)

        def get(self, store, name):
            return backend.read(name)    # None where there is no object

        def set(self, store, name, data):
            backend.write(name, data)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from luma_core import checkpoint
from luma_core.checkpoint.storage.store import ABSENT, Store
from luma_core.direct import transfer_memory
from luma_core.errors import (
    CheckpointExistsError,
    ConcurrentSaveError,
    LumaError,
    UnsafeNameError,
)
from luma_core.optim import LUMA

CLOCK_SECONDS = 600
"""How far a store's clock may be off."""


class _CallerError(Exception):
    """Flies through a writer."""


def put(store: Store, name: str, data: bytes, **options: Any) -> None:
    """Write an object through the store."""
    with store.write(name, **options) as out:
        out.write(data)
        out.commit()


def trained(steps: int) -> tuple[nn.Module, LUMA]:
    """Return a small model and its optimizer after some steps; equal for equal ``steps``."""
    torch.manual_seed(steps)
    model = nn.Linear(40, 6)
    optimizer = LUMA(model.named_parameters(), seed=1, min_compress_elements=1)
    train(model, optimizer, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: LUMA, steps: int) -> None:
    """Train on noise."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 40, device="cpu")).square().mean().backward()
        optimizer.step()


def loaded_steps(store: Store) -> int:
    """Return after how many steps the checkpoint was saved, having checked every byte of it."""
    report = checkpoint.verify(store)
    assert report.ok, report.problems
    model, optimizer = trained(0)
    steps = int(checkpoint.load(store, optimizer=optimizer, model=model).extra["steps"])
    for got, expected in zip(
        optimizer.parameter_states(), trained(steps)[1].parameter_states(), strict=True
    ):
        assert got.step == steps
        assert all(torch.equal(got.fields[key], expected.fields[key]) for key in expected.fields)
    return steps


def save(store: Store, steps: int, **options: Any) -> None:
    """Save the state after some steps, in several shards."""
    model, optimizer = trained(steps)
    checkpoint.save(
        store,
        optimizer=optimizer,
        model=model,
        extra={"steps": steps, "rng": torch.arange(9, device="cpu")},
        max_shard_bytes=300,
        **options,
    )


class StoreConformance:
    """The promises of a `Store`.

    Attributes:
        large_bytes: size of an object that the store does not hold in memory while it is written.
    """

    large_bytes = 3 << 20

    def get(self, store: Any, name: str) -> bytes | None:
        """Return an object's bytes without the store's help."""
        raise NotImplementedError

    def set(self, store: Any, name: str, data: bytes) -> None:
        """Write an object without the store's help."""
        raise NotImplementedError

    def test_an_object_appears_when_it_is_committed(self, store: Store) -> None:
        with store.write("x") as out:
            out.write(b"abc")
            out.write(memoryview(b"de"))
            assert self.get(store, "x") is None
            assert store.names() == []
            out.commit()
            assert self.get(store, "x") == b"abcde"
        assert self.get(store, "x") == b"abcde"
        assert store.names() == ["x"]

    @pytest.mark.parametrize("large", [False, True])
    def test_an_exception_publishes_nothing(self, store: Store, large: bool) -> None:
        def interrupted() -> NoReturn:
            with store.write("x") as out:
                for _ in range(8):
                    out.write(b"new" * (self.large_bytes // 24 if large else 1))
                raise _CallerError

        for before in (None, b"old"):
            if before is not None:
                self.set(store, "x", before)
            with pytest.raises(_CallerError):
                interrupted()
            assert self.get(store, "x") == before

    def test_a_large_object_comes_back(self, store: Store) -> None:
        piece = bytes(range(256)) * (self.large_bytes // 8 // 256 + 1)
        with store.write("x") as out:
            for _ in range(8):
                out.write(piece)
            out.commit()
        assert self.get(store, "x") == piece * 8
        start = len(piece) - 3
        assert store.read_range("x", start, start + 6) == piece[-3:] + piece[:3]

    def test_an_object_is_replaced_whole(self, store: Store) -> None:
        self.set(store, "x", b"old")
        with store.write("x") as out:
            out.write(b"newer")
            assert store.read_range("x", 0, 9) == b"old"
            out.commit()
        assert store.read_range("x", 0, 9) == b"newer"
        for use in (out.commit, lambda: out.write(b"")):
            with pytest.raises(ValueError, match="committed or discarded"):
                use()
        out.discard()
        assert store.size("x") == 5

    def test_an_empty_object_exists(self, store: Store) -> None:
        put(store, "x", b"")
        assert (store.names(), store.size("x")) == (["x"], 0)
        assert store.read_range("x", 0, 4) == b""

    @pytest.mark.parametrize(
        ("start", "stop", "expected"),
        [(0, 5, b"abcde"), (1, 3, b"bc"), (3, 99, b"de"), (5, 9, b""), (7, 9, b""), (2, 2, b"")],
    )
    def test_ranges(self, store: Store, start: int, stop: int, expected: bytes) -> None:
        self.set(store, "x", b"abcde")
        assert store.read_range("x", start, stop) == expected
        out = bytearray(b"-" * (stop - start))
        assert store.read_into("x", start, memoryview(out)) == len(expected)
        assert out == expected.ljust(stop - start, b"-")

    def test_what_was_written_may_change_at_once(self, store: Store) -> None:
        data = bytearray(b"abc" * (self.large_bytes // 12))
        with store.write("x") as out:
            for _ in range(4):
                data[:] = b"abc" * (len(data) // 3)
                out.write(memoryview(data))
                data[:] = bytes(len(data))
            out.commit()
        assert self.get(store, "x") == b"abc" * (len(data) // 3) * 4

    @pytest.mark.parametrize("again", [False, True])
    def test_a_reader_reads_any_range_of_a_large_object(self, store: Store, again: bool) -> None:
        content = bytes(range(251)) * (self.large_bytes // 251)
        put(store, "x", content)
        memory = transfer_memory(1 << 20)
        with store.reader("x", again=again) as reader:
            for start, size in ((0, 1 << 20), (4096, 8192), (5, 100_000), (len(content) - 9, 99)):
                found = reader.read(start, start + size, memory)
                assert bytes(found) == content[start : start + size]
            assert len(reader.read(len(content) + 5, len(content) + 9, memory)) == 0

    def test_what_others_write_is_seen_at_once(self, store: Store) -> None:
        assert store.names() == []
        for data in (b"a", b"bcd"):
            self.set(store, "x", data)
            assert (store.names(), store.size("x")) == (["x"], len(data))
            assert store.read_range("x", 0, 9) == data
        self.set(store, "w", b"")
        assert store.names() == ["w", "x"]

    def test_missing_objects(self, store: Store) -> None:
        with pytest.raises(FileNotFoundError):
            store.read_range("x", 0, 1)
        with pytest.raises(FileNotFoundError):
            store.read_into("x", 0, memoryview(bytearray(1)))
        with pytest.raises(FileNotFoundError), store.reader("x") as reader:
            reader.read(0, 1, transfer_memory(4096))
        store.delete("x")
        assert (store.size("x"), store.version("x"), store.modified("x")) == (None, ABSENT, None)

    def test_deleted_objects_are_gone(self, store: Store) -> None:
        put(store, "x", b"abc")
        put(store, "y", b"")
        store.delete("x")
        assert self.get(store, "x") is None
        assert store.names() == ["y"]

    def test_when_an_object_was_written(self, store: Store) -> None:
        put(store, "x", b"abc")
        modified = store.modified("x")
        assert modified is None or abs(modified - time.time()) < CLOCK_SECONDS

    def test_a_commit_replaces_only_what_it_expects(self, store: Store) -> None:
        put(store, "x", b"first", expected=ABSENT)
        seen = store.version("x")
        put(store, "x", b"second", expected=seen)
        for expected in (ABSENT, seen):
            with pytest.raises(ConcurrentSaveError, match="in the meantime"):
                put(store, "x", b"third", expected=expected)
            assert self.get(store, "x") == b"second"
        with pytest.raises(ConcurrentSaveError):
            put(store, "y", b"", expected=seen)
        assert self.get(store, "y") is None

    def test_unsafe_names_are_refused_everywhere(self, store: Store) -> None:
        uses: tuple[Callable[[str], object], ...] = (
            store.size,
            store.version,
            store.modified,
            store.delete,
            store.write,
            store.folder,
            lambda name: store.read_range(name, 0, 1),
        )
        for use, name in itertools.product(uses, ("", "..", "../x", "a/b", "/etc", ".a", "é")):
            with pytest.raises(UnsafeNameError):
                use(name)

    def test_folders(self, store: Store) -> None:
        assert store.folders() == []
        inner = store.folder("b")
        assert (inner.names(), inner.size("x")) == ([], None)
        put(inner, "x", b"abc")
        put(store, "y", b"")
        assert (store.folders(), store.names()) == (["b"], ["y"])
        inner.remove_folder()
        assert inner.read_range("x", 0, 3) == b"abc"
        inner.delete("x")
        inner.remove_folder()
        inner.remove_folder()
        assert (store.folders(), store.names()) == ([], ["y"])

    def test_what_a_killed_writer_leaves_is_invisible_and_removable(self, store: Store) -> None:
        out = store.write("x")
        out.write(b"a" * self.large_bytes)
        store.discard_leftovers(older_than_seconds=CLOCK_SECONDS)
        assert store.names() == []
        store.discard_leftovers()
        assert store.names() == []
        out.discard()

    def test_several_threads_may_write_and_read(self, store: Store) -> None:
        def work(name: str) -> bytes:
            put(store, name, name.encode() * 1000)
            return store.read_range(name, 0, 10_000)

        names = [f"n{index}" for index in range(12)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, names)) == [name.encode() * 1000 for name in names]
        assert store.names() == sorted(names)

    def test_a_checkpoint_is_saved_loaded_and_replaced(self, store: Store) -> None:
        assert not checkpoint.exists(store)
        save(store, 2)
        assert loaded_steps(store) == 2
        with pytest.raises(CheckpointExistsError):
            save(store, 3)
        save(store, 3, overwrite=True)
        assert loaded_steps(store) == 3
        files = {file.name for file in checkpoint.open(store).manifest.files}
        assert set(store.names()) == files | {"luma.json"}

    def test_a_checkpoint_may_build_on_one_beside_it(self, store: Store) -> None:
        """Differences to another checkpoint in the same folder are found by its name."""
        first, second = store.folder("1"), store.folder("2")
        assert first.place != second.place
        assert first.beside("2").place == second.place
        with pytest.raises(UnsafeNameError):
            first.beside("../2")
        model, expected = trained(20)
        checkpoint.save(first, optimizer=expected)
        train(model, expected, 1)
        saved = checkpoint.save(second, optimizer=expected, base=first)
        assert saved.base is not None
        assert checkpoint.verify(second).ok
        loaded = trained(1)[1]
        checkpoint.load(second, optimizer=loaded)
        for state in expected.parameter_states():
            found = loaded.parameter_state(state.name).fields
            assert all(torch.equal(found[key], field) for key, field in state.fields.items())

    def test_an_interrupted_save_leaves_the_previous_checkpoint(self, store: Store) -> None:
        def interrupt(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > total_bytes // 2:
                raise _CallerError

        save(store, 2)
        before = store.names()
        with pytest.raises(_CallerError):
            save(store, 3, overwrite=True, progress=interrupt)
        assert loaded_steps(store) == 2
        assert store.names() == before

    @pytest.mark.parametrize("occupied", [False, True])
    def test_of_two_savers_one_wins_and_the_other_is_told(
        self, store: Store, occupied: bool
    ) -> None:
        other: list[LumaError | None] = []

        def meanwhile(done_bytes: int, total_bytes: int) -> None:
            if not other and done_bytes > total_bytes // 2:
                other.append(None)
                other[0] = _error_of(lambda: save(store, 4, overwrite=True))

        if occupied:
            save(store, 2)
        first = _error_of(lambda: save(store, 3, overwrite=True, progress=meanwhile))
        told = [error for error in (first, other[0]) if error is not None]
        assert [type(error) for error in told] == [ConcurrentSaveError]
        assert loaded_steps(store) == (3 if first is None else 4)

    def test_the_next_save_after_a_killed_one_is_whole(self, store: Store) -> None:
        save(store, 2)
        model = next(name for name in store.names() if name.startswith("optimizer-"))
        left = store.read_range(model, 0, 1 << 20)
        self.set(store, "optimizer-g2-00001-of-00009.safetensors", left)
        save(store, 3, overwrite=True)
        assert loaded_steps(store) == 3


def _error_of(action: Callable[[], object]) -> LumaError | None:
    try:
        action()
    except LumaError as error:
        return error
    return None
