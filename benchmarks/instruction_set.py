"""Holds a benchmark of the CPU to one instruction set, in PyTorch's kernels and in ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from luma_core.errors import BackendUnavailableError
from luma_kernels import cpu

INSTRUCTION_SETS = ("avx2", "avx512")


def torch_instruction_set() -> str:
    """Return the instruction set of PyTorch's kernels, such as ``"avx2"``."""
    return torch.backends.cpu.get_cpu_capability().lower()


def hold_to(name: str, arguments: Sequence[str]) -> None:
    """Let PyTorch's kernels and ours use the instruction set ``name``, and none beyond it.

    PyTorch chooses once, when it is loaded: where it chose another, this does not return but
    replaces the process by ``python -m benchmarks.step_time`` with ``arguments``.

    Raises:
        SystemExit: this CPU or the native library does not have the instruction set.
    """
    try:
        cpu.use_instruction_set(name)
    except BackendUnavailableError as error:
        raise SystemExit(str(error)) from error
    if torch_instruction_set() == name:
        return
    if os.environ.get("ATEN_CPU_CAPABILITY") == name:
        raise SystemExit(f"PyTorch has no {name} kernels: it uses {torch_instruction_set()}.")
    command = [sys.executable, "-m", "benchmarks.step_time", *arguments]
    os.execve(sys.executable, command, {**os.environ, "ATEN_CPU_CAPABILITY": name})
