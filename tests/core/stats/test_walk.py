"""Threads, tiles and reading ahead change nothing in the numbers, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from luma_core import stats
from luma_core.backends.native import native_cpu
from luma_core.codecs import BF16, FP32, TILE_ELEMENTS, Luma16M, Luma16V
from luma_core.stats import measure, tiles, walk

SHAPE = (5, TILE_ELEMENTS // 2 + 33)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def without_library(monkeypatch) -> None:
    for module in (measure, tiles, walk):
        monkeypatch.setattr(module, "native_cpu", lambda: None)


def several(source, state, moments):
    pairs = [(Luma16M(), Luma16V()), (Luma16M(block_size=None), Luma16V()), (FP32(), BF16())]
    return source(
        [state(f"p{i}", *moments(*SHAPE, seed=i), *pair) for i, pair in enumerate(pairs)]
        + [state("small", *moments(7), FP32(), FP32())]
    )


@pytest.mark.usefixtures("threads")
def test_numbers_do_not_depend_on_threads(source, state, moments, monkeypatch) -> None:
    made = several(source, state, moments)
    monkeypatch.setattr(walk, "_RUN_TILES", 1)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(stats.compute(made))
    assert found[0] == found[1] == found[2]


def test_numbers_do_not_depend_on_the_library(source, state, moments, monkeypatch) -> None:
    made = several(source, state, moments)
    assert native_cpu() is not None
    native = stats.compute(made)
    other = source([replace(one, step=one.step + 1) for one in made.states])
    difference = stats.diff(made, other)
    without_library(monkeypatch)
    assert stats.compute(made) == native
    assert stats.diff(made, other) == difference


class Watched(Mapping[str, Tensor]):
    """Fields that count the parameters of which something was read."""

    def __init__(self, name: str, fields: Mapping[str, Tensor], read: list[str]) -> None:
        self._name, self._fields, self._read = name, fields, read

    def __getitem__(self, key: str) -> Tensor:
        if self._name not in self._read:
            self._read.append(self._name)
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def watched(source, state, moments):
    read: list[str] = []
    states = [state(f"p{i}", *moments(64, 128), Luma16M(), Luma16V()) for i in range(6)]
    states = [replace(one, fields=Watched(one.name, one.fields, read)) for one in states]
    return source(states), read


@pytest.mark.parametrize(("held", "ahead"), [(0, 1), (2.5, 2), (100, 6)])
def test_reads_ahead_within_its_memory(held, ahead, source, state, moments, monkeypatch) -> None:
    made, read = watched(source, state, moments)
    size = 64 * (2 * 128 * 2 + 2)
    monkeypatch.setattr(walk, "READ_AHEAD_BYTES", int(held * size))
    most = 0

    def progress(done: int, _total: int) -> None:
        nonlocal most
        most = max(most, len(read) - (done - 1))

    stats.compute(made, progress=progress)
    assert read == [f"p{i}" for i in range(6)]
    assert most <= ahead


def test_an_error_ends_the_walk(source, state, moments, monkeypatch) -> None:
    made, read = watched(source, state, moments)
    monkeypatch.setattr(walk, "READ_AHEAD_BYTES", 0)

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stats.compute(made, progress=stop)
    assert read == ["p0", "p1"]


def test_what_a_thread_raises_is_raised(source, state, moments) -> None:
    one = state("w", *moments(64, 128), Luma16M(), Luma16V())
    fields = dict(one.fields)
    fields["exp_avg.codes"] = fields["exp_avg.codes"][:10]
    with pytest.raises(RuntimeError):
        stats.compute(source([replace(one, fields=fields)]))


@pytest.mark.parametrize("native", [True, False])
def test_temporaries_are_bounded_by_the_tile(native, source, state, monkeypatch) -> None:
    one = state("w", torch.ones(600, 2048), torch.ones(600, 2048), Luma16M(), Luma16V())
    seen: list[int] = []
    owner, name = (native_cpu(), "decode") if native else (Luma16M, "decode")
    decode = getattr(owner, name)

    def spy(codec, fields, *more, **options):
        if isinstance(codec, Luma16M):
            seen.append(fields["codes"].numel())
        return decode(codec, fields, *more, **options)

    if not native:
        without_library(monkeypatch)
    monkeypatch.setattr(owner, name, spy)
    stats.compute(source([one]))
    assert max(seen) <= TILE_ELEMENTS
    assert sum(seen) == 600 * 2048
