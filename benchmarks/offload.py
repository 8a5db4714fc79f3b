"""Steps with state in the host's memory: against the link, against resident state, against peers.

``python -m benchmarks.offload [--json F] [--only PART,PART]`` on one GPU, with the shapes of
`benchmarks.shapes.llama1b`, bfloat16 parameters and gradients. Three measurements:

- *link*: pinned memory of the host to the device and back, both at once, in copies as large as
  those of a step. Optimizers are held to the time that this takes for their state.
- *steps*: the time of a step in a row of steps, as in training without a model; the device memory
  that state takes; and whether parameters and state have equal bits with the resident optimizer's
  after as many steps.
- *training*: whole steps of a Llama of that size, 8 sequences of 2,048 random tokens, in turns:
  resident and offloaded, and the CPU offload of torchao where it is installed.

Times are medians over turns. In training each turn makes model and optimizer anew; two steps go
before those that are timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shapes import llama1b, parameter_names
from benchmarks.step_time import make_parameters
from luma_core import LUMA, TurboAdam
from luma_core.optim import step_in_backward
from luma_core.optim.offload import DEFAULT_BUFFER_BYTES
from luma_core.optim.offload.choice import measured_link

DEVICE = torch.device("cuda")
BATCH, LENGTH = 8, 2048
HEADS, KV_HEADS, HEAD = 32, 8, 64
STEPS_PER_TURN = 6
Named = list[tuple[str, nn.Parameter]]
Make = Callable[[Named], torch.optim.Optimizer]

STEPS: dict[str, tuple[Make, str | None]] = {
    "LUMA resident": (lambda named: LUMA(named, seed=0), None),
    "LUMA host": (lambda named: LUMA(named, seed=0, offload="host"), "LUMA resident"),
    "LUMA cpu-step": (lambda named: LUMA(named, seed=0, offload="cpu-step"), None),
    "TurboAdam resident": (lambda named: TurboAdam(named, seed=0), None),
    "TurboAdam host": (
        lambda named: TurboAdam(named, seed=0, offload="host"),
        "TurboAdam resident",
    ),
    "TurboAdam cpu-step": (lambda named: TurboAdam(named, seed=0, offload="cpu-step"), None),
}
"""Constructor, and the resident optimizer that must have equal bits."""


@dataclass(frozen=True)
class StepRow:
    """What was measured of steps alone.

    Attributes:
        name: of the optimizer and where its state is.
        step_ms: median time of a step.
        state_bytes: bytes of state.
        device_bytes: device memory that is there after a step and was not before the first.
        link_share: the step's time over that of moving the state both ways at once; ``None`` for
            resident state.
        identical: whether bits are those of the resident optimizer; ``None`` where not compared.
    """

    name: str
    step_ms: float
    state_bytes: int
    device_bytes: int
    link_share: float | None
    identical: bool | None


@dataclass(frozen=True)
class TrainingRow:
    """What was measured of whole training steps.

    Attributes:
        name: of the optimizer and where its state is.
        step_ms: median time of a training step.
        ratio: over that of the resident TurboAdam.
        peak_bytes: most device memory during a step.
    """

    name: str
    step_ms: float
    ratio: float | None
    peak_bytes: int


def collect() -> None:
    """Free what is not referred to any more."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the tensors in an optimizer's state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def duplex_bytes_per_second(total_bytes: int, run_bytes: int = 16 << 20) -> float:
    """Return the bytes that cross the link each way in a second, both ways at once."""
    from luma_core.optim.offload.arena import HostArena

    arena = HostArena(total_bytes, pin=True)
    near = torch.empty(2 * run_bytes, dtype=torch.uint8, device=DEVICE)
    up, down = torch.cuda.Stream(), torch.cuda.Stream()
    best = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        runs = arena.bytes.split(run_bytes)
        for run in runs:
            with torch.cuda.stream(up):
                near[: run.numel()].copy_(run, non_blocking=True)
            with torch.cuda.stream(down):
                run.copy_(near[run_bytes : run_bytes + run.numel()], non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, total_bytes / (time.perf_counter() - start))
    return best


def step_rows(duplex: float, only: list[str]) -> list[StepRow]:
    """Measure steps alone."""
    rows: list[StepRow] = []
    kept: dict[str, tuple[list[Tensor], dict[str, Any]]] = {}
    for name, (make, same_as) in STEPS.items():
        if not any(part in name for part in only):
            continue
        params = make_parameters("llama1b", torch.bfloat16, "cuda")
        named = list(zip(parameter_names(llama1b()), params, strict=True))
        collect()
        before = torch.cuda.memory_allocated()
        optimizer = make(named)
        count = 4 if "cpu-step" in name else 12
        for _ in range(2):
            optimizer.step()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        turns = []
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(count):
                optimizer.step()
            torch.cuda.synchronize()
            turns.append((time.perf_counter() - start) / count)
        seconds, nbytes = statistics.median(turns), state_bytes(optimizer)
        same = None
        if name.endswith("resident"):
            state = {f"{i}.{k}": v.cpu() for i, s in _states(optimizer) for k, v in s.items()}
            kept[name] = [p.detach().cpu() for p in params], state
        elif same_as is not None:
            values, state = kept.pop(same_as)
            same = all(
                torch.equal(p.detach().cpu(), v) for p, v in zip(params, values, strict=True)
            )
            same = same and all(
                torch.equal(v.cpu(), state[f"{i}.{k}"])
                for i, s in _states(optimizer)
                for k, v in s.items()
            )
            del values, state
        share = None if name.endswith("resident") else seconds * duplex / nbytes
        rows.append(StepRow(name, seconds * 1e3, nbytes, held, share, same))
        print(_step_line(rows[-1]), flush=True)
        del optimizer, params, named
        collect()
    return rows


