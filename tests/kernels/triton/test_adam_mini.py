"""Adam-mini's kernel equals its eager rule, on every kind of cut, first moment and policy.

On a GPU the kernels run compiled; elsewhere in the interpreter, on small tensors.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import AdamMini
from luma_core.codecs import Luma16M, Partition
from tests.crossing import crossed

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from luma_kernels.triton.fused.launcher import FusedStep  # noqa: E402
from luma_kernels.triton.schedules.adam_mini_launch import segment_bucket_of  # noqa: E402
from luma_kernels.triton.schedules.segments_launch import MiniBucket  # noqa: E402

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
CUTS: dict[str, tuple[tuple[int, ...], Any]] = {
    "rows": ((12, 256), "row"),
    "short rows": ((40, 48), "row"),
    "ragged rows": ((9, 300), "row"),
    "long rows": ((3, 2304), "row"),
    "heads": ((16, 300), Partition.rows((16, 300), size=4)),
    "qkv": ((24, 128), Partition(1, 1, 24, 128, ((2, 4), (2, 4), (8, 1)))),
    "by key head": ((32, 128), Partition(2, 1, 16, 128, ((2, 4), (1, 4), (4, 1)))),
    "experts": ((3, 5, 128), Partition(3, 1, 5, 128, ((5, 1),))),
    "whole": ((7, 129), "whole"),
    "columns": ((66, 30), "column"),
    "transposed heads": ((5, 160), Partition.columns((5, 160), size=8)),
    "transposed qkv": ((9, 24), Partition(1, 9, 24, 1, ((2, 4), (2, 4), (8, 1)))),
    "transposed experts": ((2, 10, 12), Partition(2, 10, 12, 1, ((12, 1),))),
}


class Pair:
    """A parameter stepped by the eager backend, and its twin stepped by the kernels."""

    def __init__(self, cuts: list[str], dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.sides: list[tuple[list[nn.Parameter], AdamMini]] = []
        values = [torch.randn(CUTS[cut][0], generator=self.generator) for cut in cuts]
        for _ in range(2):
            params = [nn.Parameter(value.to(DEVICE, dtype, copy=True)) for value in values]
            optimizer = AdamMini(
                [(f"p{index}", param) for index, param in enumerate(params)],
                **{"lr": 0.01, "seed": 5, "weight_decay": 0.1, "backend": "pytorch", **options},
                overrides={f"p{index}": CUTS[cut][1] for index, cut in enumerate(cuts)},
            )
            optimizer.init_state()
            self.sides.append((params, optimizer))

    def gradients(self, scale: float | torch.Tensor = 1e-2) -> None:
        (eager, _), (fused, _) = self.sides
        for a, b in zip(eager, fused, strict=True):
            grad = torch.randn(a.shape, generator=self.generator) * scale
            a.grad, b.grad = (grad.to(DEVICE, a.dtype, copy=True) for _ in range(2))

    def step(self, **scaler: torch.Tensor) -> None:
        self.sides[0][1].step()
        self.fuse(**scaler)

    def fuse(self, **scaler: torch.Tensor) -> None:
        _, optimizer = self.sides[1]
        step = FusedStep(DEVICE, optimizer.rule)
        items = [
            (param, optimizer.state[param], optimizer.codecs(param, group), index)
            for index, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        ]
        assert all(step.build(items, optimizer.param_groups))
        step.launch(optimizer.param_groups, **scaler)

    def assert_equal(self) -> None:
        """Parameters and moments to float rounding, codes at most 1 apart and few of them."""
        (eager, left_of), (fused, right_of) = self.sides
        for a, b in zip(eager, fused, strict=True):
            left, right = left_of.state[a], right_of.state[b]
            assert left.keys() == right.keys()
            for key, want in left.items():
                got = right[key]
                if key.endswith("codes"):
                    apart = (want.int() - got.int()).abs()
                    assert int(apart.max()) <= 1, key
                    assert int((apart != 0).sum()) <= max(1, apart.numel() // 500), key
                elif want.dtype == torch.bfloat16:
                    torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-9, equal_nan=True)
                    assert float((got != want).double().mean()) < 2e-3
                elif key.endswith("value"):
                    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9, equal_nan=True)
                else:
                    assert torch.equal(got, want), key
            tolerance = 1e-5 if a.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(
                b.detach(), a.detach(), rtol=tolerance, atol=1e-6, equal_nan=True
            )
            if a.dtype != torch.float32:
                assert float((a != b).double().mean()) < 2e-3


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("m_dtype", ["bf16", "fp32"])
def test_every_cut(cut: str, m_dtype: str) -> None:
    pair = Pair([cut], m_dtype=m_dtype)
    for _ in range(2):
        pair.gradients()
        pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("cut", ["rows", "long rows", "qkv", "experts"])
@pytest.mark.parametrize("m_dtype", ["fp8", "luma16", Luma16M(octaves=61).to_dict()], ids=str)
def test_first_moments_with_scales(cut: str, m_dtype: Any) -> None:
    pair = Pair([cut], m_dtype=m_dtype, min_compress_elements=0)
    for _ in range(2):
        pair.gradients()
        pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("m_dtype", ["fp8", "luma16"])
def test_values_far_below_others_of_their_block(m_dtype: str) -> None:
    pair = Pair(["experts"], m_dtype=m_dtype, min_compress_elements=0)
    shape = CUTS["experts"][0]
    scale = 1e-12 ** torch.linspace(0, 1, shape[-1]).expand(shape)
    for _ in range(4):
        pair.gradients(scale)
        pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stochastic_rounding", [True, False])
def test_parameters_of_16_bits(dtype: torch.dtype, stochastic_rounding: bool) -> None:
    pair = Pair(["rows", "qkv", "columns"], dtype, stochastic_rounding=stochastic_rounding)
    pair.gradients()
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True},
        {"betas": (0.0, 0.0), "eps": 1e-5},
        {"betas": (0.5, 0.9), "weight_decay": 0.0},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    pair = Pair(["rows", "heads", "transposed qkv"], **options)
    for _ in range(2):
        pair.gradients()
        pair.step()
    pair.assert_equal()


@pytest.mark.parametrize(
    ("cut", "value", "policy"),
    crossed(
        ["rows", "long rows", "qkv", "columns", "transposed qkv"],
        [math.nan, math.inf, 1e30],
        ["skip", "propagate"],
    ),
)
def test_nonfinite_gradients(policy: str, cut: str, value: float) -> None:
    pair = Pair([cut], nonfinite=policy)
    pair.gradients()
    pair.step()
    pair.gradients()
    for params, _ in pair.sides:
        assert params[0].grad is not None
        params[0].grad[1, 20] = value
    pair.step()
    pair.assert_equal()
    (params, optimizer) = pair.sides[1]
    assert int(optimizer.state[params[0]]["nonfinite"]) == 1


def test_a_skipped_segment_keeps_its_scales() -> None:
    pair = Pair(["rows"], m_dtype="fp8", min_compress_elements=0)
    pair.gradients()
    pair.step()
    pair.gradients(scale=1.0)
    for params, _ in pair.sides:
        assert params[0].grad is not None
        params[0].grad[1, 70] = math.nan
    pair.step()
    pair.assert_equal()


def test_tensors_share_launches_and_elements_take_adamws() -> None:
    pair = Pair(["rows", "long rows", "qkv", "short rows", "rows", "by key head", "columns"])
    pair.gradients()
    pair.step()
    pair.assert_equal()
    params = [nn.Parameter(torch.ones(rows, 256, device=DEVICE)) for rows in (8, 5)]
    bias = nn.Parameter(torch.ones(300, device=DEVICE))
    optimizer = AdamMini([("a", params[0]), ("b", params[1]), ("bias", bias)], backend="pytorch")
    (group,) = optimizer.param_groups
    buckets = [
        segment_bucket_of(p, p.detach(), optimizer.codecs(p, group), group) for p in (*params, bias)
    ]
    assert buckets[0] == buckets[1]
    assert isinstance(buckets[0], MiniBucket)
    assert buckets[2] is not None
    assert not isinstance(buckets[2], MiniBucket)


def test_grad_scaler_tensors() -> None:
    pair = Pair(["rows", "heads", "columns"])
    pair.gradients()
    pair.step()
    before = [param.detach().clone() for param in pair.sides[1][0]]
    pair.gradients()
    scale, flag = torch.tensor(8.0, device=DEVICE), torch.ones((), device=DEVICE)
    pair.fuse(grad_scale=scale, found_inf=flag)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.sides[1][0], strict=True))
    for param in pair.sides[1][0]:
        assert param.grad is not None
        param.grad *= 8
    pair.step(grad_scale=scale, found_inf=flag * 0)
    pair.assert_equal()
