"""A non-finite gradient element: left out and counted, raised, or let in to its block only."""

import math

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.errors import NonFiniteGradientError

BAD = [math.nan, math.inf, -math.inf, 1e30]


def stepped(policy: str, block_size: int | None, value: float | None) -> tuple[nn.Parameter, LUMA]:
    """Three steps; in the second, element [2, 150] of the gradient is ``value``."""
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(4, 300))
    grads = torch.randn(3, 4, 300)
    optimizer = LUMA([param], seed=1, nonfinite=policy, block_size=block_size)
    for step in range(3):
        param.grad = grads[step].clone()
        if step == 1 and value is not None:
            param.grad[2, 150] = value
        optimizer.step()
    return param, optimizer


def test_nothing_is_counted_in_a_clean_run() -> None:
    param, optimizer = stepped("skip", 128, None)
    assert int(optimizer.state[param]["nonfinite"]) == 0


@pytest.mark.parametrize("value", BAD)
def test_skip_leaves_exactly_the_elements_block_untouched(value: float) -> None:
    clean, _ = stepped("skip", 128, None)
    param, optimizer = stepped("skip", 128, value)
    state = optimizer.state[param]
    assert int(state["nonfinite"]) == 1
    changed = param.detach() != clean.detach()
    block = torch.zeros_like(changed)
    block[2, 128:256] = True
    assert not changed[~block].any()
    assert changed[block].all()
    assert torch.isfinite(param).all()
    assert all((t < 254).all() for k, t in state.items() if k.endswith("exponent"))


def test_skip_keeps_parameter_and_state_of_the_block_bit_for_bit() -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(4, 300).bfloat16())
    optimizer = LUMA([param], seed=1)
    param.grad = torch.randn(4, 300).bfloat16()
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[param].items()}
    old = param.detach().clone()
    param.grad[1, 3] = math.nan
    optimizer.step()
    after = optimizer.state[param]
    for key in ("exp_avg.codes", "exp_avg_sq.codes"):
        assert torch.equal(after[key][1, :128], before[key][1, :128])
        assert not torch.equal(after[key][1, 128:], before[key][1, 128:])
    for key in ("exp_avg.exponent", "exp_avg_sq.exponent"):
        assert after[key][1, 0] == before[key][1, 0]
    assert torch.equal(param[1, :128], old[1, :128])


@pytest.mark.parametrize("value", BAD)
def test_skip_with_one_scale_per_tensor_skips_the_tensor(value: float) -> None:
    param, optimizer = stepped("skip", None, None)
    torch.manual_seed(0)
    start = torch.randn(4, 300)
    grads = torch.randn(3, 4, 300)
    param = nn.Parameter(start)
    optimizer = LUMA([param], seed=1, block_size=None)
    param.grad = grads[0]
    optimizer.step()
    before, old = {k: v.clone() for k, v in optimizer.state[param].items()}, param.detach().clone()
    param.grad = grads[1].clone()
    param.grad[2, 150] = value
    optimizer.step()
    assert torch.equal(param, old)
    assert int(optimizer.state[param]["nonfinite"]) == 1
    for key, tensor in optimizer.state[param].items():
        if "exp_avg" in key:
            assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("value", BAD)
def test_small_float32_state_is_protected_too(value: float) -> None:
    param = nn.Parameter(torch.ones(300))
    optimizer = LUMA([param], seed=1)
    param.grad = torch.ones(300)
    param.grad[7] = value
    optimizer.step()
    assert torch.equal(param[:128], torch.ones(128))
    assert (param[128:] < 1).all()
    assert int(optimizer.state[param]["nonfinite"]) == 1


@pytest.mark.parametrize("value", BAD)
def test_raise_names_the_parameter_and_changes_nothing(value: float) -> None:
    good, bad = nn.Parameter(torch.ones(2, 64)), nn.Parameter(torch.ones(2, 64))
    optimizer = LUMA([("good.weight", good), ("bad.weight", bad)], seed=1, nonfinite="raise")
    good.grad, bad.grad = torch.ones(2, 64), torch.ones(2, 64)
    optimizer.step()
    before = [good.detach().clone(), bad.detach().clone()]
    bad.grad[0, 0] = value
    with pytest.raises(NonFiniteGradientError, match=r"'bad.weight' \(1 elements\)"):
        optimizer.step()
    assert torch.equal(good, before[0])
    assert torch.equal(bad, before[1])
    assert int(optimizer.state[good]["step"]) == 1


def test_propagate_lets_it_into_the_block_but_no_further() -> None:
    param, optimizer = stepped("propagate", 128, math.nan)
    block = torch.zeros(4, 300, dtype=torch.bool)
    block[2, 128:256] = True
    assert param[block].isnan().all()
    assert torch.isfinite(param[~block]).all()
    assert int(optimizer.state[param]["nonfinite"]) == 2  # in the step after it, too
