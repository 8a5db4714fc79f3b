"""What several parameters add up to, by the first parts of their names."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch

from luma_core import stats
from luma_core.codecs import FP32, Luma16M, Luma16V
from luma_core.errors import ConfigurationError
from luma_core.stats import METRICS, by_module, module_of, together, within

NAMES = ("h.0.w", "h.0.b", "h.1.w", "head")


@pytest.fixture
def report(source, state, moments):
    plain, coded = (FP32(), FP32()), (Luma16M(), Luma16V())
    states = [
        state(name, *moments(40, 64, seed=i), *(plain if name == "h.0.b" else coded), nonfinite=i)
        for i, name in enumerate(NAMES)
    ]
    return stats.compute(source(states))


def test_the_module_of_a_parameter() -> None:
    assert [module_of("a.b.c", depth) for depth in (1, 2, 3, 9)] == ["a", "a.b", "a.b", "a.b"]
    assert module_of("head", 3) == "head"


def test_modules_are_what_is_inside_them(report) -> None:
    for depth, names in ((1, ["h", "head"]), (2, ["h.0", "h.1", "head"])):
        found = by_module(report, depth)
        assert found.depth == depth
        assert [one.module for one in found.items] == names
        assert list(found.items) == [together(name, within(report, name)) for name in names]
    assert [one.name for one in within(report, "h.0")] == ["h.0.w", "h.0.b"]
    assert [one.name for one in within(report, "head")] == ["head"]
    assert within(report, "h.") == []


def test_all_parameters_together_are_the_total(report) -> None:
    whole, total = together("", report.parameters), report.total
    for name in ("parameters", "elements", "state_bytes", "bits_per_parameter", "nonfinite"):
        assert whole.metric(name) == getattr(total, name)
    assert whole.update.histogram == total.update.histogram.counts
    assert whole.update.scale is None
    for moment in total.moments:
        found = whole.moments[moment.moment]
        assert found.rms == pytest.approx(moment.value.rms)
        assert found.max == moment.value.max
        assert found.histogram == moment.value.histogram.counts
        assert found.zero_share == pytest.approx(moment.zero_share)
        assert found.saturated_share == pytest.approx(moment.saturated_share)
        assert found.scale is not None
        assert asdict(found.scale).items() <= asdict(moment.scale).items()


def test_scales_of_a_module_are_those_of_its_parameters(report) -> None:
    first, plain, _, head = report.parameters
    alone = together("h.0.b", [plain])
    assert {one.scale for one in alone.moments.values()} == {None}
    both = together("", [first, plain, head]).moments["exp_avg"].scale
    scales = [one.moments[0].scale for one in (first, head)]
    assert both.blocks == sum(one.blocks for one in scales)
    assert (both.min, both.max) == (min(o.min for o in scales), max(o.max for o in scales))
    counted = sum(both.histogram.counts) + both.histogram.zeros
    assert counted == both.blocks


def test_metrics_without_a_value_are_none_and_unknown_ones_refused(report) -> None:
    nothing = together("", [])
    assert nothing.metric("elements") == 0
    known = {name for name in METRICS if nothing.metric(name) is not None}
    assert known == {"parameters", "elements", "state_bytes", "nonfinite"}
    alone = together("h.0.b", [report.parameters[1]])
    assert alone.metric("exp_avg.saturated_share") is None
    for name in ("rms", "update.rmss", "exp_avg", "exp_avg.histogram", "moments"):
        with pytest.raises(ConfigurationError, match="is not known"):
            alone.metric(name)


def test_what_is_not_finite_is_left_out(source, state, moments) -> None:
    m, v = moments(4, 8)
    m[0, 0] = math.nan
    states = [state("a.w", m, v, FP32(), FP32()), state("a.b", *moments(4), FP32(), FP32())]
    report = stats.compute(source(states))
    (found,) = by_module(report, 1).items
    values = torch.cat([m.view(-1)[1:], moments(4)[0]]).double()
    assert found.moments["exp_avg"].nonfinite == 1
    assert found.metric("exp_avg.rms") == pytest.approx(values.square().mean().sqrt().item())
    json.dumps(asdict(found), allow_nan=False)


def test_tiny_moments_have_a_mean_square(source, state) -> None:
    tiny = torch.full((4,), 1e-38)
    states = [state(name, tiny, tiny, FP32(), FP32()) for name in ("a.x", "a.y")]
    (found,) = by_module(stats.compute(source(states)), 1).items
    assert found.metric("exp_avg_sq.rms") == pytest.approx(1e-38)
