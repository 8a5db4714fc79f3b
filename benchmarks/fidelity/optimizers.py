"""The optimizers by name; a new one is one line of `OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from benchmarks.fidelity.model import GPT2
from benchmarks.fidelity.probes import PREFIX, ProbeAdamW
from benchmarks.fidelity.segments import PREFIX as SEGMENTS
from benchmarks.fidelity.segments import SegmentProbe, read_name
from benchmarks.fidelity.settings import BETAS, EPS, WEIGHT_DECAY

BASELINE = "adamw"


@dataclass(frozen=True)
class Job:
    """What an optimizer is built for.

    Attributes:
        model: the model, whose sizes and names some optimizers need.
        lr: peak learning rate.
        seed: of the optimizer's own noise.
    """

    model: GPT2
    lr: float
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """Options that all optimizers share."""
        return {"lr": self.lr, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}

    def groups(self, *, named: bool = False) -> list[dict[str, Any]]:
        """Return two groups: matrices, and the norms and biases that do not decay."""
        groups: list[dict[str, Any]] = [
            {"params": [], "weight_decay": WEIGHT_DECAY},
            {"params": [], "weight_decay": 0.0},
        ]
        for name, param in self.model.named_parameters():
            groups[param.ndim < 2]["params"].append((name, param) if named else param)
        return groups


Build = Callable[[Job], torch.optim.Optimizer]


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Attributes:
        distribution: the Python distribution that it comes from.
        build: makes it.
        lr_scale: factor on the learning rates of the sweep, for rules of another scale.
        twin: the optimizer of the same rule with its state in float32.
    """

    distribution: str
    build: Build
    lr_scale: float = 1.0
    twin: str = BASELINE


def _torch(**options: Any) -> Build:
    return lambda job: torch.optim.AdamW(job.groups(), **{**job.options, **options})


def _luma(name: str, **options: Any) -> Build:
    """Build one of this project's optimizers, which take names and a seed."""

    def build(job: Job) -> torch.optim.Optimizer:
        kind = getattr(import_module("luma_core"), name)
        groups = job.groups(named=True)
        chosen = {**job.options, "seed": job.seed, **options}
        optimizer: torch.optim.Optimizer = kind(groups, **chosen)
        return optimizer

    return build


def _peer(module: str, name: str, **options: Any) -> Build:
    def build(job: Job) -> torch.optim.Optimizer:
        kind = getattr(import_module(module), name)
        optimizer: torch.optim.Optimizer = kind(job.groups(), **job.options, **options)
        return optimizer

    return build


def _adam_mini(job: Job) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = import_module("luma_core").AdamMini(
        job.groups(named=True),
        n_heads=job.model.size.heads,
        model=job.model,
        seed=job.seed,
        **job.options,
    )
    return optimizer


def _adam_mini_1(job: Job) -> torch.optim.Optimizer:
    size = job.model.size
    optimizer: torch.optim.Optimizer = import_module("adam_mini").Adam_mini(
        named_parameters=list(job.model.named_parameters()),
        dim=size.width,
        n_heads=size.heads,
        verbose=False,
        **job.options,
    )
    for group in optimizer.param_groups:
        if group["params"][0].ndim < 2:
            group["weight_decay"] = 0.0
    return optimizer


OPTIMIZERS: dict[str, Entry] = {
    BASELINE: Entry("torch", _torch(fused=True)),
    "adamw-beta1-0.95": Entry("torch", _torch(fused=True, betas=(0.95, 0.999))),
    "adamw-foreach": Entry("torch", _torch(foreach=True)),
    "luma": Entry("luma-state", _luma("LUMA")),
    "turboadam": Entry("luma-state", _luma("TurboAdam")),
    "turboadam-8bit": Entry("luma-state", _luma("TurboAdam", preset="8bit")),
    "turboadam-m4-v2": Entry("luma-state", _luma("TurboAdam", m_bits=4)),
    "turboadam-m4-v4": Entry("luma-state", _luma("TurboAdam", m_bits=4, v_bits=4, v_floor=None)),
    "adam-mini": Entry("luma-state", _adam_mini),
    "lamb-fp32": Entry("luma-state", _luma("LAMB", codec="fp32"), lr_scale=10, twin="lamb-fp32"),
    "lamb": Entry("luma-state", _luma("LAMB"), lr_scale=10, twin="lamb-fp32"),
    "flashoptim": Entry("flashoptim", _peer("flashoptim", "FlashAdamW", master_weight_bits=None)),
    "turboadam-0.2": Entry("turboadam", _peer("turboadam", "TurboAdam")),
    "torchao-4bit": Entry("torchao", _peer("torchao.optim", "AdamW4bit")),
    "torchao-8bit": Entry("torchao", _peer("torchao.optim", "AdamW8bit")),
    "torchao-fp8": Entry("torchao", _peer("torchao.optim", "AdamWFp8")),
    "bitsandbytes-8bit": Entry("bitsandbytes", _peer("bitsandbytes.optim", "AdamW8bit")),
    "adam-mini-1.1": Entry("adam-mini", _adam_mini_1),
}
"""``adamw-foreach`` is AdamW in other kernels: its gap to ``adamw`` shows what rounding does."""


def entry_of(name: str) -> Entry | None:
    """Return the optimizer ``name``, a probe's where it is one; ``None`` if there is none."""
    if name.startswith(SEGMENTS):
        return _segments(name)
    if not name.startswith(PREFIX) or "/" not in name:
        return OPTIMIZERS.get(name)
    m, v = name.removeprefix(PREFIX).split("/", 1)
    return Entry("torch", lambda job: ProbeAdamW(job.groups(), m=m, v=v, **job.options))


def _segments(name: str) -> Entry:
    parts, modifiers = read_name(name)

    def build(job: Job) -> torch.optim.Optimizer:
        groups, heads = job.groups(named=True), job.model.size.heads
        return SegmentProbe(groups, parts=parts, modifiers=modifiers, heads=heads, **job.options)

    return Entry("torch", build)