def _states(optimizer: torch.optim.Optimizer) -> list[tuple[int, dict[str, Tensor]]]:
    return list(optimizer.state_dict()["state"].items())


def _step_line(row: StepRow) -> str:
    share = "" if row.link_share is None else f"{row.link_share:.2f} of the link's time"
    same = "" if row.identical is None else f"equal bits: {row.identical}"
    return (
        f"{row.name:22}{row.step_ms:9.2f} ms  state {row.state_bytes / 2**20:7.0f} MiB, on the "
        f"device {row.device_bytes / 2**20:7.1f} MiB  {share} {same}"
    )


class Attention(nn.Module):
    """Grouped-query attention without positions, whose cost does not matter here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(width, KV_HEADS * HEAD, bias=False)
        self.v_proj = nn.Linear(width, KV_HEADS * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend causally; ``x`` is [batch, length, width]."""
        q, k, v = (
            linear(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer of a Llama."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, of the shape of ``x``."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """The model whose shapes `benchmarks.shapes.llama1b` lists."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32000, 2048)
        self.layers = nn.Sequential(*(Block(2048, 8192) for _ in range(16)))
        self.norm = nn.RMSNorm(2048)
        self.lm_head = nn.Linear(2048, 32000, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the loss of predicting each next token; ``tokens`` is int64 [batch, length]."""
        x = self.norm(self.layers(self.embed_tokens(tokens[:, :-1])))
        return F.cross_entropy(self.lm_head(x).flatten(0, 1), tokens[:, 1:].flatten())


def _ours(kind: Any, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: kind(list(model.named_parameters()), seed=0, lr=1e-5, **options)


def _torchao(model: nn.Module) -> torch.optim.Optimizer:
    kind = import_module("torchao.optim").CPUOffloadOptimizer
    made: torch.optim.Optimizer = kind(model.parameters(), torch.optim.AdamW, fused=True, lr=1e-5)
    return made


def _bitsandbytes(model: nn.Module) -> torch.optim.Optimizer:
    kind = import_module("bitsandbytes.optim").PagedAdamW8bit
    made: torch.optim.Optimizer = kind(model.parameters(), lr=1e-5)
    return made


RESIDENT = "TurboAdam resident"
IN_BACKWARD = ", in backward"
TRAINING: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    RESIDENT: _ours(TurboAdam),
    "TurboAdam host": _ours(TurboAdam, offload="host"),
    RESIDENT + IN_BACKWARD: _ours(TurboAdam),
    "TurboAdam host" + IN_BACKWARD: _ours(TurboAdam, offload="host"),
    "LUMA resident": _ours(LUMA),
    "LUMA host": _ours(LUMA, offload="host"),
    "LUMA host" + IN_BACKWARD: _ours(LUMA, offload="host"),
    "TurboAdam cpu-step": _ours(TurboAdam, offload="cpu-step"),
    "torchao CPUOffloadOptimizer(AdamW)": _torchao,
    "bitsandbytes PagedAdamW8bit": _bitsandbytes,
}


def training_rows(only: list[str], turns: int) -> list[TrainingRow]:
    """Measure whole training steps."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    tokens = torch.randint(32000, (BATCH, LENGTH + 1), generator=generator, device=DEVICE)
    times: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for _ in range(turns):
        for name, make in TRAINING.items():
            if not any(part in name for part in only):
                continue
            with suppress(ImportError):
                seconds, peaks[name] = _training_turn(tokens, make, IN_BACKWARD in name)
                times.setdefault(name, []).append(seconds)
                print(f"{name:40}{seconds * 1e3:9.1f} ms", flush=True)
            collect()
    base = statistics.median(times[RESIDENT]) if RESIDENT in times else None
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [
        TrainingRow(name, found * 1e3, base and found / base, peaks[name])
        for name, found in medians.items()
    ]


def _training_turn(
    tokens: Tensor,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    in_backward: bool,
) -> tuple[float, int]:
    torch.manual_seed(0)
    # Anew for each turn: torchao leaves hooks on parameters.
    with DEVICE:
        model = Llama().to(torch.bfloat16)
    optimizer = make(model)
    handle = step_in_backward(model, optimizer) if in_backward else None  # type: ignore[arg-type]
    start = 0.0
    for index in range(-2, STEPS_PER_TURN):
        if index == 0:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
        model(tokens).backward()
        if handle is None:
            optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / STEPS_PER_TURN
    if handle is not None:
        handle.remove()
    return seconds, torch.cuda.max_memory_allocated()


def main() -> None:
    """Run, print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="parts of names, comma-separated")
    parser.add_argument("--turns", type=int, default=2, help="of each optimizer in training")
    parser.add_argument("--json", type=Path, help="file to keep the results in")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.offload needs a CUDA device.")
    link, duplex = measured_link(torch.device("cuda", 0)), duplex_bytes_per_second(1 << 30)
    print(f"link: {asdict(link)}, both ways at once in runs of 16 MiB: {duplex / 1e9:.1f} GB/s")
    found: dict[str, Any] = {
        "benchmark": "offload",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "link": {**asdict(link), "duplex": duplex},
        "buffer_bytes": DEFAULT_BUFFER_BYTES,
    }
    found["steps"] = [asdict(row) for row in step_rows(duplex, only)]
    _write(arguments.json, found)
    found["training"] = [asdict(row) for row in training_rows(only, arguments.turns)]
    for row in found["training"]:
        ratio, gib = row["ratio"] or 0.0, row["peak_bytes"] / 2**30
        print(f"{row['name']:40}{row['step_ms']:9.1f} ms  {ratio:6.3f}  peak {gib:5.1f} GiB")
    _write(arguments.json, found)


def _write(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
