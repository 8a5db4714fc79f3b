"""The fused step of TurboAdam's n-bit codecs equals the eager one.

On a GPU the kernels run compiled; elsewhere in the interpreter, on small tensors.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luma_core import LAMB, AdamW, TurboAdam
from luma_core.codecs import BF16, FP8E4M3, FP32, LogV, Luma16M, Luma16V, RootV, TableM
from luma_core.optim.turbo_adam import turbo_codecs
from tests.crossing import crossed

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from tests.kernels.triton.pairs import DEVICE, SHAPES, Pair  # noqa: E402


@pytest.mark.parametrize("preset", ["5bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_step_of_every_shape(dtype: torch.dtype, preset: str) -> None:
    pair = Pair(SHAPES, dtype, preset=preset)
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("floor", [0.25, pytest.param(2.0**-10, marks=pytest.mark.heavy), None])
def test_every_size_of_code(bits: int, floor: float | None) -> None:
    pair = Pair([(2, 256), (2, 150)], m_bits=bits, v_bits=bits, v_floor=floor)
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("preset", ["5bit", "8bit"])
def test_a_second_step_looks_at_what_the_first_stored(preset: str) -> None:
    """Steps start from equal state: what differs after one step may not differ more after two."""
    pair = Pair([(4, 256), (2, 300)], preset=preset)
    for _ in range(3):
        pair.step()
        pair.assert_equal()
        for a, b in zip(pair.eager, pair.fused, strict=True):
            b.data.copy_(a.data)
            for key, value in pair.eager_optimizer.state[a].items():
                pair.fused_optimizer.state[b][key].copy_(value)


PAIRS = [
    (TableM(bits=3), FP32()),
    (FP32(), RootV(bits=2)),
    (FP32(), LogV(bits=5)),
    (Luma16M(), RootV(bits=4, floor=0.125)),
    (TableM(bits=4), Luma16V()),
    (TableM(bits=2, levels=(-0.3, 0.0, 0.4, 1.0)), LogV(bits=3)),
    (FP8E4M3(), Luma16V()),
    (FP8E4M3(block_size=32), LogV(bits=5, block_size=32)),
    (BF16(), RootV(bits=4)),
    (TableM(bits=3, block_size=64), LogV(bits=5, block_size=64)),
    (TableM(bits=3, block_size=512), RootV(bits=2, block_size=512)),
]


@pytest.mark.parametrize("codecs", PAIRS, ids=lambda pair: " ".join(c.name for c in pair))
def test_codecs_pair_freely(codecs: tuple[Any, Any]) -> None:
    chosen = dict(zip(("exp_avg", "exp_avg_sq"), (c.to_dict() for c in codecs), strict=True))
    pair = Pair([(4, 256), (2, 150)], torch.bfloat16, codecs=chosen)
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("kind", [TurboAdam, LAMB])
def test_updates_are_bounded(kind: Callable[..., Any]) -> None:
    """A first moment that rounding left a million times larger than the second allows for."""
    storage: dict[str, Any] = {"preset": "8bit", "min_m_compress_elements": 0}
    options = {"codec": turbo_codecs(**storage)} if kind is LAMB else storage
    pair = Pair([(2, 128)], kind=kind, weight_decay=0.0, **options)
    pair.step()
    for optimizer, params in (
        (pair.eager_optimizer, pair.eager),
        (pair.fused_optimizer, pair.fused),
    ):
        state = optimizer.state[params[0]]
        state["exp_avg.scale"].fill_(1e6)
        params[0].data.zero_()
    pair.step()
    pair.assert_equal()
    assert float(pair.fused[0].detach().abs().max()) == pytest.approx(0.01 * 6.3246, rel=1e-4)


@pytest.mark.parametrize("first", ["fp8_e4m3", "luma16_m"])
def test_values_far_below_others_of_their_block(first: str) -> None:
    codec = {"exp_avg": first, "exp_avg_sq": "fp32"}
    pair = Pair([(4, 256), (3, 70)], kind=AdamW, codec=codec)
    for _ in range(3):
        pair.step(spread=9.0)
    pair.assert_equal()
    small = pair.eager_optimizer.state[pair.eager[0]]["exp_avg.codes"]
    assert float((small == 0).double().mean()) > 0.01


@pytest.mark.parametrize("preset", ["5bit", "8bit"])
def test_lamb_with_these_codecs(preset: str) -> None:
    pair = Pair([(4, 256), (2, 150)], kind=LAMB, codec=turbo_codecs(preset=preset))
    pair.step()
    pair.assert_equal()


def test_lamb_with_a_first_moment_of_8_bits() -> None:
    codecs = {"exp_avg": FP8E4M3().to_dict(), "exp_avg_sq": Luma16V().to_dict()}
    pair = Pair([(4, 256), (2, 150)], kind=LAMB, codec=codecs)
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("preset", ["5bit", "8bit"])
def test_gradients_of_zero_and_of_every_magnitude(preset: str) -> None:
    pair = Pair([(6, 128)], preset=preset)
    scales = torch.tensor([0.0, 1e-15, 1e-8, 1.0, 1e8, 1e15], device=DEVICE)[:, None]
    for a, b in zip(pair.eager, pair.fused, strict=True):
        a.grad = pair.random(a.shape).to(DEVICE) * scales
        b.grad = a.grad.clone()
    pair.eager_optimizer.step()
    pair.fuse()
    pair.assert_equal()


@pytest.mark.parametrize(
    ("value", "policy", "preset"),
    crossed([math.nan, math.inf, -math.inf], ["skip", "propagate"], ["5bit", "8bit"]),
)
def test_nonfinite_gradients(value: float, policy: str, preset: str) -> None:
    pair = Pair([(4, 300)], nonfinite=policy, preset=preset)
    pair.step()
    for param in (*pair.eager, *pair.fused):
        assert param.grad is not None
        param.grad[2, 140] = value
    pair.eager_optimizer.step()
    pair.fuse()
    if policy == "skip":
        pair.assert_equal()
        return
    assert torch.equal(pair.eager[0].isnan(), pair.fused[0].isnan())
    left, right = pair.eager_optimizer.state, pair.fused_optimizer.state
    for key, field in left[pair.eager[0]].items():
        if not key.endswith(("codes", "noise_key")):
            assert torch.equal(field, right[pair.fused[0]][key]), key


def test_grad_scaler_tensors() -> None:
    """A set flag leaves everything as it was; else gradients are divided by the scale."""
    pair = Pair([(4, 256)])
    pair.step()
    before = [pair.fused[0].detach().clone()]
    fields = {
        key: field.clone() for key, field in pair.fused_optimizer.state[pair.fused[0]].items()
    }
    scale, flag = torch.tensor(64.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    assert pair.fused[0].grad is not None
    pair.fused[0].grad.fill_(math.inf)
    pair.fuse(grad_scale=scale, found_inf=flag)
    assert torch.equal(pair.fused[0], before[0])
    for key, field in pair.fused_optimizer.state[pair.fused[0]].items():
        assert torch.equal(field, fields[key]), key
    pair.eager[0].grad = torch.full_like(pair.eager[0], 0.25)
    pair.fused[0].grad = pair.eager[0].grad * 64
    pair.eager_optimizer.step()
    pair.fuse(grad_scale=scale, found_inf=torch.zeros_like(flag))
    pair.assert_equal()


@pytest.mark.parametrize("preset", ["5bit", "8bit"])
def test_bytes_beyond_the_fields_stay_untouched(preset: str) -> None:
    """Each field is a window of a larger one whose margins are poisoned."""
    pair = Pair([(3, 200)], preset=preset)
    margin = 64
    state = pair.fused_optimizer.state[pair.fused[0]]
    wide = {}
    for key, field in state.items():
        if field.dim() and field.dtype in (torch.uint8, torch.bfloat16):
            wide[key] = torch.full((field.numel() + 2 * margin,), 77, dtype=field.dtype).to(DEVICE)
            wide[key][margin:-margin] = 0
            state[key] = wide[key][margin:-margin].view(field.shape)
    assert len(wide) >= 4
    pair.step()
    pair.assert_equal()
    for key, field in wide.items():
        assert bool((field[:margin] == 77).all()), key
        assert bool((field[-margin:] == 77).all()), key


def test_unaligned_tensors() -> None:
    pair = Pair([(1000,)])
    buffer = torch.zeros(1001, device=DEVICE)
    buffer[1:] = pair.eager[0].detach()
    pair.fused[0].data = buffer[1:]
    assert pair.fused[0].data_ptr() % 16
    pair.step()
    pair.assert_equal()
