"""An optimizer that steps in PyTorch, and its twin that the fused kernels step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import TurboAdam
from luma_core.codecs import LogV, RootV, TableM
from luma_core.codecs.packed import unpack

pytest.importorskip("triton")

from luma_kernels.triton.fused.launcher import FusedStep

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
SHAPES = [(8, 256), (6, 300), (1000,), (3, 5, 70), (1, 32), (40, 3)]


class Pair:
    """Parameters stepped by the eager backend, and their twins stepped by the kernels."""

    def __init__(
        self,
        shapes: list[tuple[int, ...]],
        dtype: torch.dtype = torch.float32,
        *,
        kind: Callable[..., Any] = TurboAdam,
        **options: Any,
    ) -> None:
        self.generator = torch.Generator().manual_seed(3)
        values = [self.random(shape).to(DEVICE, dtype) for shape in shapes]
        self.eager = [nn.Parameter(value.clone()) for value in values]
        self.fused = [nn.Parameter(value.clone()) for value in values]
        options = {
            "lr": 0.01,
            "seed": 5,
            "min_compress_elements": 0,
            "backend": "pytorch",
            **options,
        }
        if kind is TurboAdam:
            options.setdefault("min_m_compress_elements", 0)
        self.eager_optimizer = kind(self.eager, **options)
        self.fused_optimizer = kind(self.fused, **options)
        self.fused_optimizer.init_state()

    def random(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def step(self, spread: float = 1.0) -> None:
        """One step of both from equal gradients, whose scale differs from element to element.

        Args:
            spread: standard deviation of the scale's logarithm.
        """
        for a, b in zip(self.eager, self.fused, strict=True):
            value, scale = self.random(a.shape), (self.random(a.shape) * spread).exp()
            a.grad = (value * scale * 1e-2).to(DEVICE, a.dtype)
            b.grad = a.grad.clone()
        self.eager_optimizer.step()
        self.fuse()

    def fuse(self, **scaler: Tensor) -> None:
        optimizer = self.fused_optimizer
        items = [
            (param, optimizer.state[param], optimizer.codecs(param, group), index)
            for index, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        ]
        step = FusedStep(DEVICE, optimizer.rule)
        assert all(step.build(items, optimizer.param_groups))
        step.launch(optimizer.param_groups, **scaler)

    def assert_equal(self, *, flips: float = 0.0) -> None:
        """Scales equal, codes at most 1 apart on at most 1 in 1000, parameters to rounding.

        Args:
            flips: share of a parameter's elements that may differ by more: of rules that take the
                sign of a value that rounding decides.
        """
        apart = count = 0
        for a, b in zip(self.eager, self.fused, strict=True):
            left, right = self.eager_optimizer.state[a], self.fused_optimizer.state[b]
            codecs = self.eager_optimizer.codecs(a, self.eager_optimizer.param_groups[0])
            for key in left:
                moment, _, field = key.partition(".")
                if field == "codes":
                    codes = [stored_codes(state[key], codecs[moment]) for state in (left, right)]
                    difference = (codes[0] - codes[1]).abs()
                    assert int(difference.max()) <= 1, key
                    apart, count = apart + int(difference.sum()), count + difference.numel()
                elif field == "value":
                    torch.testing.assert_close(left[key], right[key], rtol=1e-5, atol=1e-9)
                else:
                    assert torch.equal(left[key], right[key]), key
            tolerance = 1e-5 if a.dtype == torch.float32 else 2**-7
            if flips:
                near = torch.isclose(a.float(), b.float(), rtol=tolerance, atol=1e-6)
                assert int((~near).sum()) <= max(1, flips * a.numel())
                continue
            torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=1e-6)
            if a.dtype != torch.float32:
                assert float((a != b).double().mean()) < 5e-3
        assert apart <= max(1, count // 1000)


def stored_codes(stored: Tensor, codec: Any) -> Tensor:
    if isinstance(codec, TableM | RootV | LogV):
        return unpack(stored, codec.bits)
    return stored.int() & 0xFFFF
