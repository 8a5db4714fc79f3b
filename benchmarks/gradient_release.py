"""Peak memory of a training step with gradients kept until ``step()``, and stepped in ``backward``.

``python -m benchmarks.gradient_release [--device cuda|cpu] [--json F]`` trains GPT-2 124M on random
tokens from the same weights: with ``optimizer.step()`` after ``backward``, with that and sparse
gradients of the embedding's lookups, and with `step_in_backward`. After steps that are not
measured, so that the optimizer has its state, each phase of the next step is measured. On a GPU the
figures are ``torch.cuda.max_memory_allocated``; on a CPU, the bytes of the storages of all tensors
that PyTorch's operations made.

A step's peak consists of what stays (weights, optimizer state, what libraries keep) and of what
comes and goes. GPT-2's output layer is its token embedding, the largest parameter, so:

- At the beginning of ``backward`` there are all activations, and the output layer's gradient.
- At its end there are no activations. With ``step()`` there are all gradients, and two more of the
  embedding's size: autograd makes a gradient for each of the two uses, and their sum. Sparse
  lookups save one of these. `step_in_backward` makes such rows itself, and has the output layer's
  gradient and its sum with them, nothing else.

The share saved is the difference of two peaks over the size of all gradients. It may exceed 1, for
what autograd makes beside gradients. Sequences are so short that all ways have their peak at the
end; shorter ones give the same share. Longer ones give less: activations grow with the sequence,
and no way has many gradients yet when all activations are there. With ``--tokens 512`` hardly
anything is saved, unless ``--recompute`` makes the blocks' activations again during ``backward``.

The program fails if the losses of `step_in_backward` differ from those of ``step()`` in any bit.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from benchmarks.fidelity.model import GPT2, initial_values
from benchmarks.fidelity.settings import SIZES, Size
from benchmarks.optimizers import state_bytes
from luma_core import LUMA
from luma_core.optim import step_in_backward

SEED = 0
KEPT, SPARSE, RELEASED = "step()", "step(), sparse lookups", "step_in_backward"
MODELS: dict[str, Size] = {
    # GPT-2's own vocabulary; the benchmark of fidelity has a smaller one.
    "gpt2": replace(SIZES["gpt2"], vocab_size=50257),
    "tiny": replace(SIZES["tiny"], vocab_size=4096),
}


class CudaMemory:
    """Bytes that PyTorch's allocator of the GPU has given out."""

    def now(self) -> int:
        """Return the bytes that are given out."""
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def peak_of(self, work: Callable[[], Any]) -> int:
        """Return the most that was given out at any time during some work."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


class StorageMemory(TorchDispatchMode):
    """Bytes of the storages that operations under this mode made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._bytes = self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.layout is torch.strided:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self._bytes += storage.nbytes()
        self._peak = max(self._peak, self._bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._bytes -= self._live.pop(key)

    def now(self) -> int:
        """Return the bytes that are there."""
        return self._bytes

    def peak_of(self, work: Callable[[], Any]) -> int:
        """Return the most that was there at any time during some work."""
        self._peak = self._bytes
        work()
        return self._peak


Memory = CudaMemory | StorageMemory


@dataclass(frozen=True)
class Row:
    """One way of training.

    Attributes:
        way: its name.
        losses: of all steps, in nats per token.
        kept_bytes: what was allocated before the measured step.
        weight_bytes: of it, the parameters.
        state_bytes: of it, the optimizer's state.
        forward_bytes: the peak during forward.
        backward_bytes: the peak during backward.
        step_bytes: the peak during ``optimizer.step()``.
    """

    way: str
    losses: list[float]
    kept_bytes: int
    weight_bytes: int
    state_bytes: int
    forward_bytes: int
    backward_bytes: int
    step_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The peak of the whole step."""
        return max(self.forward_bytes, self.backward_bytes, self.step_bytes)


class Training:
    """A model and its optimizer, trained in one way on tokens that its step's number selects."""

    def __init__(
        self, way: str, size: Size, device: str, tokens: int, *, recompute: bool = False
    ) -> None:
        self.size, self.device, self.tokens, self.done = size, device, tokens, 0
        self.model = GPT2(size, size.vocab_size).to(device)
        with torch.no_grad():
            pairs = zip(self.model.parameters(), initial_values(self.model, SEED), strict=True)
            for param, value in pairs:
                param.copy_(value)
        self.model.wte.sparse = way == SPARSE
        if recompute:
            for block in self.model.h:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.optimizer = LUMA(self.model.named_parameters(), lr=1e-3, seed=SEED)
        if way == RELEASED:
            step_in_backward(self.model, self.optimizer)
        self.losses: list[float] = []
        self._loss: Tensor | None = None

    def forward(self) -> None:
        """Compute the loss of the next tokens."""
        generator = torch.Generator().manual_seed(self.done)
        shape = (1, self.tokens + 1)
        batch = torch.randint(self.size.vocab_size, shape, generator=generator)
        self._loss = self.model(batch.to(self.device))

    def backward(self) -> None:
        """Compute the gradients."""
        assert self._loss is not None
        self._loss.backward()
        self.losses.append(self._loss.item())
        self._loss = None

    def step(self) -> None:
        """Update the weights and drop the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1


def measure(way: str, size: Size, options: argparse.Namespace) -> Row:
    """Train in one way for the steps that are not measured, and measure one more."""
    memory: Memory = CudaMemory() if options.device == "cuda" else StorageMemory()
    with nullcontext() if isinstance(memory, CudaMemory) else memory:
        training = Training(way, size, options.device, options.tokens, recompute=options.recompute)
        phases = (training.forward, training.backward, training.step)
        for _ in range(options.steps):
            for phase in phases:
                phase()
        gc.collect()
        kept = memory.now()
        peaks = [memory.peak_of(phase) for phase in phases]
    return Row(
        way,
        training.losses,
        kept,
        sum(param.nbytes for param in training.model.parameters()),
        state_bytes(training.optimizer),
        *peaks,
    )


def report(rows: list[Row], size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was found, as it is written."""
    gradient_bytes = rows[0].weight_bytes
    by_way = {row.way: row for row in rows}
    released = by_way[RELEASED].peak_bytes
    cuda = options.device == "cuda"
    return {
        "benchmark": "gradient_release",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "model": size.name,
        "vocab_size": size.vocab_size,
        "tokens": options.tokens,
        "steps": options.steps,
        "recompute": options.recompute,
        "gradient_bytes": gradient_bytes,
        "largest_gradient_bytes": size.vocab_size * size.width * 4,
        "saved_share": (by_way[KEPT].peak_bytes - released) / gradient_bytes,
        "saved_share_of_sparse": (by_way[SPARSE].peak_bytes - released) / gradient_bytes,
        "equal_losses": by_way[KEPT].losses == by_way[RELEASED].losses,
        "rows": [{**asdict(row), "peak_bytes": row.peak_bytes} for row in rows],
    }


def print_report(found: dict[str, Any]) -> None:
    """Print the table and what follows from it, in MiB."""
    columns = ("weight", "state", "kept", "forward", "backward", "step", "peak")
    print(f"{'MiB':24}" + "".join(f"{name:>10}" for name in columns) + f"{'last loss':>12}")
    for row in found["rows"]:
        values = "".join(f"{row[f'{name}_bytes'] / 2**20:>10.1f}" for name in columns)
        print(f"{row['way']:24}{values}{row['losses'][-1]:>12.6f}")
    gradients, largest = (
        found[f"{name}_bytes"] / 2**20 for name in ("gradient", "largest_gradient")
    )
    print(f"all gradients {gradients:.1f} MiB, the largest of them {largest:.1f} MiB")
    print(
        f"{RELEASED} saves {found['saved_share']:.1%} of the gradients' size against {KEPT}, "
        f"{found['saved_share_of_sparse']:.1%} against {SPARSE}"
    )
    print("losses are " + ("equal in every bit" if found["equal_losses"] else "NOT EQUAL"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_release")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2")
    parser.add_argument("--tokens", type=int, default=128, help="of the one sequence of a step")
    parser.add_argument("--steps", type=int, default=4, help="before the measured one")
    parser.add_argument("--recompute", action="store_true", help="activations of the blocks")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args(arguments)
    context = MODELS[options.model].context
    if not 0 < options.tokens <= context:
        parser.error(f"--tokens {options.tokens} must be from 1 to {context}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure all ways, print and write what was found; exit with 1 if losses differ."""
    options = parse(arguments)
    # Equal losses need sums in one order; cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    size = MODELS[options.model]
    rows = []
    with sdpa_kernel(SDPBackend.MATH):
        for way in (KEPT, SPARSE, RELEASED):
            rows.append(measure(way, size, options))
            gc.collect()
    found = report(rows, size, options)
    print_report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if not found["equal_losses"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
