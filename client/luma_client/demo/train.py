"""Training: one run is a model, its optimizer and the number of steps behind them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from luma_client.demo.data import Corpus
from luma_client.demo.model import GPT

Point = tuple[int, float]
"""A step and a loss in nats per byte."""

OnStep = Callable[["Run"], None]

_HELD_OUT_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the same for every optimizer.

    Attributes:
        steps: number of steps; the learning rate falls to a tenth of its peak over them.
        batch_size: sequences per step.
        peak_lr: learning rate after the warm-up.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled weight decay, for matrices only.
        betas: decay rates of the moments.
        evaluate_every: steps between two passes over the held-out text.
        seed: of the batches.
    """

    steps: int
    batch_size: int = 16
    peak_lr: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    evaluate_every: int = 50
    seed: int = 0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1: a pure function, so runs resume."""
        warmup = min(step / max(self.warmup_steps, 1), 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        return self.peak_lr * warmup * (0.1 + 0.9 * cosine)


@dataclass
class Run:
    """A model in training.

    Attributes:
        name: what it is called.
        model: the model.
        optimizer: its optimizer.
        step: completed steps.
        losses: loss of each step's batch.
        held_out: mean loss over the whole held-out text, at some steps.
        optimizer_seconds: time spent in ``optimizer.step()``.
        begin_step: steps that were taken elsewhere, before a resumed run.
    """

    name: str
    model: GPT
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    optimizer_seconds: float = 0.0
    begin_step: int = 0

    def __post_init__(self) -> None:
        self.begin_step = self.step

    @property
    def optimizer_ms_per_step(self) -> float:
        """Mean time of ``optimizer.step()``."""
        return 1e3 * self.optimizer_seconds / max(self.step - self.begin_step, 1)


def parameter_groups(model: GPT, options: TrainOptions) -> list[dict[str, object]]:
    """Return two parameter groups: matrices with weight decay, all else without."""
    named = list(model.named_parameters())
    return [
        {
            "params": [item for item in named if item[1].ndim >= 2],
            "weight_decay": options.weight_decay,
        },
        {"params": [item for item in named if item[1].ndim < 2], "weight_decay": 0.0},
    ]


def advance(
    run: Run, corpus: Corpus, options: TrainOptions, *, until: int, on_step: OnStep
) -> None:
    """Train ``run`` until it has taken ``until`` steps."""
    device = next(run.model.parameters()).device
    while run.step < until:
        step = run.step + 1
        for group in run.optimizer.param_groups:
            group["lr"] = options.learning_rate(step)
        inputs, targets = corpus.batch(
            seed=options.seed,
            step=step,
            batch_size=options.batch_size,
            context=run.model.config.context,
        )
        loss = run.model.loss(inputs.to(device), targets.to(device))
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer_seconds += _timed(run.optimizer, device)
        run.step = step
        run.losses.append((step, loss.item()))
        if step % options.evaluate_every == 0 or step in (1, options.steps):
            run.held_out.append((step, held_out_loss(run.model, corpus)))
        on_step(run)


def _timed(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    optimizer.step()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def held_out_loss(model: GPT, corpus: Corpus) -> float:
    """Return the mean loss over the whole held-out text, in nats per byte."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for inputs, targets in corpus.held_out_batches(
        batch_size=_HELD_OUT_BATCH, context=model.config.context
    ):
        total += model.loss(inputs.to(device), targets.to(device)).item() * targets.numel()
        count += targets.numel()
    return total / count


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors an optimizer keeps, summed over the tensors themselves."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


@contextmanager
def deterministic() -> Iterator[None]:
    """Make equal runs bit-identical inside the block, on the CPU and on CUDA."""
    # cuBLAS reads this when CUDA starts; without it, its products may differ between runs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Only finds reads of unwritten memory, at the price of writing all of it.
    memory.fill_uninitialized_memory = False
    try:
        with sdpa_kernel([SDPBackend.MATH]) if torch.cuda.is_available() else nullcontext():
            yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
