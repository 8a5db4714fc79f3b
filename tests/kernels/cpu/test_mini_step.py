"""The native step of Adam-mini does what the eager step does, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import AdamMini
from luma_core.backends import registry
from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    Codec,
    Luma16M,
    Partition,
    SegmentMean,
    TableM,
)
from luma_core.rules import AdamMiniRule, ParameterStep
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

from .conftest import assert_like_eager as assert_like_adamw
from .conftest import assert_same_bits, clone, make_step

pytestmark = pytest.mark.usefixtures("exact_roots", "separate_operations")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FIRST: dict[str, Callable[..., Codec]] = {
    "fp32": FP32,
    "bf16": BF16,
    "luma16": Luma16M,
    "fp8": FP8E4M3,
    "table": TableM,
}
CUTS: dict[str, tuple[tuple[int, ...], Partition]] = {
    "rows": ((9, 256), Partition.rows((9, 256))),
    "ragged rows": ((5, 300), Partition.rows((5, 300))),
    "short rows": ((40, 48), Partition.rows((40, 48))),
    "long rows": ((2, 3000), Partition.rows((2, 3000))),
    "heads": ((16, 300), Partition.rows((16, 300), size=4)),
    "heads of a bias": ((512,), Partition(1, 1, 512, 1, ((4, 64), (256, 1)))),
    "qkv": ((24, 128), Partition(1, 1, 24, 128, ((2, 4), (2, 4), (8, 1)))),
    "by key head": ((32, 130), Partition(2, 1, 16, 130, ((2, 4), (1, 4), (4, 1)))),
    "parts of rows": ((6, 256), Partition.vectors((6, 4, 64))),
    "experts": ((3, 5, 128), Partition(3, 1, 5, 128, ((5, 1),))),
    "whole": ((7, 129), Partition.whole((7, 129))),
    "a long segment": ((3, 30_000), Partition.whole((3, 30_000))),
    "columns": ((66, 300), Partition.columns((66, 300))),
    "flat columns": ((70, 30), Partition.columns((70, 30))),
    "transposed heads": ((5, 160), Partition.columns((5, 160), size=8)),
    "transposed qkv": ((9, 24), Partition(1, 9, 24, 1, ((2, 4), (2, 4), (8, 1)))),
    "transposed experts": ((2, 10, 40), Partition(2, 10, 40, 1, ((40, 1),))),
    "transposed convolution": ((4, 6, 3, 3), Partition(1, 4, 6, 9, ((6, 1),))),
}


def mini_step(cut: str, first: str, *, block_size: int = 128, **options: Any) -> ParameterStep:
    shape, partition = CUTS[cut]
    codecs = {
        "exp_avg": FIRST[first](block_size=block_size),
        "exp_avg_sq": SegmentMean(partition=partition),
    }
    return make_step(shape, codecs, **{"spread": 2.0, **options})


def assert_like_eager(item: ParameterStep) -> int:
    """Bit for bit, on every instruction set; leaves the result in ``item``."""
    others = {name: clone(item) for name in native_library().instruction_sets}
    bad = AdamMiniRule().step_parameter(item)
    for name, other in others.items():
        assert cpu.unsupported_step(AdamMiniRule(), other) == ""
        found = cpu.step_parameter(other, instruction_set=name)
        assert found.dtype == torch.int64
        assert int(found) == int(bad), name
        assert_same_bits(other, item, name)
    return int(bad)


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_and_first_moment(cut: str) -> None:
    for first in FIRST:
        assert_like_eager(mini_step(cut, first))


@pytest.mark.parametrize("block_size", [8, 48, 1000, 2000])
@pytest.mark.parametrize("cut", ["rows", "long rows", "heads", "qkv", "columns", "a long segment"])
def test_sizes_of_blocks(cut: str, block_size: int) -> None:
    for first in ("luma16", "fp8", "table"):
        assert_like_eager(mini_step(cut, first, block_size=block_size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_parameters_and_gradients(dtype: torch.dtype) -> None:
    for cut, grad_dtype, stochastic in product(("rows", "columns"), DTYPES, (True, False)):
        item = mini_step(
            cut, "bf16", dtype=dtype, grad_dtype=grad_dtype, stochastic_rounding=stochastic
        )
        assert_like_eager(item)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True, "weight_decay": 0.0},
        {"betas": (0.3, 0.9), "eps": 1e-3, "step": 1},
        {"lr": torch.tensor(0.003)},
    ],
    ids=str,
)
def test_options(first: str, options: dict[str, Any]) -> None:
    for cut in ("heads", "columns"):
        assert_like_eager(mini_step(cut, first, **options))


@pytest.mark.parametrize("factor", [0.25, 0.3, 0.0])
def test_gradients_that_are_scaled(factor: float) -> None:
    for cut in ("heads", "columns"):
        item = replace(mini_step(cut, "luma16"), grad_factor=torch.tensor(factor))
        assert_like_eager(item)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 1e30])
def test_segments_that_are_not_finite(first: str, skip: bool, value: float) -> None:
    for cut in ("rows", "heads", "short rows", "columns"):
        item = mini_step(cut, first, skip_nonfinite=skip)
        item.grad[5, 2] = value
        before = clone(item)
        assert assert_like_eager(item) == 1
        segment = {"heads": slice(4, 8), "columns": (slice(None), 2)}.get(cut, 5)
        assert torch.equal(item.param[segment], before.param[segment]) == skip
        others = item.param.isfinite()
        others[segment] = True
        assert bool(others.all())


@pytest.mark.parametrize("cut", ["ragged rows", "short rows"])
def test_a_short_block_that_is_left_keeps_its_codes(cut: str) -> None:
    """What pads it is not stepped; codes of an infinite scale cannot be made again."""
    item = mini_step(cut, "table", skip_nonfinite=True)
    fields = item.moments["exp_avg"].fields
    fields["scale"][-1] = torch.inf
    item.grad[-3:] = torch.nan
    before = fields["codes"].clone()
    assert assert_like_eager(item) == 3
    assert torch.equal(fields["codes"][-1], before[-1])


@pytest.mark.parametrize("cut", ["rows", "a long segment", "columns"])
def test_threads_and_instruction_sets_give_equal_bits(cut: str) -> None:
    shape, partition = (330, 512), Partition.rows((330, 512), size=3)
    if cut != "rows":
        partition = Partition.columns(shape) if cut == "columns" else Partition.whole(shape)
    for first in ("bf16", "fp8"):
        codecs = {
            "exp_avg": FIRST[first](block_size=128),
            "exp_avg_sq": SegmentMean(partition=partition),
        }
        item = make_step(shape, codecs, dtype=torch.bfloat16)
        expected = clone(item)
        cpu.step_parameter(expected, threads=1)
        for name, threads in product(native_library().instruction_sets, (1, 2, 5)):
            other = clone(item)
            cpu.step_parameter(other, threads=threads, instruction_set=name)
            assert_same_bits(other, expected)


def test_elements_that_are_segments_take_adamws_step() -> None:
    for first, shape in product(FIRST, [(300,), (9, 200)]):
        codecs = {"exp_avg": FIRST[first](block_size=128), "exp_avg_sq": FP32(block_size=128)}
        item = make_step(shape, codecs, spread=2.0)
        assert cpu.unsupported_codecs(AdamMiniRule(), codecs) == ""
        assert_like_adamw(item)


@pytest.mark.parametrize("name", ["auto", "native"])
@pytest.mark.parametrize("m_dtype", ["fp32", "bf16", "fp8", "luma16", TableM().to_dict()], ids=str)
def test_adam_mini_uses_it(name: str, m_dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(AdamMiniRule, "stages", refuse)
    shapes = {"mlp.weight": (64, 64), "norm.weight": (64,), "lm_head.weight": (300, 64)}
    params = {key: nn.Parameter(torch.ones(shape)) for key, shape in shapes.items()}
    options = {"m_dtype": m_dtype, "min_compress_elements": 0, "backend": name}
    optimizer = AdamMini(params.items(), seed=0, **options)
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(float(param.detach().max()) < 1 for param in params.values())


def test_what_it_cannot_take_is_named() -> None:
    segments = SegmentMean(partition=Partition.rows((4, 64)))
    for first, reason in ((Luma16M(block_size=None), "block_size=None"), (FP32(), "")):
        codecs = {"exp_avg": first, "exp_avg_sq": segments}
        choice = registry.choose("cpu", AdamMiniRule(), codecs)
        assert choice.backend == ("pytorch" if reason else "native")
        assert reason in choice.reason
