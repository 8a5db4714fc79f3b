"""A small model whose parameters cover every geometry, and one training run over it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


class Mixed(nn.Module):
    """Matrices with rows that blocks do not divide, a convolution, biases, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(6)
        self.hidden = nn.Linear(8 * 6 * 6, 70)
        self.gain = nn.Parameter(torch.ones(()))
        self.out = nn.Linear(70, 33, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.conv(x))).flatten(1)
        return self.out(torch.tanh(self.hidden(x)) * self.gain)


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """Return a function that builds the model from a seed, in a dtype."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(seed)
        return Mixed().to(dtype)

    return make


@pytest.fixture
def train() -> Callable[..., float]:
    """Return a function that trains on fixed batches and returns the last loss."""

    def run(
        model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0
    ) -> float:
        dtype = next(model.parameters()).dtype
        last = 0.0
        for step in range(start, start + steps):
            generator = torch.Generator().manual_seed(1000 + step)
            x = torch.randn(16, 3, 8, 8, generator=generator).to(dtype)
            target = x.flatten(1)[:, :33].float()
            optimizer.zero_grad()
            loss = (model(x).float() - target).square().mean()
            loss.backward()
            optimizer.step()
            last = loss.item()
        return last

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
