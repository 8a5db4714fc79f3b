"""The one place that decides which backend takes a step.

``auto`` takes the fastest that a tensor's device, layout, rule and codecs allow; a backend that is
asked for by name and cannot run raises an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from luma_core.backends.base import Backend
from luma_core.backends.eager import EAGER
from luma_core.backends.native import NATIVE
from luma_core.backends.triton import TRITON
from luma_core.codecs import Codec
from luma_core.errors import BackendUnavailableError, ConfigurationError
from luma_core.rules import ParameterStep, Rule

BY_NAME: dict[str, Backend] = {backend.name: backend for backend in (EAGER, TRITON, NATIVE)}
"""The backends, by what the option ``backend`` calls them."""

BACKENDS = ("auto", *BY_NAME)
"""What the option ``backend`` may be."""


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
    if backend in BY_NAME:
        BY_NAME[backend].check_available()
    return backend


def check_device(backend: str, name: str, stepped: torch.device) -> None:
    """Check that a backend asked for by name can step the parameter ``name``.

    Raises:
        BackendUnavailableError: it is stepped on a device that the backend does not serve.
    """
    device = BY_NAME[backend].device if backend in BY_NAME else None
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
    why_not = NATIVE.why_not(rule, codecs, "cpu") if backend == NATIVE.name else ""
    if why_not:
        raise BackendUnavailableError(
            f"backend='native' cannot step {name!r}: {why_not}.",
            hint="Use backend='auto', which takes PyTorch's slower path for it.",
        )


def choose(device: str, rule: Rule, codecs: Mapping[str, Codec]) -> BackendChoice:
    """Return the backend that ``auto`` picks for contiguous tensors, and why.

    Args:
        device: type of the parameters' device, such as ``"cpu"``.
        rule: the update rule.
        codecs: the codec of each moment.
    """
    why_not = f"there are no kernels for {device}"
    for backend in BY_NAME.values():
        if backend.device == device:
            why_not = backend.why_not(rule, codecs, device)
            if not why_not:
                return BackendChoice(backend.name, backend.advantage)
    return BackendChoice(EAGER.name, why_not)


def step_parameter(backend: str, rule: Rule, item: ParameterStep) -> Tensor:
    """Take one parameter's step with the backend that suits it: see `Rule.step_parameter`.

    Tensors that a kernel cannot take, such as float64 gradients, take PyTorch's path under every
    backend.
    """
    bad = NATIVE.step(rule, item) if backend in ("auto", NATIVE.name) else None
    return EAGER.step(rule, item) if bad is None else bad
