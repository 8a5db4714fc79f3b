"""LAMB and non-finite gradients: a bad block spoils neither norm, nor bound, nor other blocks."""

import math

import pytest
import torch
from torch import nn

from luma_core import LAMB
from luma_core.errors import NonFiniteGradientError

BAD = [math.nan, math.inf, -math.inf, 1e30]


def run(policy: str, value: float, **options: object) -> tuple[nn.Parameter, LAMB]:
    """Three steps; in the second, element [2, 150] of the gradient is ``value``."""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(40, 300, generator=generator))
    grads = torch.randn(3, 40, 300, generator=generator)
    optimizer = LAMB([param], lr=0.1, seed=1, nonfinite=policy, **options)  # type: ignore[arg-type]
    for step in range(3):
        param.grad = grads[step].clone()
        if step == 1:
            param.grad[2, 150] = value
        optimizer.step()
    return param.detach(), optimizer  # type: ignore[return-value]


def the_block() -> torch.Tensor:
    block = torch.zeros(40, 300, dtype=torch.bool)
    block[2, 128:256] = True
    return block


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("codec", ["luma16", "fp32"])
def test_skip_leaves_the_block_untouched_bit_for_bit(codec: str, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(40, 300, generator=generator).bfloat16())
    optimizer = LAMB([param], lr=0.1, seed=1, codec=codec)
    param.grad = torch.randn(40, 300, generator=generator).bfloat16()
    optimizer.step()
    state = optimizer.state[param]
    before, old = {key: tensor.clone() for key, tensor in state.items()}, param.detach().clone()
    param.grad[2, 150] = value
    optimizer.step()
    block = the_block()
    changed = param.detach() != old
    assert not changed[block].any()
    assert changed[~block].double().mean() > 0.9
    assert int(state["nonfinite"]) == 1
    for key in state:
        if key.endswith(("codes", "value")):
            assert torch.equal(state[key][block], before[key][block])
            assert not torch.equal(state[key], before[key])
        elif key.endswith("exponent"):
            assert state[key][2, 1] == before[key][2, 1]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("bound", [None, 1.0])
def test_other_blocks_step_as_if_the_element_had_been_zero(
    value: float, bound: float | None
) -> None:
    """Norms differ by what one block of 120 contributes, the bound by nothing."""
    clean, first = run("skip", 0.0, max_grad_norm=bound)
    param, optimizer = run("skip", value, max_grad_norm=bound)
    others = ~the_block()
    for key in ("exp_avg.codes", "exp_avg_sq.codes"):
        a, b = (next(iter(o.state.values()))[key][others] for o in (first, optimizer))
        assert torch.equal(a, b)
    torch.testing.assert_close(param[others], clean[others], rtol=1e-3, atol=2e-3)
    assert torch.isfinite(param).all()


@pytest.mark.parametrize("value", BAD)
def test_skip_with_one_scale_per_tensor_skips_the_tensor(value: float) -> None:
    param = nn.Parameter(torch.ones(4, 300))
    optimizer = LAMB([param], seed=1, block_size=None)
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = {key: tensor.clone() for key, tensor in optimizer.state[param].items()}
    old = param.detach().clone()
    param.grad[2, 150] = value
    optimizer.step()
    assert torch.equal(param, old)
    assert int(optimizer.state[param]["nonfinite"]) == 1
    for key, tensor in optimizer.state[param].items():
        assert ("exp_avg" in key) is torch.equal(tensor, before[key]) or key == "noise_key"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_propagate_lets_it_into_the_block_but_no_further(value: float) -> None:
    clean, _ = run("propagate", 0.0)
    param, optimizer = run("propagate", value, max_grad_norm=1e6)
    block = the_block()
    assert param[block].isnan().all()
    torch.testing.assert_close(param[~block], clean[~block], rtol=1e-3, atol=5e-3)
    assert int(next(iter(optimizer.state.values()))["nonfinite"]) == 2  # in the step after it, too


def test_raise_changes_nothing() -> None:
    param = nn.Parameter(torch.ones(2, 64))
    optimizer = LAMB([("weight", param)], seed=1, nonfinite="raise", max_grad_norm=1.0)
    param.grad = torch.full_like(param, math.nan)
    with pytest.raises(NonFiniteGradientError, match="'weight'"):
        optimizer.step()
    assert torch.equal(param, torch.ones(2, 64))


def test_a_parameter_that_is_not_finite_keeps_it_to_itself() -> None:
    values = torch.ones(4, 300)
    values[1, 7] = math.inf
    param, twin = nn.Parameter(values), nn.Parameter(torch.ones(4, 300))
    for p in (param, twin):
        p.grad = torch.ones_like(p)
        LAMB([p], lr=0.1, seed=1).step()
    others = torch.isfinite(values)
    torch.testing.assert_close(param[others], twin[others], rtol=1e-3, atol=0)
