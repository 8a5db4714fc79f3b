"""The optimizers whose steps are compared; peers are imported only when they are measured."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shapes import parameter_names
from luma_core import LAMB, LUMA, AdamMini, Lion, Muon, TurboAdam

OPTIONS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

BASELINE = "torch AdamW fused"

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def _peer(module: str, name: str) -> Build:
    def build(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        kind = getattr(import_module(module), name)
        optimizer: torch.optim.Optimizer = kind(params, **OPTIONS)
        return optimizer

    return build


def _own_adam_mini(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    names = parameter_names([tuple(param.shape) for param in params])
    named = list(zip(names, params, strict=True))
    heads = {"n_heads": 12} if names[0] == "wte.weight" else {"n_heads": 32, "n_kv_heads": 8}
    return AdamMini(named, seed=0, **heads, **OPTIONS)


def _own_muon(params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    names = parameter_names([tuple(param.shape) for param in params])
    return Muon(list(zip(names, params, strict=True)), seed=0, **options)


def _torch_muon(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon([param for param in params if param.dim() == 2])


def _adam_mini(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind = import_module("adam_mini").Adam_mini
    # Names decide its partition; these make matrices one of its rows per output.
    named = [(f"layer{index}.mlp.weight", param) for index, param in enumerate(params)]
    optimizer: torch.optim.Optimizer = kind(
        named_parameters=named, dim=2048, n_heads=32, verbose=False, **OPTIONS
    )
    return optimizer


OPTIMIZERS: dict[str, tuple[str, Build]] = {
    BASELINE: ("torch", lambda p: torch.optim.AdamW(p, fused=True, **OPTIONS)),
    "torch AdamW foreach": ("torch", lambda p: torch.optim.AdamW(p, foreach=True, **OPTIONS)),
    "LUMA": ("luma-state", lambda p: LUMA(p, seed=0, **OPTIONS)),
    "LUMA block_size=None": ("luma-state", lambda p: LUMA(p, seed=0, block_size=None, **OPTIONS)),
    "TurboAdam": ("luma-state", lambda p: TurboAdam(p, seed=0, **OPTIONS)),
    "TurboAdam 8bit": ("luma-state", lambda p: TurboAdam(p, seed=0, preset="8bit", **OPTIONS)),
    "AdamMini": ("luma-state", _own_adam_mini),
    "LAMB": ("luma-state", lambda p: LAMB(p, seed=0, **OPTIONS)),
    "LAMB max_grad_norm": ("luma-state", lambda p: LAMB(p, seed=0, max_grad_norm=1.0, **OPTIONS)),
    "Lion": ("luma-state", lambda p: Lion(p, seed=0)),
    "Lion 8bit": ("luma-state", lambda p: Lion(p, seed=0, codec="8bit")),
    "Muon": ("luma-state", _own_muon),
    "Muon 8bit": ("luma-state", lambda p: _own_muon(p, codec="8bit")),
    "Muon fp32": ("luma-state", lambda p: _own_muon(p, codec="fp32")),
    "torch Muon, matrices alone": ("torch", _torch_muon),
    "bitsandbytes AdamW8bit": ("bitsandbytes", _peer("bitsandbytes.optim", "AdamW8bit")),
    "torchao AdamW8bit": ("torchao", _peer("torchao.optim", "AdamW8bit")),
    "torchao AdamW4bit": ("torchao", _peer("torchao.optim", "AdamW4bit")),
    "torchao AdamWFp8": ("torchao", _peer("torchao.optim", "AdamWFp8")),
    "FlashOptim FlashAdamW": ("flashoptim", _peer("flashoptim", "FlashAdamW")),
    "turboadam TurboAdam": ("turboadam", _peer("turboadam", "TurboAdam")),
    "adam-mini Adam_mini": ("adam-mini", _adam_mini),
}
"""Distribution and constructor of each."""


def distribution_version(distribution: str) -> str:
    """Return the installed version; raises PackageNotFoundError where there is none."""
    if distribution == "luma-state":
        from luma_core import __version__

        return __version__
    return version(distribution)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors in an optimizer's state, each storage counted once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if hasattr(value, "__tensor_flatten__"):
                for name in value.__tensor_flatten__()[0]:
                    visit(getattr(value, name))
            else:
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "__dict__"):
            visit(vars(value))

    for state in optimizer.state.values():
        visit(state)
    return sum(storages.values())
