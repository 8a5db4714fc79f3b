"""A non-finite gradient element under Adam-mini: its segment is left out and counted, or let in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from luma_core import AdamMini


class Poisoned:
    """Two steps, the second with a bad element [2, 150] in its gradient, and a clean twin.

    Attributes:
        optimizer: after both steps, of the parameter ``w``, [8, 300].
        clean: the parameter after two clean steps.
        before: the state before the second step.
        old: the parameter before it.
    """

    def __init__(self, value: float, cut: str, m_dtype: str) -> None:
        torch.manual_seed(0)
        start, grads = torch.randn(8, 300), torch.randn(2, 8, 300)
        self.clean, self.param = nn.Parameter(start.clone()), nn.Parameter(start)
        for param in (self.clean, self.param):
            options = {"overrides": {"w": cut}, "m_dtype": m_dtype, "seed": 1}
            self.optimizer = AdamMini([("w", param)], **options)
            param.grad = grads[0].clone()
            self.optimizer.step()
            self.before = copy.deepcopy(self.optimizer.parameter_state("w"))
            self.old = param.detach().clone()
            param.grad = grads[1].clone()
            if param is self.param:
                param.grad[2, 150] = value
            self.optimizer.step()
        self.after = self.optimizer.parameter_state("w")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("m_dtype", ["fp32", "bf16", "fp8", "luma16"])
@pytest.mark.parametrize("cut", ["row", "column", "whole"])
def test_skip_leaves_exactly_the_segment_as_it_was(value, m_dtype, cut) -> None:
    run = Poisoned(value, cut, m_dtype)
    segment = torch.zeros(8, 300, dtype=torch.bool)
    segment[{"row": (2,), "column": (slice(None), 150), "whole": ()}[cut]] = True
    assert run.after.nonfinite == 1
    assert torch.equal(run.param[segment], run.old[segment])
    for moment in ("exp_avg", "exp_avg_sq"):
        now, before = run.after.decode(moment), run.before.decode(moment)
        error = (now[segment] - before[segment]).abs() / before[segment].abs()
        # Where scale blocks cross segments, a neighbour's new scale codes the old moment again.
        loose = cut == "column" and moment == "exp_avg" and m_dtype in ("fp8", "luma16")
        assert float(error.max()) <= (0.13 if loose else 0.0)
        assert (now[~segment] != before[~segment]).float().mean() > 0.5 or cut == "whole"
    if m_dtype in ("fp32", "bf16") or cut == "row":
        assert torch.equal(run.param[~segment], run.clean[~segment])


def test_skipped_scale_blocks_keep_their_very_codes() -> None:
    run = Poisoned(math.nan, "row", "fp8")
    for key in ("exp_avg.codes", "exp_avg.exponent"):
        now, before = run.after.fields[key], run.before.fields[key]
        assert torch.equal(now[2], before[2])
        assert not torch.equal(now, before)


def test_propagate_lets_it_into_the_segment_but_no_further() -> None:
    param = nn.Parameter(torch.ones(4, 8))
    optimizer = AdamMini([("w", param)], nonfinite="propagate", seed=0)
    param.grad = torch.ones(4, 8)
    param.grad[1, 2] = math.nan
    optimizer.step()
    assert param[1].isnan().all()
    assert torch.isfinite(param[[0, 2, 3]]).all()
    assert int(optimizer.state[param]["nonfinite"]) == 1
