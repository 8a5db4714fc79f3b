"""Finds the fused step for GPUs, without importing Triton before it is used."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from luma_core.errors import BackendUnavailableError

if TYPE_CHECKING:
    from luma_core.rules import Rule
    from luma_kernels.triton.runtime.launcher import FusedStep


@cache
def why_no_triton() -> str:
    """Return why Triton kernels cannot run here, or an empty string where they can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return ""


def fused_step_class(backend: str, rule: Rule) -> type[FusedStep] | None:
    """Return the fused step for GPUs; ``None`` where backend, machine or rule has none.

    Raises:
        BackendUnavailableError: there is none, and it was asked for by name.
    """
    if backend not in ("auto", "triton"):
        return None
    reason = why_no_triton()
    if not reason:
        from luma_kernels.triton.runtime.launcher import FusedStep

        if FusedStep.supports(rule):
            return FusedStep
        reason = f"there is no Triton kernel of the rule {type(rule).__name__}"
    if backend == "triton":
        raise BackendUnavailableError(
            f"backend='triton' cannot run here: {reason}.",
            hint="Use backend='auto' or 'pytorch'.",
        )
    return None
