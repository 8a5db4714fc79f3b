"""Our optimizers as PyTorch's own tests take them, and a small model for them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import AdamMini, RAdam
from tests.optimizers import CLASSES


class Mini(AdamMini):
    """Adam-mini, with names for parameters that have none: it asks for them."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        if isinstance(params, list) and all(isinstance(item, Tensor) for item in params):
            params = [{"params": params}]
        if isinstance(params, list) and all(isinstance(item, dict) for item in params):
            params, count = list(params), 0
            for index, group in enumerate(params):
                params[index] = self.named_group(group, count)
                count += len(params[index]["params"])
        super().__init__(params, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(self.named_group(param_group, len(self.parameter_names())))

    @staticmethod
    def named_group(group: dict[str, Any], first: int) -> dict[str, Any]:
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else params
        if any(isinstance(item, tuple) for item in params):
            return group
        named = [(f"fc.{index}.weight", item) for index, item in enumerate(params, start=first)]
        return {**group, "params": named}


# RAdam's first steps are as large as gradients, here as in PyTorch: both diverge on these losses.
OPTIMIZERS = [Mini if each is AdamMini else each for each in CLASSES if each is not RAdam]
INPUTS = ["default", "non-default lr", "nonzero weight_decay", "maximize"]
REFUSED = ["amsgrad"]

every = pytest.mark.parametrize("optimizer_class", OPTIMIZERS, ids=lambda c: c.__name__)
every_input = pytest.mark.parametrize("desc", INPUTS)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(10, 140), (10,), ()]
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def loss_of(params: list[nn.Parameter]) -> Tensor:
    x = torch.linspace(-1, 1, 140)
    weight, bias, gain = (param.float() for param in params)
    return ((weight @ x + bias) * gain).square().sum()


def value(params: list[nn.Parameter]) -> float:
    return float(loss_of(params).detach())


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 3) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)
