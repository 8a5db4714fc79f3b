"""Runs two optimizers side by side on copies of one model, and says where they part."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luma_core.errors import ConfigurationError

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Gradient = Callable[[str, Tensor, int], Tensor]
Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class ParityRow:
    """How one parameter differs between the two runs.

    Attributes:
        name: the parameter's name.
        shape: its shape.
        max_difference: the largest difference of an element.
        moved: root mean square of how far it moved from its start in the first run.
        relative: root mean square of the difference over ``moved``; 0 where neither moved.
    """

    name: str
    shape: tuple[int, ...]
    max_difference: float
    moved: float
    relative: float


@dataclass(frozen=True)
class ParityReport:
    """How two optimizers differ; ``print`` it as a table.

    Attributes:
        steps: steps that both took.
        rows: one for each parameter.
    """

    steps: int
    rows: tuple[ParityRow, ...]

    @property
    def worst(self) -> ParityRow:
        """The row of the largest relative difference; NaN counts as the largest."""
        return max(self.rows, key=lambda row: (math.isnan(row.relative), row.relative))

    def __str__(self) -> str:
        width = max(len("parameter"), *(len(row.name) for row in self.rows))
        lines = [f"{'parameter':{width}}  {'relative':>9}  {'largest':>9}  {'moved':>9}"]
        lines += [
            f"{row.name:{width}}  {row.relative:9.2e}  {row.max_difference:9.2e}  {row.moved:9.2e}"
            for row in self.rows
        ]
        return "\n".join([*lines, f"after {self.steps} steps"])


def parity_check(
    a: MakeOptimizer,
    b: MakeOptimizer,
    *,
    model: nn.Module,
    steps: int = 10,
    loss: Loss | None = None,
    gradient: Gradient | None = None,
) -> ParityReport:
    """Run two optimizers side by side and report how their parameters differ.

    Each works on a copy of ``model``, which stays as it is. Without ``loss`` both get the same
    gradients, so that differences are the optimizers' own and do not feed back.

    Args:
        a: builds the first optimizer for a copy of the model.
        b: builds the second.
        model: where both start.
        steps: steps to take.
        loss: returns the loss of a model at a step, counted from 0; each run differentiates its
            own. It must not depend on anything else, such as random state.
        gradient: returns the gradient of a parameter by its name, the parameter and the step.
            Excludes ``loss``; by default normal numbers of size 0.01, from the name and the step.

    Raises:
        ConfigurationError: both ``loss`` and ``gradient`` are given, or the model has no parameters
            to train.
    """
    if loss is not None and gradient is not None:
        raise ConfigurationError("loss and gradient exclude each other: give one of them.")
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ConfigurationError("model has no parameter that requires a gradient.")
    copies = [copy.deepcopy(model), copy.deepcopy(model)]
    optimizers = [make(m) for make, m in zip((a, b), copies, strict=True)]
    for step in range(steps):
        for twin, optimizer in zip(copies, optimizers, strict=True):
            optimizer.zero_grad()
            if loss is not None:
                loss(twin, step).backward()
            else:
                _set_gradients(twin, gradient or _normal_gradient, step)
            optimizer.step()
    return ParityReport(steps, tuple(_rows(model, *copies)))


def _set_gradients(model: nn.Module, gradient: Gradient, step: int) -> None:
    for name, param in model.named_parameters():
        if param.requires_grad:
            param.grad = gradient(name, param.detach(), step).to(param.device, param.dtype)


def _normal_gradient(name: str, param: Tensor, step: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(step * 1_000_003 + sum(name.encode()))
    return torch.randn(param.shape, generator=generator, device="cpu") * 0.01


def _rows(start: nn.Module, a: nn.Module, b: nn.Module) -> Iterator[ParityRow]:
    parts = (start.named_parameters(), a.parameters(), b.parameters())
    for (name, old), p, q in zip(*parts, strict=True):
        if not old.requires_grad or not old.numel():
            continue
        first, second, origin = p.detach().double(), q.detach().double(), old.detach().double()
        moved = float((first - origin).square().mean().sqrt())
        apart = float((first - second).square().mean().sqrt())
        yield ParityRow(
            name=name,
            shape=tuple(old.shape),
            max_difference=float((first - second).abs().max()),
            moved=moved,
            relative=apart / moved if moved else (math.inf if apart else 0.0),
        )
