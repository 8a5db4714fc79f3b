"""Statistics equal what whole-tensor numpy computes, whatever the codec, shape and values."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from luma_core import stats
from luma_core.codecs import BF16, FP32, TILE_ELEMENTS, Luma16M, Luma16V
from luma_core.codecs.loggrid import EXPONENT_NONFINITE
from luma_core.optim import LUMA
from luma_core.stats import HISTOGRAM_EDGES, MomentStats, QuantityStats

SHAPES = [(), (0,), (1,), (7,), (5, 33), (3, 200), (2, 0, 4), (2, 3, 5, 7), (300,), (64, 128)]
PAIRS = [
    (Luma16M(), Luma16V()),
    (Luma16M(block_size=None), Luma16V(block_size=None)),
    (Luma16M(block_size=96), Luma16V(block_size=64)),
    (Luma16M(block_size=None), FP32()),
    (FP32(), FP32()),
    (BF16(block_size=16), Luma16V(block_size=32)),
]


def check_quantity(got: QuantityStats, x: np.ndarray, histogram) -> None:
    x = x.astype(np.float64).reshape(-1)
    finite = np.abs(x[np.isfinite(x)])
    assert (got.elements, got.nonfinite) == (x.size, x.size - finite.size)
    if finite.size:
        assert got.rms == pytest.approx(math.sqrt(np.mean(finite**2)), rel=1e-12)
        assert got.max == finite.max()
    else:
        assert got.rms is None
        assert got.max is None
    assert (list(got.histogram.counts), got.histogram.zeros) == histogram(x)
    binned = sum(got.histogram.counts) + got.histogram.below + got.histogram.above
    assert binned + got.histogram.zeros == finite.size


def check_codes(got: MomentStats, codec, codes: torch.Tensor) -> None:
    size = codec.magnitudes(codes).numpy().reshape(-1)
    assert got.zero_share == np.mean(size == 0)
    assert got.saturated_share == np.mean(size == codec.top_code)
    _, counts = np.unique(codes.numpy(), return_counts=True)
    share = counts / counts.sum()
    assert got.entropy_bits == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-12)


@pytest.mark.parametrize(
    "codecs", PAIRS, ids=lambda c: "-".join(f"{x.name}@{x.block_size}" for x in c)
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_whole_tensor_computation(shape, codecs, source, state, moments, histogram) -> None:
    one = state("w", *moments(*shape), *codecs, step=5, nonfinite=2)
    report = stats.compute(source([one]))
    (entry,) = report.parameters
    assert (entry.name, entry.shape, entry.step, entry.nonfinite) == ("w", shape, 5, 2)
    assert entry.elements == math.prod(shape)
    m, v = (one.decode(name).double().numpy() for name in ("exp_avg", "exp_avg_sq"))
    for got, x, codec in zip(entry.moments, (m, v), codecs, strict=True):
        assert got.codec == codec.name
        check_quantity(got.value, x, histogram)
        fields = one.moment_fields(got.moment)
        if codec.top_code is None:
            assert got.scale is got.saturated_share is got.entropy_bits is None
            assert got.zero_share == (np.mean(x == 0) if x.size else None)
            continue
        scale = codec.scales(fields).double().numpy().reshape(-1)
        assert got.scale is not None
        assert got.scale.blocks == scale.size
        if scale.size:
            assert got.scale.min == scale.min()
            assert got.scale.median == np.median(scale)
            assert got.scale.max == scale.max()
        if x.size:
            check_codes(got, codec, fields["codes"])
        else:
            assert got.zero_share is got.saturated_share is got.entropy_bits is None
    update = m / (1 - 0.9**5) / (np.sqrt(v / (1 - 0.99**5)) + 1e-8)
    check_quantity(entry.update, update, histogram)


def test_bits_are_measured_from_every_state_tensor() -> None:
    model = {"w": torch.nn.Parameter(torch.ones(40, 200)), "b": torch.nn.Parameter(torch.ones(9))}
    optimizer = LUMA(model.items(), min_compress_elements=10)
    for param in model.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    report = stats.compute(optimizer)
    for entry in report.parameters:
        tensors = optimizer.state[model[entry.name]].values()
        assert entry.state_bytes == sum(x.numel() * x.element_size() for x in tensors)
        assert entry.bits_per_parameter == 8 * entry.state_bytes / entry.elements
    assert report.total.state_bytes == sum(entry.state_bytes for entry in report.parameters)
    assert report.total.bits_per_parameter == 8 * report.total.state_bytes / 8009


def test_parameters_without_state_are_listed_with_zero_bytes() -> None:
    params = {"used": torch.nn.Parameter(torch.ones(8)), "idle": torch.nn.Parameter(torch.ones(3))}
    optimizer = LUMA(params.items())
    params["used"].grad = torch.ones(8)
    optimizer.step()
    report = stats.compute(optimizer)
    idle = report.parameters[1]
    assert (idle.name, idle.state_bytes, idle.bits_per_parameter, idle.step) == ("idle", 0, 0.0, 0)
    assert idle.moments == ()
    assert idle.update.elements == 0
    assert (report.total.parameters, report.total.parameters_without_state) == (2, 1)
    assert report.total.update.elements == 8


def test_totals_add_up_over_parameters(source, state, moments, histogram) -> None:
    states = [
        state("a", *moments(5, 33, seed=1), *PAIRS[0], step=2),
        state("b", *moments(3, 200, seed=2), *PAIRS[1], step=9),
        state("c", *moments(7, seed=3), FP32(), FP32(), step=9),
    ]
    total = stats.compute(source(states)).total
    assert (total.parameters, total.elements, total.step) == (3, 165 + 600 + 7, 9)
    for got in total.moments:
        decoded = [one.decode(got.moment).numpy().reshape(-1) for one in states]
        check_quantity(got.value, np.concatenate(decoded), histogram)
        coded = [one for one in states if one.codecs[got.moment].top_code is not None]
        codes = torch.cat([one.moment_fields(got.moment)["codes"].view(-1) for one in coded])
        codec = coded[0].codecs[got.moment]
        size = codec.magnitudes(codes).numpy()
        zeros = (size == 0).sum() + (decoded[2] == 0).sum()
        assert got.zero_share == zeros / total.elements
        check_codes(replace(got, zero_share=np.mean(size == 0)), codec, codes)
        scales = [one.codecs[got.moment].scales(one.moment_fields(got.moment)) for one in coded]
        scale = torch.cat([part.view(-1) for part in scales])
        assert got.scale is not None
        assert (got.scale.min, got.scale.max) == (scale.min().item(), scale.max().item())
        assert got.scale.median == np.median(scale.double().numpy())
        assert got.codec == "+".join(sorted({"fp32", codec.name}))


@pytest.mark.parametrize(
    "codecs", PAIRS[:2] + PAIRS[4:], ids=lambda c: f"{c[0].name}@{c[0].block_size}"
)
def test_nonfinite_state_is_counted_apart(codecs, source, state, moments, histogram) -> None:
    one = state("w", *moments(40, 64), *codecs)
    for moment, codec in one.codecs.items():
        fields = one.moment_fields(moment)
        if codec.top_code is None:
            fields["value"].view(-1)[:1] = math.nan if moment == "exp_avg" else math.inf
        else:
            fields["exponent"].view(-1)[:1] = EXPONENT_NONFINITE
    report = stats.compute(source([one]))
    entry = report.parameters[0]
    for got in entry.moments:
        check_quantity(got.value, one.decode(got.moment).numpy(), histogram)
        assert got.value.nonfinite > 0
        if got.scale is not None:
            assert got.scale.nonfinite == 1
            assert got.scale.blocks >= 1
    m, v = (one.decode(name).double().numpy() for name in ("exp_avg", "exp_avg_sq"))
    with np.errstate(invalid="ignore"):
        update = m / (1 - 0.9**3) / (np.sqrt(v / (1 - 0.99**3)) + 1e-8)
    check_quantity(entry.update, update, histogram)
    json.dumps(asdict(report), allow_nan=False)


def test_magnitudes_outside_the_edges_are_counted(source, state) -> None:
    m = torch.tensor([0.0, 1e-40, -1e-33, 1e-3, 3e38, 1e-45])
    report = stats.compute(source([state("w", m, m.abs(), FP32(), FP32())]))
    found = report.parameters[0].moments[0].value.histogram
    assert (found.zeros, found.below, found.above, sum(found.counts)) == (1, 3, 1, 1)
    index = found.counts.index(1)
    assert HISTOGRAM_EDGES[index] <= math.log10(m[3].item()) < HISTOGRAM_EDGES[index + 1]


def test_state_before_the_first_step_has_an_update(source, state) -> None:
    one = state("w", torch.ones(4), torch.full((4,), 4.0), FP32(), FP32(), step=0)
    update = stats.compute(source([one])).parameters[0].update
    assert update.max == pytest.approx(0.5)


def test_each_parameter_uses_the_options_of_its_group(source, state) -> None:
    ones = (torch.ones(4), torch.ones(4), FP32(), FP32())
    groups = [
        {"betas": [0.0, 0.0], "eps": 1.0},
        {"betas": [0.0, 0.0], "eps": 3.0},
        {"momentum": 0.9},
    ]
    states = [state(f"w{i}", *ones, group=i) for i in range(3)]
    updates = [entry.update for entry in stats.compute(source(states, groups)).parameters]
    assert [update.max for update in updates] == [0.5, 0.25, None]
    assert updates[2].elements == 0


def test_pattern_chooses_parameters_and_progress_follows(source, state, moments) -> None:
    names = ["h.0.w", "h.0.b", "h.10.w", "head[0]"]
    made = source([state(name, *moments(4), FP32(), FP32()) for name in names])
    seen: list[tuple[int, int]] = []
    report = stats.compute(made, pattern="h.*.w", progress=lambda *at: seen.append(at))
    assert [entry.name for entry in report.parameters] == ["h.0.w", "h.10.w"]
    assert seen == [(1, 2), (2, 2)]
    assert report.total.elements == 8
    assert stats.compute(made, pattern="H.*").parameters == ()
    assert stats.compute(made, pattern="head[[]0]").total.parameters == 1


def test_nothing_to_measure_gives_empty_totals(source) -> None:
    total = stats.compute(source([])).total
    assert (total.parameters, total.elements, total.bits_per_parameter) == (0, 0, None)
    assert total.update.rms is None
    assert total.moments == ()


@pytest.mark.parametrize("shape", [(3, TILE_ELEMENTS // 2 + 77), (2, TILE_ELEMENTS + 5000)])
@pytest.mark.parametrize("block_size", [128, None, 96])
def test_tensors_of_many_tiles(shape, block_size, source, state, moments, histogram) -> None:
    codecs = (Luma16M(block_size=block_size), Luma16V(block_size=128))
    one = state("w", *moments(*shape), *codecs)
    entry = stats.compute(source([one])).parameters[0]
    for got in entry.moments:
        check_quantity(got.value, one.decode(got.moment).numpy(), histogram)
        check_codes(got, one.codecs[got.moment], one.moment_fields(got.moment)["codes"])


def test_codes_in_another_memory_order_give_the_same_numbers(source, state, moments) -> None:
    one = state("w", *moments(4, 8, 6, 6), Luma16M(), Luma16V())
    fields = {
        key: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
        for key, x in one.fields.items()
    }
    assert not fields["exp_avg.codes"].is_contiguous()
    assert stats.compute(source([replace(one, fields=fields)])) == stats.compute(source([one]))
