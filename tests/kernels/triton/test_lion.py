"""Lion's fused step equals the eager one, with every codec of its one moment."""

from typing import Any

import pytest
import torch

from luma_core import Lion

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from tests.kernels.triton.pairs import DEVICE, SHAPES, Pair  # noqa: E402

FLIPS = 1e-3
CODECS: dict[str, Any] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "luma16": "luma16",
    "8bit": "8bit",
    "fp8": {"exp_avg": "fp8_e4m3"},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_of_every_shape(codec: str, dtype: torch.dtype) -> None:
    pair = Pair(SHAPES, dtype, kind=Lion, codec=CODECS[codec], weight_decay=0.1)
    for _ in range(2):
        pair.step()
    pair.assert_equal(flips=FLIPS)


@pytest.mark.parametrize("codec", ["fp32", "luma16"])
@pytest.mark.parametrize("block_size", [None, 64])
def test_other_blocks_and_options(codec: str, block_size: int | None) -> None:
    options = {"maximize": True, "betas": (0.5, 0.75), "block_size": block_size}
    pair = Pair([(6, 300), (5, 64)], kind=Lion, codec=codec, **options)
    pair.step()
    pair.assert_equal(flips=FLIPS)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("block_size", [None, 128])
def test_a_block_that_is_not_finite(nonfinite: str, block_size: int | None) -> None:
    pair = Pair([(4, 256)], kind=Lion, nonfinite=nonfinite, block_size=block_size)
    pair.step()
    for param in (*pair.eager, *pair.fused):
        param.grad = torch.ones_like(param)
        param.grad[1, 5] = float("inf")
    pair.eager_optimizer.step()
    pair.fuse()
    states = pair.fused_optimizer.parameter_states(), pair.eager_optimizer.parameter_states()
    fused, eager = (found[0] for found in states)
    assert fused.nonfinite == eager.nonfinite == 1
    bad = [~state.decode("exp_avg").isfinite() for state in (fused, eager)]
    assert torch.equal(*bad)
    assert bool(bad[0].any()) == (nonfinite == "propagate")
    if nonfinite == "skip":
        pair.assert_equal(flips=FLIPS)


def test_a_scaler_divides_gradients_and_skips_the_step() -> None:
    pair = Pair([(4, 256)], kind=Lion)
    for a, b in zip(pair.eager, pair.fused, strict=True):
        a.grad = pair.random(a.shape).to(DEVICE)
        b.grad = a.grad * 1024
    before = pair.fused[0].detach().clone()
    scale = torch.tensor(1024.0, device=DEVICE)
    pair.fuse(grad_scale=scale, found_inf=torch.ones((), device=DEVICE))
    assert torch.equal(pair.fused[0], before)
    pair.eager_optimizer.step()
    pair.fuse(grad_scale=scale, found_inf=torch.zeros((), device=DEVICE))
    pair.assert_equal(flips=FLIPS)
