"""Block scales: their statistics and histograms, of one parameter and of many, of every codec."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch

from luma_core import stats
from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    BlockGrid,
    Codec,
    CoStateM,
    LogV,
    Luma16M,
    Luma16V,
    RootV,
    TableM,
)
from luma_core.stats import ScaleHistogram
from luma_core.stats.scales import ScaleCounts, Scales, scale_stats


def octaves(scales: np.ndarray) -> tuple[dict[int, int], int]:
    """Count scales by exponent, one after another, and the zeros."""
    sizes = [float(x) for x in scales.reshape(-1) if math.isfinite(x)]
    counts = Counter(math.frexp(x)[1] - 1 for x in sizes if x)
    return dict(sorted(counts.items())), sizes.count(0.0)


def bins(histogram: ScaleHistogram) -> dict[int, int]:
    return {histogram.first + i: count for i, count in enumerate(histogram.counts) if count}


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0, 0.0],
        [1.0],
        [1.0, np.nextafter(np.float32(2), np.float32(0)), 2.0, 0.5, 0.0],
        [1e-45, 3e38, 2.0**-126, np.nextafter(np.float32(2.0**-126), np.float32(0))],
        [math.inf, math.nan, 0.25],
    ],
    ids=str,
)
def test_bins_are_powers_of_two(values) -> None:
    scales = np.array(values, dtype=np.float32)
    found = scale_stats(scales).histogram
    counts, zeros = octaves(scales)
    assert (bins(found), found.zeros) == (counts, zeros)
    if counts:
        assert (found.first, len(found.counts)) == (min(counts), max(counts) - min(counts) + 1)
    else:
        assert found == ScaleHistogram(0, (), zeros)


def test_histograms_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.exp(9 * torch.randn(n, generator=generator)).numpy() for n in (1, 50, 700)]
    together = ScaleCounts()
    for part in (*parts, np.zeros(3, dtype=np.float32)):
        together.merge(scale_stats(part).histogram)
    whole = scale_stats(np.concatenate([*parts, np.zeros(3, dtype=np.float32)])).histogram
    assert together.result() == whole
    assert sum(whole.counts) + whole.zeros == 754


@pytest.mark.parametrize("blocks", [1, 2, 5, 1000, 1001])
def test_total_median_of_scales_is_within_its_promise(blocks) -> None:
    generator = torch.Generator().manual_seed(blocks)
    scales = [torch.exp(4 * torch.randn(blocks, generator=generator)) for _ in range(3)]
    scales[1][0] = torch.inf
    total = Scales()
    for scale in scales:
        total.add(scale.numpy(), scale_stats(scale.numpy()))
    found, values = total.result(), torch.cat(scales).double()
    assert (found.blocks, found.nonfinite) == (3 * blocks, 1)
    values = values[values.isfinite()]
    assert (found.min, found.max) == (values.min().item(), values.max().item())
    assert 0.999 * values.quantile(0.5) <= found.median <= values.quantile(0.5)
    assert bins(found.histogram) == octaves(values.numpy())[0]


@pytest.mark.parametrize(
    "codec",
    [
        Luma16M(),
        Luma16M(block_size=None),
        FP8E4M3(block_size=64),
        FP8E4M3(block_size=None),
        TableM(),
        CoStateM(),
    ],
    ids=lambda c: f"{c.name}@{c.block_size}",
)
@pytest.mark.parametrize(
    "other", [Luma16V(), RootV(), LogV(), FP32(), BF16()], ids=lambda c: c.name
)
def test_every_codec_has_the_histogram_of_its_scales(
    codec: Codec, other: Codec, source, state, moments
) -> None:
    one = state("w", *moments(6, 300), codec, other)
    report = stats.compute(source([one]))
    for got, stored in zip(report.parameters[0].moments, one.codecs.values(), strict=True):
        fields, grid = one.moment_fields(got.moment), stored.grid((6, 300))
        if not isinstance(stored, FP32 | BF16):
            scales = stored.scales(fields).numpy()
            assert got.scale is not None
            assert (bins(got.scale.histogram), got.scale.histogram.zeros) == octaves(scales)
            assert got.scale.blocks == scales.size == math.prod(grid.block_shape())
        else:
            assert got.scale is None
    json.dumps(asdict(report), allow_nan=False)


def test_one_block_per_tensor_has_one_scale(source, state, moments) -> None:
    one = state("w", *moments(5, 33), Luma16M(block_size=None), Luma16V(block_size=None))
    scale = stats.compute(source([one])).parameters[0].moments[0].scale
    assert BlockGrid.of((5, 33), None).block_shape() == ()
    assert scale is not None
    assert scale.blocks == 1
    assert scale.min == scale.median == scale.max
    assert bins(scale.histogram) == {int(math.log2(scale.max)): 1}
