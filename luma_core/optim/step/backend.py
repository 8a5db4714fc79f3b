"""The one place that decides which backend takes a step.

``pytorch`` is eager PyTorch: runs everywhere and defines the result. ``native`` is the compiled
CPU library. ``triton`` is for GPUs. ``auto`` takes the fastest that a tensor's device, layout,
rule and codecs allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from luma_core.codecs import Codec
from luma_core.errors import BackendUnavailableError, ConfigurationError
from luma_core.native import native_cpu
from luma_core.optim.step.gpu import why_no_triton
from luma_core.rules import ParameterStep, Rule

BACKENDS = ("auto", "pytorch", "triton", "native")

_DEVICES = {"native": "cpu", "triton": "cuda"}
"""The one kind of device of the backends that have one."""


class BackendChoice(NamedTuple):
    """A backend and why it was chosen."""

    backend: str
    reason: str


def check_backend(backend: str) -> str:
    """Return ``backend`` if it can be used.

    Raises:
        ConfigurationError: the name is not one of ``BACKENDS``.
        BackendUnavailableError: it was asked for by name and cannot run here.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(
            f"backend={backend!r} must be one of {', '.join(map(repr, BACKENDS))}."
        )
    if backend == "triton":
        reason = why_no_triton()
        if reason:
            raise BackendUnavailableError(
                f"backend='triton' cannot run here: {reason}.",
                hint="Use backend='auto' or 'pytorch'.",
            )
    if backend == "native" and native_cpu() is None:
        raise BackendUnavailableError(
            "backend='native' needs the compiled CPU library, which cannot be used here.",
            hint="`luma doctor` says why; backend='auto' falls back to PyTorch.",
        )
    return backend


def check_device(backend: str, name: str, stepped: torch.device) -> None:
    """Check that a backend asked for by name can step the parameter ``name``.

    Raises:
        BackendUnavailableError: it is stepped on a device that the backend does not serve.
    """
    device = _DEVICES.get(backend)
    if device is not None and stepped.type != device:
        raise BackendUnavailableError(
            f"backend={backend!r} steps parameters on {device}, and {name!r} is on {stepped}.",
            hint="Use backend='auto', which picks a backend for each parameter.",
        )


def check_codecs_of_backend(
    backend: str, rule: Rule, name: str, codecs: Mapping[str, Codec]
) -> None:
    """Check that the native backend, asked for by name, has a kernel for the parameter ``name``.

    Raises:
        BackendUnavailableError: it has none for the parameter's codecs.
    """
    if backend != "native":
        return
    choice = choose("cpu", rule, codecs)
    if choice.backend != "native":
        raise BackendUnavailableError(
            f"backend='native' cannot step {name!r}: {choice.reason}.",
            hint="Use backend='auto', which takes PyTorch's slower path for it.",
        )


def choose(device: str, rule: Rule, codecs: Mapping[str, Codec]) -> BackendChoice:
    """Return the backend that ``auto`` picks for contiguous tensors, and why.

    Args:
        device: type of the parameters' device, such as ``"cpu"``.
        rule: the update rule.
        codecs: the codec of each moment.
    """
    if device == "cpu":
        cpu = native_cpu()
        why_not = (
            "the native CPU library cannot be used"
            if cpu is None
            else cpu.unsupported_codecs(rule, codecs)
        )
        fast = BackendChoice("native", "the native CPU library has a kernel for it")
    elif device == "cuda":
        why_not = why_no_triton() or _why_no_triton_kernel(rule, codecs)
        fast = BackendChoice("triton", "one launch steps all tensors of a kind")
    else:
        return BackendChoice("pytorch", f"there are no kernels for {device}")
    return BackendChoice("pytorch", why_not) if why_not else fast


def _why_no_triton_kernel(rule: Rule, codecs: Mapping[str, Codec]) -> str:
    from luma_kernels.triton.runtime.registry import KERNELS

    if type(rule) not in KERNELS:
        return f"there is no Triton kernel of the rule {type(rule).__name__}"
    probe = torch.empty(0, device="cpu")
    options = {"nonfinite": "skip", "stochastic_rounding": True, "maximize": False}
    if KERNELS[type(rule)].bucket(probe, probe, codecs, options):
        return ""
    names = " and ".join(codec.name for codec in codecs.values())
    return f"there is no Triton kernel of the codecs {names} with this block size"


def step_parameter(backend: str, rule: Rule, item: ParameterStep) -> Tensor:
    """Take one parameter's step with the backend that suits it: see `Rule.step_parameter`.

    Tensors that a kernel cannot take, such as float64 gradients, take PyTorch's path under every
    backend.
    """
    if backend in ("auto", "native") and item.param.device.type == "cpu":
        cpu = native_cpu()
        if cpu is not None and not cpu.unsupported_step(rule, item):
            bad: Tensor = cpu.step_parameter(item)
            return bad
    return rule.step_parameter(item)
