"""Runs of values are measured to the same bits natively and in numpy, edges to the last unit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from luma_core.backends.native import native_cpu
from luma_core.rules.adamw import AdamFormula
from luma_core.stats import HISTOGRAM_EDGES, measure
from luma_core.stats.bins import ABOVE, BELOW, FIRST, NONFINITE, SLOTS, ZERO, octaves
from luma_core.stats.measure import CodeCounts

FORMULA = AdamFormula(0.271, 0.0199, 1e-8)
SIZES = [0, 1, 31, 32, 33, 1023, 1024, 1025, 5000]


def awkward(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two moments over all of float32, with zeros, subnormals and what is not finite."""
    generator = np.random.default_rng(seed)
    size = 10.0 ** generator.uniform(-44, 38, (2, n))
    first, second = (size * generator.choice([-1, 0, 1], (2, n), p=[0.4, 0.1, 0.5])).astype("f4")
    second = np.abs(second)
    odd = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38]
    first[: len(odd)] = odd[:n]
    second[-3:] = [np.inf, np.nan, 1e-45][:n]
    return first, second


def without_library(monkeypatch) -> None:
    monkeypatch.setattr(measure, "native_cpu", lambda: None)


@pytest.mark.parametrize("n", SIZES)
def test_native_equals_numpy(n, monkeypatch) -> None:
    first, second = awkward(n)
    assert native_cpu() is not None
    native = measure.measure(first), measure.measure_update(FORMULA, (first, second))
    without_library(monkeypatch)
    plain = measure.measure(first), measure.measure_update(FORMULA, (first, second))
    for got, expected in zip(native, plain, strict=True):
        assert got.slots.tolist() == expected.slots.tolist()
        assert got.slots.sum() == n
        assert (got.square_sum, got.largest) == (expected.square_sum, expected.largest)


def test_every_instruction_set_gives_the_same_bits() -> None:
    cpu = native_cpu()
    assert cpu is not None
    first, second = awkward(4099)
    found = []
    for name in cpu.native_status().instruction_sets:
        slots = np.zeros(SLOTS, dtype=np.int64)
        alone = cpu.summarize(first, octaves(32), slots, instruction_set=name)
        both = cpu.summarize(
            first,
            octaves(64),
            slots,
            second=second,
            corrections=(0.3, 0.02),
            eps=1e-8,
            instruction_set=name,
        )
        counts = np.zeros(1 << 16, dtype=np.uint32)
        cpu.count_codes(first.view(np.int16), counts, instruction_set=name)
        assert counts.tolist() == np.bincount(first.view(np.uint16), minlength=1 << 16).tolist()
        found.append((slots.tolist(), [(x.tobytes(), top) for x, top in (alone, both)]))
    assert all(one == found[0] for one in found)


def test_sums_are_those_of_float64(monkeypatch) -> None:
    first, second = (np.abs(x[np.isfinite(x)]) for x in awkward(300_000))
    first, second = first[:250_000], second[:250_000]
    update = first.astype("f8") / 0.271 / (np.sqrt(second.astype("f8") / 0.0199) + 1e-8)
    wide = first.astype("f8")
    assert measure.measure(first).square_sum == pytest.approx(math.fsum(wide * wide), rel=1e-13)
    got = measure.measure_update(FORMULA, (first, second))
    assert got.square_sum == pytest.approx(math.fsum(update * update), rel=1e-13)
    assert got.largest == update.max()


@pytest.mark.parametrize("bits", [32, 64])
def test_a_bin_holds_its_lower_edge_and_not_the_value_before(bits) -> None:
    floats = np.float32 if bits == 32 else np.float64
    for index, edge in enumerate(HISTOGRAM_EDGES):
        at = floats(10.0**edge)
        # The float nearest to an edge may lie on either side of it.
        below = np.nextafter(np.nextafter(at, floats(0)), floats(0))
        above = np.nextafter(np.nextafter(at, floats(np.inf)), floats(np.inf))
        slots = octaves(bits).slots(np.array([below, above], dtype=floats))
        assert np.flatnonzero(slots).tolist() == [BELOW + index, FIRST + index]
        if edge == int(edge) and edge >= 0:
            exact = octaves(bits).slots(np.array([-at], dtype=floats))
            assert np.flatnonzero(exact).tolist() == [FIRST + index]


@pytest.mark.parametrize("bits", [32, 64])
def test_slots_of_what_is_no_ordinary_number(bits) -> None:
    info = np.finfo(np.float32 if bits == 32 else np.float64)
    values = [0.0, -0.0, info.smallest_subnormal, info.smallest_normal, info.max]
    slots = octaves(bits).slots(np.array([*values, np.inf, -np.inf, np.nan], dtype=info.dtype))
    assert {i: int(slots[i]) for i in np.flatnonzero(slots)} == {
        ZERO: 2,
        BELOW: 2,
        ABOVE: 1,
        NONFINITE: 3,
    }


def test_code_counts_do_not_wrap_around(monkeypatch) -> None:
    counts = CodeCounts()
    counts._room = 10
    codes = torch.tensor([-1, 0, 5, 5, -32768, 32767], dtype=torch.int16)
    for _ in range(3):
        counts.add(codes)
    without_library(monkeypatch)
    counts.add(codes)
    total = counts.flush()
    assert {int(i): int(total[i]) for i in np.flatnonzero(total)} == {
        0: 4,
        5: 8,
        32767: 4,
        32768: 4,
        65535: 4,
    }
