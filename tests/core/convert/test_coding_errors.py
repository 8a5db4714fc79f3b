"""What a conversion's report counts, and what it warns of: no error hides behind large values."""

import logging
import math

import pytest
import torch
from torch import nn

from luma_core import convert
from luma_core.codecs import FP32
from luma_core.convert.coding_errors import CodingErrors
from luma_core.state import ParameterState

OPTIONS = {"betas": [0.9, 0.999], "eps": 1e-8}
KINDS = ("exp_avg", "exp_avg_sq", "update")


def measured(got, want, step=10, options=OPTIONS):
    """Return the errors by kind of moments that were decoded to ``got``."""
    fields = {f"{key}.value": x for key, x in zip(KINDS, got, strict=False)}
    codecs = dict.fromkeys(KINDS[:2], FP32())
    shape = tuple(want[0].shape)
    state = ParameterState("w", shape, "float32", 0, step, 0, codecs=codecs, fields=fields)
    errors = CodingErrors()
    errors.measure(state, dict(zip(KINDS, want, strict=False)), options)
    return {**errors.by_moment(), "update": errors.update()}


def expected(got, want, step, options):
    """Return (relative rms, zeroed, changed) of each kind, element by element in float64."""
    c1, c2 = (1 - beta**step for beta in options["betas"])
    got, want = [[x.double() for x in pair] for pair in (got, want)]
    for pair in (got, want):
        pair.append(pair[0] / c1 / ((pair[1] / c2).sqrt() + options["eps"]))
    for x, y in zip(got, want, strict=True):
        error = (x - y).abs()
        rms = math.sqrt(float(error.square().sum() / y.square().sum()))
        yield rms, int(((x == 0) & (y != 0)).sum()), int((error > 0.1 * y.abs()).sum())


def moments(shape, spread):
    first = torch.randn(shape) * 10 ** (torch.randn(shape) * spread)
    return [first, first.square() * torch.rand(shape).add(0.5)]


@pytest.mark.parametrize("spread", [0, 1, 3])
@pytest.mark.parametrize("shape", [(), (1,), (70_001,), (3, 5, 7)])
def test_counts_are_those_of_the_elements(shape, spread):
    torch.manual_seed(0)
    want = moments(shape, spread)
    got = [x * (1 + 0.2 * torch.randn(shape)).abs() for x in want]
    for x, share in zip(got, (0.1, 0.3), strict=True):
        x[torch.rand(shape) < share] = 0
    found = measured(got, want)
    for kind, (rms, zeroed, changed) in zip(KINDS, expected(got, want, 10, OPTIONS), strict=True):
        error = found[kind]
        assert (error.elements, error.zeroed) == (want[0].numel(), zeroed)
        assert error.changed == pytest.approx(changed, abs=2)
        assert error.relative_rms == pytest.approx(rms, rel=1e-3)


def test_a_tenth_is_the_bound_and_new_values_count():
    want = [torch.tensor([1.0, -1.0, 0.0, 0.0, 1e-40]), torch.ones(5)]
    got = [torch.tensor([1.09, -1.2, 0.0, 1e-9, 0.0]), torch.ones(5)]
    found = measured(got, want)["exp_avg"]
    assert (found.zeroed, found.changed) == (1, 3)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("scale", [1e-37, 1e-19, 1.0, 1e18])
def test_figures_stay_finite_at_any_scale(scale, eps):
    want = [torch.full((4,), scale), torch.full((4,), min(scale * scale, 3e38))]
    got = [want[0] * 0.5, torch.zeros(4)]
    for error in measured(got, want, options={**OPTIONS, "eps": eps}).values():
        assert math.isfinite(error.relative_rms)
        assert math.isfinite(error.relative_max)
    empty = [torch.zeros(0), torch.zeros(0)]
    assert measured(empty, empty)["update"].elements == 0


def spiked(folder, *, height=1e11):
    """Save healthy state in which one element of a block once had a huge gradient."""
    torch.manual_seed(0)
    param = nn.Parameter(torch.zeros(1, 128))
    optimizer = torch.optim.AdamW([("w", param)], weight_decay=0.0)
    for step in range(20):
        param.grad = torch.randn(1, 128) * 1e-3
        if step == 10:
            param.grad[0, 0] = height
        optimizer.step()
    torch.save(optimizer.state_dict(), folder / "a.pt")


@pytest.mark.parametrize("codec", convert.codec_choices())
def test_the_report_of_a_spike_is_that_of_what_was_written(tmp_path, codec, caplog):
    spiked(tmp_path)
    report = convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma", codec=codec)
    before, after = (convert.open_source(tmp_path / name).read("w") for name in ("a.pt", "c"))
    pairs = [[x.exp_avg, x.exp_avg_sq] for x in (after, before)]
    found = {**report.errors, "update": report.update}
    for kind, (rms, zeroed, changed) in zip(KINDS, expected(*pairs, 20, OPTIONS), strict=True):
        assert (found[kind].zeroed, found[kind].changed) == (zeroed, changed)
        assert found[kind].relative_rms == pytest.approx(rms, rel=1e-3, abs=1e-6)
    assert ("became 0 that were not" in caplog.text) == (report.errors["exp_avg_sq"].zeroed > 0)
    assert ("next update is" in caplog.text) == (report.update.relative_rms > 1)
    if codec in ("fp32", "bf16"):
        assert report.update.zeroed == report.update.changed == 0


def test_second_moments_that_vanish_are_told_aloud(caplog):
    second = torch.full((128,), 1e-6)
    first = torch.full((128,), 1e-3)
    found = measured([first, torch.zeros(128)], [first, second])
    assert found["update"].relative_rms > 100
    with caplog.at_level(logging.WARNING):
        convert.coding_errors.warn_of_errors(found, found["update"])
    assert "128 of 128 second moments became 0 that were not" in caplog.text
    assert "128 of 128 elements change by more than a tenth" in caplog.text
