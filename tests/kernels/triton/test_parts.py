"""The fused step of parts of a parameter is the fused step of the whole, bit for bit."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from luma_core import LUMA, TurboAdam
from luma_core.optim.base import CompressedOptimizer

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from luma_kernels.triton.fused.launcher import FusedStep  # noqa: E402

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
MAKE: dict[str, Callable[..., CompressedOptimizer]] = {"luma": LUMA, "turbo": TurboAdam}


def step(
    optimizer: CompressedOptimizer, param: Tensor, state: Mapping[str, Tensor], first: int
) -> None:
    group = optimizer.param_groups[0]
    codecs = optimizer.codecs(optimizer.param_groups[0]["params"][0], group)
    fused = FusedStep(DEVICE, optimizer.rule)
    assert fused.build([(param, state, codecs, 0, first)], [group]) == [True]
    fused.launch([group])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "shape"), [("luma", (10, 256)), ("luma", (7, 300)), ("turbo", (32, 256))]
)
def test_rows_step_like_the_whole(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    value = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    optimizer = MAKE[kind]([torch.nn.Parameter(value)], lr=0.01, seed=5, backend="pytorch")
    optimizer.init_state()
    param = optimizer.param_groups[0]["params"][0]
    state: dict[str, Any] = optimizer.state[param]
    cut, cols = shape[0] // 3, shape[1]
    parts = []
    for rows in (slice(0, cut), slice(cut, None)):
        part = value[rows].clone()
        own = {key: t[rows].clone() if t.dim() else t.clone() for key, t in state.items()}
        parts.append((part, own, (rows.start or 0) * cols, rows))
    for _ in range(2):
        grad = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        param.grad = grad
        with torch.no_grad():
            step(optimizer, param, state, 0)
        for part, own, first, rows in parts:
            part.grad = grad[rows].clone()
            step(optimizer, part, own, first)
    for part, own, _, rows in parts:
        assert torch.equal(part, param.data[rows])
        for key, tensor in own.items():
            if tensor.dim():
                assert torch.equal(tensor, state[key][rows]), key


def test_noise_of_a_part_is_that_of_its_place() -> None:
    value = torch.randn(4, 256, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    codes = []
    for first in (0, 1 << 20, (1 << 33) + 512):
        param = torch.nn.Parameter(value.clone())
        param.grad = torch.randn(4, 256, generator=torch.Generator().manual_seed(5)).to(DEVICE)
        optimizer = LUMA([param], seed=5, backend="pytorch")
        optimizer.init_state()
        step(optimizer, param, optimizer.state[param], first)
        codes.append(optimizer.state[param]["exp_avg.codes"])
    assert not torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[1], codes[2])
