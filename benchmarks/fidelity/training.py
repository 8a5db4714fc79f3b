"""One model, trained again and again from saved weights, so that it is compiled only once."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.fidelity.model import GPT2, initial_values
from benchmarks.fidelity.optimizers import Entry, Job
from benchmarks.fidelity.results import Run
from benchmarks.fidelity.settings import MAX_GRADIENT_NORM, Size, lr_share
from benchmarks.fidelity.tokens import Tokens
from benchmarks.optimizers import distribution_version, state_bytes
from benchmarks.step_time import Machine
from luma_core.errors import ConfigurationError

TIMED_STEPS = 20
UNTIMED_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """How long and with what each run trains.

    Attributes:
        steps: training steps.
        batch_tokens: tokens in each.
        schedule: of the learning rate.
        evaluations: how often the held-out loss is taken, at even distances.
    """

    steps: int
    batch_tokens: int
    schedule: str
    evaluations: int


class Trainer:
    """Trains one model on one text.

    Args:
        size: sizes of the model.
        tokens: the text.
        device: ``cuda`` trains compiled, in bfloat16 autocast; ``cpu`` eagerly in float32.
        plan: how long to train.

    Raises:
        ConfigurationError: the text is too short, a batch shorter than a sequence, or there are
            more evaluations than steps.
    """

    def __init__(self, size: Size, tokens: Tokens, device: str, plan: Plan) -> None:
        self.machine = Machine(device)
        self.size, self.plan = size, plan
        self.batch = plan.batch_tokens // size.context
        if self.batch < 1:
            raise ConfigurationError(
                f"batch_tokens={plan.batch_tokens} must be at least one context of {size.context}."
            )
        if not 1 <= plan.evaluations <= plan.steps:
            raise ConfigurationError(
                f"evaluations={plan.evaluations} must be from 1 to steps={plan.steps}."
            )
        self.model = GPT2(size, tokens.vocab_size).to(device)
        self.params = list(self.model.parameters())
        self._loss: Callable[[Tensor], Tensor] = (
            torch.compile(self.model, dynamic=False) if device == "cuda" else self.model
        )
        self._train = torch.from_numpy(tokens.train.astype(np.int32)).to(device)
        self._held_out = self._evaluation_batches(tokens, device)
        self._window = torch.arange(size.context + 1, device=device)
        self._initial: dict[int, list[Tensor]] = {}

    def _evaluation_batches(self, tokens: Tokens, device: str) -> Tensor:
        context = self.size.context
        count = min(self.size.held_out_tokens, len(tokens.held_out) - 1) // context
        if count < 1 or len(tokens.train) < 2 * context:
            raise ConfigurationError(
                f"data holds {len(tokens.train)} training and {len(tokens.held_out)} held-out "
                f"tokens; {2 * context} and {context + 1} are needed.",
                hint="Give a longer text.",
            )
        rows = min(self.batch, count)
        starts = np.arange(count // rows * rows)[:, None] * context
        windows = tokens.held_out[starts + np.arange(context + 1)].astype(np.int32)
        return torch.from_numpy(windows).to(device).view(-1, rows, context + 1)

    @property
    def held_out_tokens(self) -> int:
        """Number of tokens evaluated on."""
        return self._held_out[..., 1:].numel()

    def _autocast(self) -> AbstractContextManager[None]:
        if self.machine.device == "cpu":
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast("cuda", dtype=torch.bfloat16)
        return context

    def warm_up(self) -> None:
        """Compile what all runs share, so that no run's time contains it."""
        self.reset(0)
        order = self._order(0)
        for _ in range(UNTIMED_STEPS):
            self._backward(order[0])
        self.evaluate()
        self.machine.synchronize()

    def reset(self, seed: int) -> None:
        """Set the weights to the initial ones of a seed."""
        if seed not in self._initial:
            values = initial_values(self.model, seed)
            self._initial[seed] = [value.to(self.machine.device) for value in values]
        with torch.no_grad():
            for param, value in zip(self.params, self._initial[seed], strict=True):
                param.copy_(value)
                param.grad = None

    def _order(self, seed: int) -> Tensor:
        """Return where the sequences of each step begin, int64 ``[steps, batch, 1]``."""
        rows = self.plan.steps * self.batch
        starts = window_starts(len(self._train), self.size.context, rows, seed)
        return torch.from_numpy(starts).to(self.machine.device).view(self.plan.steps, -1, 1)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss on the held-out text, in nats per token."""
        with self._autocast():
            losses = [self._loss(batch) for batch in self._held_out]
        return float(torch.stack(losses).double().mean())

    def _backward(self, starts: Tensor) -> None:
        with self._autocast():
            loss = self._loss(self._train[starts + self._window])
        loss.backward()

    def run(self, name: str, entry: Entry, *, lr: float, seed: int) -> Run:
        """Train once from the initial weights of ``seed`` and measure."""
        began = time.perf_counter()
        self.reset(seed)
        initial_digest = _digest(torch.stack([p.detach().double().sum() for p in self.params]))
        order = self._order(seed)
        optimizer = entry.build(Job(self.model, lr=lr, seed=seed))
        curve: list[tuple[int, float]] = []
        trained_seconds, done = 0.0, 0
        for part in range(1, self.plan.evaluations + 1):
            until = self.plan.steps * part // self.plan.evaluations
            trained_seconds += self._train_part(optimizer, order, lr, done, until)
            done = until
            curve.append((done, self.evaluate()))
            diverged = not curve[-1][1] <= math.log(self.model.wte.num_embeddings)
            if diverged:
                break
        bits = 8 * state_bytes(optimizer) / sum(param.numel() for param in self.params)
        step_ms = None if diverged else self._step_ms(optimizer)
        self.machine.synchronize()
        return Run(
            optimizer=name,
            version=distribution_version(entry.distribution),
            lr=lr,
            seed=seed,
            held_out=_finite(curve[-1][1]),
            diverged=diverged,
            curve=tuple((step, _finite(loss)) for step, loss in curve),
            bits_per_parameter=bits,
            step_ms=step_ms,
            tokens_per_second=done * self.batch * self.size.context / trained_seconds,
            seconds=time.perf_counter() - began,
            initial_digest=initial_digest,
            order_digest=_digest(order),
        )

    def _train_part(
        self, optimizer: torch.optim.Optimizer, order: Tensor, lr: float, first: int, until: int
    ) -> float:
        """Take steps ``first`` to ``until`` and return the seconds they took."""

        def train() -> None:
            for step in range(first, until):
                set_lr(optimizer, lr * lr_share(self.plan.schedule, step, self.plan.steps))
                optimizer.zero_grad()
                self._backward(order[step])
                torch.nn.utils.clip_grad_norm_(self.params, MAX_GRADIENT_NORM)
                optimizer.step()

        return self.machine.seconds(train)

    def _step_ms(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the median time of more steps with the last gradients, host time included."""
        for _ in range(UNTIMED_STEPS):
            optimizer.step()
        times = [self.machine.seconds(optimizer.step) for _ in range(TIMED_STEPS)]
        return 1e3 * statistics.median(times)


def window_starts(token_count: int, context: int, rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Return where ``rows`` training sequences begin, a pure function of its arguments.

    Each pass over the text cuts it into sequences that do not overlap, from another offset, and
    takes them in another order. ``token_count`` must be at least twice ``context``.
    """
    generator = np.random.default_rng(seed)
    passes: list[npt.NDArray[np.int64]] = []
    while sum(map(len, passes)) < rows:
        offset = int(generator.integers(context))
        count = (token_count - 1 - offset) // context
        passes.append(offset + context * generator.permutation(count))
    return np.concatenate(passes)[:rows]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _digest(values: Tensor) -> str:
    return blake2b(values.cpu().numpy().tobytes(), digest_size=8).hexdigest()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
