"""The Triton kernels of ``luma_kernels``, for CUDA devices.

Neither they nor Triton are imported before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from luma_core.backends.base import Backend, JointStep
from luma_core.codecs import Codec
from luma_core.errors import BackendUnavailableError

if TYPE_CHECKING:
    from luma_core.rules import Rule


@cache
def why_no_triton() -> str:
    """Return why Triton kernels cannot run here, or an empty string where they can."""
    reason = TRITON.why_not_installed()
    if reason:
        return reason
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return ""


def _kernels() -> tuple[Mapping[type[Rule], Any], Callable[[torch.device, Rule], JointStep]]:
    """Return the kernels of each rule, and what launches them on a device."""
    from luma_kernels.triton.fused.launcher import FusedStep
    from luma_kernels.triton.fused.registry import KERNELS

    return KERNELS, FusedStep


def fused_step_class(rule: Rule) -> Callable[[torch.device, Rule], JointStep] | None:
    """Return what steps all tensors of a device together; ``None`` for rules without kernels."""
    kernels, fused = _kernels()
    return fused if type(rule) in kernels else None


def _unavailable(reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"backend='triton' cannot run here: {reason}.", hint="Use backend='auto' or 'pytorch'."
    )


class Triton(Backend):
    """Fused kernels: one launch steps all tensors of a kind."""

    name: ClassVar[str] = "triton"
    device: ClassVar[str | None] = "cuda"
    advantage: ClassVar[str] = "one launch steps all tensors of a kind"

    def why_not_installed(self) -> str:
        return "" if find_spec("triton") else "the package triton is not installed"

    def why_unavailable(self) -> str:
        return why_no_triton()

    def check_available(self) -> None:
        reason = why_no_triton()
        if reason:
            raise _unavailable(reason)

    def why_no_kernel(self, rule: Rule, codecs: Mapping[str, Codec]) -> str:
        kernels, _ = _kernels()
        if type(rule) not in kernels:
            return f"there is no Triton kernel of the rule {type(rule).__name__}"
        probe = torch.empty(0, device="cpu")
        options = {"nonfinite": "skip", "stochastic_rounding": True, "maximize": False}
        if kernels[type(rule)].bucket(probe, probe, codecs, options):
            return ""
        names = " and ".join(codec.name for codec in codecs.values())
        return f"there is no Triton kernel of the codecs {names} with this block size"

    def joint_step(
        self, backend: str, rule: Rule
    ) -> Callable[[torch.device, Rule], JointStep] | None:
        """Return what makes the step of a device's tensors together.

        Args:
            backend: what the optimizer asks for.
            rule: its rule.

        Returns:
            ``None`` where backend, machine or rule has none.

        Raises:
            BackendUnavailableError: there is none, and it was asked for by name.
        """
        if backend not in ("auto", self.name):
            return None
        reason = why_no_triton()
        if not reason:
            found = fused_step_class(rule)
            if found is not None:
                return found
            reason = f"there is no Triton kernel of the rule {type(rule).__name__}"
        if backend == self.name:
            raise _unavailable(reason)
        return None


TRITON = Triton()
