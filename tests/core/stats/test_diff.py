"""Differences of two states equal whole-tensor numpy, and `identical` means bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from luma_core import stats
from luma_core.codecs import FP32, Luma16M, Luma16V
from luma_core.errors import StateMismatchError
from luma_core.stats import ErrorStats


def check_error(got: ErrorStats, a: np.ndarray, b: np.ndarray) -> None:
    a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    assert got.elements == a.size
    assert got.differing == np.count_nonzero(a != b)
    rms = math.sqrt(np.mean((b - a) ** 2)) / math.sqrt(np.mean(a**2))
    assert got.relative_rms == pytest.approx(rms, rel=1e-12)
    assert got.relative_max == np.abs(b - a).max() / np.abs(a).max()
    nonzero = a != 0
    assert got.element_max == (np.abs(b - a)[nonzero] / np.abs(a)[nonzero]).max()


@pytest.mark.parametrize("shape", [(), (7,), (5, 33), (3, 200), (600, 640)], ids=str)
def test_equals_whole_tensor_computation(shape, source, state, moments) -> None:
    m, v = (x + 1e-5 for x in moments(*shape))
    exact = state("w", m, v, FP32(), FP32(), step=4)
    coded = state("w", m, v, Luma16M(), Luma16V(block_size=None), step=4)
    result = stats.diff(source([exact]), source([coded]))
    (entry,) = result.parameters
    assert not entry.identical
    assert not result.identical
    values = []
    for got in entry.moments:
        a, b = (one.decode(got.moment).double().numpy() for one in (exact, coded))
        check_error(got.error, a, b)
        assert got.codes_differ_share is None
        assert (got.codec_a, got.codec_b) == ("fp32", coded.codecs[got.moment].name)
        values.append((a, b))
    (m_a, m_b), (v_a, v_b) = values
    correct1, correct2 = 1 - 0.9**4, 1 - 0.99**4
    updates = [m / correct1 / (np.sqrt(v / correct2) + 1e-8) for m, v in ((m_a, v_a), (m_b, v_b))]
    check_error(entry.update, *updates)
    assert result.total.update == entry.update


def test_equal_states_are_identical_even_with_nan(source, state, moments) -> None:
    one = state("w", *moments(5, 33), FP32(), Luma16V())
    one.fields["exp_avg.value"][0, 0] = math.nan
    copy = replace(one, fields={key: x.clone() for key, x in one.fields.items()})
    result = stats.diff(source([one]), source([copy]))
    assert result.identical
    assert result.total.identical_parameters == 1
    assert result.parameters[0].moments[0].error.nonfinite == 1
    assert result.parameters[0].update.relative_rms == 0.0
    json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize(
    "change", ["step", "noise_key", "nonfinite", "codes", "exponent", "minus zero", "codec"]
)
def test_any_changed_bit_is_not_identical(change, source, state, moments) -> None:
    one = state("w", *moments(5, 33), Luma16M(), FP32())
    one.fields["exp_avg_sq.value"][0, 0] = 0.0
    other = replace(one, fields={key: x.clone() for key, x in one.fields.items()})
    if change in ("step", "noise_key", "nonfinite"):
        other = replace(other, **{change: 77})
    elif change == "codes":
        other.fields["exp_avg.codes"][-1, -1] ^= 1
    elif change == "exponent":
        other.fields["exp_avg.exponent"][0] += 1
    elif change == "minus zero":
        other.fields["exp_avg_sq.value"][0, 0] = -0.0
    else:
        other = replace(other, codecs={**other.codecs, "exp_avg_sq": FP32(block_size=8)})
    result = stats.diff(source([one]), source([other]))
    assert not result.parameters[0].identical
    assert not result.identical


def test_share_of_codes_that_differ(source, state, moments) -> None:
    one = state("w", *moments(4, 50), Luma16M(), Luma16V())
    other = replace(one, fields={key: x.clone() for key, x in one.fields.items()})
    other.fields["exp_avg.codes"][1, 10:30] ^= 1
    first, second = stats.diff(source([one]), source([other])).parameters[0].moments
    assert first.codes_differ_share == 20 / 200
    assert second.codes_differ_share == 0.0


def test_names_in_one_only_and_pattern(source, state, moments) -> None:
    made = {name: state(name, *moments(4), FP32(), FP32()) for name in ("a", "b", "c", "x.a")}
    left, right = (
        source([made[n] for n in ("a", "b")]),
        source([made[n] for n in ("c", "b", "x.a")]),
    )
    result = stats.diff(left, right)
    assert (result.only_in_a, result.only_in_b) == (("a",), ("c", "x.a"))
    assert [entry.name for entry in result.parameters] == ["b"]
    assert not result.identical
    assert stats.diff(left, right, pattern="b").identical
    seen: list[tuple[int, int]] = []
    stats.diff(left, left, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_names_match_under_wrappers(prefix, source, state, moments) -> None:
    names = ("layer.weight", "layer.bias")
    made = [state(name, *moments(4), FP32(), FP32()) for name in names]
    plain = source(made)
    wrapped = source([replace(entry, name=prefix + entry.name) for entry in made])
    for a, b in ((plain, wrapped), (wrapped, plain)):
        result = stats.diff(a, b)
        assert result.identical
        assert [entry.name for entry in result.parameters] == a.parameter_names()
        assert result.only_in_a == result.only_in_b == ()
    chosen = stats.diff(plain, wrapped, pattern="*.bias")
    assert [entry.name for entry in chosen.parameters] == ["layer.bias"]
    assert chosen.identical


def test_names_that_only_wrappers_tell_apart_are_refused(source, state, moments) -> None:
    made = [state(name, *moments(4), FP32(), FP32()) for name in ("w", "_orig_mod.w")]
    other = replace(made[0], name="_fsdp_wrapped_module.w")
    with pytest.raises(StateMismatchError, match="wrappers"):
        stats.diff(source(made), source([other]))


def test_what_cannot_be_compared_says_why(source, state, moments) -> None:
    a = source([state("w", *moments(4), FP32(), FP32()), state("u", *moments(2), FP32(), FP32())])
    idle = replace(a.states[1], step=0, codecs={}, fields={})
    b = source([state("w", *moments(5), FP32(), FP32()), idle])
    result = stats.diff(a, b)
    shape, state_missing = result.parameters
    assert shape.not_compared == "a has shape [4], b has [5]"
    assert state_missing.not_compared == "a has exp_avg, exp_avg_sq; b has no state"
    assert not shape.identical
    assert not state_missing.identical
    assert shape.moments == ()
    assert result.total.update.elements == 0
    assert result.total.update.relative_rms is None


def test_errors_against_zero_are_not_made_up(source, state) -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    states = [state("w", x, x, FP32(), FP32()) for x in (zero, one)]
    error = stats.diff(source(states[:1]), source(states[1:])).parameters[0].moments[0].error
    assert (error.relative_rms, error.relative_max, error.element_max) == (None, None, None)
    assert error.differing == 4
    same = stats.diff(source(states[:1]), source(states[:1])).parameters[0].moments[0].error
    assert (same.relative_rms, same.relative_max, same.element_max) == (0.0, 0.0, None)
