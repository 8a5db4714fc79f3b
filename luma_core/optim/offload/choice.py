"""Chooses where state lives, from what the machine measures."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import Codec, Luma16M, Luma16V
from luma_core.errors import ConfigurationError
from luma_core.optim.offload.arena import HostArena
from luma_core.optim.offload.host_memory import available_host_bytes
from luma_core.optim.offload.options import OffloadOptions
from luma_core.optim.options import is_steppable
from luma_core.optim.step.contracts import Steppable
from luma_core.optim.step.stepping import Stepper
from luma_core.rules import AdamWRule
from luma_core.sharding import local_tensor, part_of
from luma_core.state import field_key
from luma_core.values import has_values

_LOGGER = logging.getLogger(__name__)

RESIDENT_SHARE = 0.25
"""Share of the device's free memory that state may take before it is offloaded."""

HOST_SHARE = 0.8
"""Share of the host's available memory that state may take."""

_PROBE_BYTES = 64 << 20
_PROBE_ELEMENTS = 1 << 22
_COUNTERS = ("step", "noise_key", "nonfinite")


@dataclass(frozen=True)
class Link:
    """Speeds between the host's pinned memory and a device, in bytes per second.

    Attributes:
        to_device: one way alone.
        to_host: likewise.
        both: each way, both at once.
    """

    to_device: float
    to_host: float
    both: float


@dataclass(frozen=True)
class Load:
    """What a choice is made for.

    Attributes:
        state_bytes: of all state.
        param_bytes: of all parameters; gradients take as much.
        elements: number of parameters.
    """

    state_bytes: int
    param_bytes: int
    elements: int


@dataclass(frozen=True)
class Machine:
    """What a choice is made from.

    Attributes:
        device_bytes: free memory of the device.
        host_bytes: available memory of the host.
        link: between them.
        steps_per_second: elements that the CPU steps in a second.
        alone: whether no other process trains with this one.
    """

    device_bytes: int
    host_bytes: int
    link: Link
    steps_per_second: float
    alone: bool = True


@cache
def measured_link(device: torch.device) -> Link:
    """Measure the link to a CUDA device, once; takes a few hundredths of a second."""
    arena = HostArena(2 * _PROBE_BYTES, pin=True)
    here, there = arena.bytes[:_PROBE_BYTES], arena.bytes[_PROBE_BYTES:][:_PROBE_BYTES]
    sent = torch.empty(_PROBE_BYTES, dtype=torch.uint8, device=device)
    got = torch.zeros(_PROBE_BYTES, dtype=torch.uint8, device=device)
    down, up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def seconds(*, into: bool, back: bool) -> float:
        best = math.inf
        for _ in range(4):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            if into:
                with torch.cuda.stream(up):
                    sent.copy_(here, non_blocking=True)
            if back:
                with torch.cuda.stream(down):
                    there.copy_(got, non_blocking=True)
            torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        return best

    return Link(
        to_device=_PROBE_BYTES / seconds(into=True, back=False),
        to_host=_PROBE_BYTES / seconds(into=False, back=True),
        both=_PROBE_BYTES / seconds(into=True, back=True),
    )


class _Probe:
    """One parameter that is stepped to see how long that takes.

    Args:
        param: on the CPU, with a gradient.
    """

    backend = "auto"
    rule = AdamWRule()
    offloader = None

    def __init__(self, param: Tensor) -> None:
        options = {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "maximize": False,
            "nonfinite": "skip",
            "stochastic_rounding": True,
        }
        self.param_groups: list[dict[str, Any]] = [{"params": [param], **options}]
        counters = {key: torch.zeros((), dtype=torch.int64, device="cpu") for key in _COUNTERS}
        fields = {
            field_key(moment, name): field
            for moment, codec in self.codecs(param, {}).items()
            for name, field in codec.init(param.shape, "cpu").items()
        }
        self.state = {param: {**counters, **fields}}

    def parameters_by_name(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        yield "probe", self.param_groups[0]["params"][0], self.param_groups[0]

    def codecs(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Codec]:
        return {"exp_avg": Luma16M(), "exp_avg_sq": Luma16V()}

    def state_of(self, name: str, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.state[param]


@cache
def measured_cpu_step() -> float:
    """Measure how many elements a second AdamW steps on this CPU with 16-bit moments, once."""
    param = torch.zeros(_PROBE_ELEMENTS // 1024, 1024, device="cpu")
    param.grad = torch.ones_like(param)
    stepper = Stepper(_Probe(param))
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        stepper.step(grad_scale=None, found_inf=None)
        best = min(best, time.perf_counter() - start)
    return _PROBE_ELEMENTS / best


def choose_mode(load: Load, machine: Machine, *, directory: bool) -> tuple[str | None, str]:
    """Return the mode for a CUDA device, ``None`` for state beside the parameters, and why.

    Args:
        load: the parameters to be stepped, and their state.
        machine: the memory, link and CPU that it has.
        directory: whether there is a directory for files.

    Raises:
        ConfigurationError: state fits neither the device nor the host, and there is no directory.
    """
    state, gib = load.state_bytes, 1 << 30
    if state <= RESIDENT_SHARE * machine.device_bytes:
        return None, (
            f"{state / gib:.2f} GiB of state are no more than {RESIDENT_SHARE:.0%} of the "
            f"device's {machine.device_bytes / gib:.1f} GiB of free memory"
        )
    if state > HOST_SHARE * machine.host_bytes:
        if directory:
            return "disk", (
                f"{state / gib:.2f} GiB of state are more than {HOST_SHARE:.0%} of the host's "
                f"{machine.host_bytes / gib:.1f} GiB of available memory"
            )
        raise ConfigurationError(
            f"offload='auto': {state / gib:.2f} GiB of state fit neither the device "
            f"({machine.device_bytes / gib:.1f} GiB free) nor the host "
            f"({machine.host_bytes / gib:.1f} GiB available).",
            hint="Give offload_directory, a directory of a fast local disk.",
        )
    streamed = state / machine.link.both
    # Gradients and parameters come, and parameters return.
    come = 2 * load.param_bytes / machine.link.to_host
    on_cpu = max(come, load.elements / machine.steps_per_second)
    compared = (
        f"bringing {state / gib:.2f} GiB of state both ways takes {streamed:.3f} s a step, "
        f"stepping on the CPU {on_cpu:.3f} s"
    )
    if not machine.alone:
        return "host", f"{compared}; processes that train together must all step alike"
    return ("host" if streamed <= on_cpu else "cpu-step"), compared


def choose_offload(optimizer: Steppable, options: OffloadOptions) -> OffloadOptions | None:
    """Return what to do for ``offload="auto"``, and log why."""
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    on_gpu = [param for param in params if local_tensor(param).is_cuda and has_values(param)]
    mode: str | None
    if on_gpu:
        device = local_tensor(on_gpu[0]).device
        machine = machine_of(device)
        mode, why = choose_mode(
            load_of(optimizer), machine, directory=options.directory is not None
        )
    elif options.directory is not None:
        load, host = load_of(optimizer), available_host_bytes()
        fits = load.state_bytes <= HOST_SHARE * host
        mode = None if fits else "disk"
        why = f"state takes {load.state_bytes:,} of {host:,} bytes of available memory"
    else:
        mode, why = None, "the parameters are on the CPU, and their state beside them"
    _LOGGER.info("offload='auto' chose %r: %s.", mode, why)
    if mode is None:
        return None
    directory = options.directory if mode == "disk" else None
    return replace(options, mode=mode, directory=directory)


def machine_of(device: torch.device) -> Machine:
    """Return the memory, link and CPU that can step parameters of a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Machine(
        device_bytes=free,
        host_bytes=available_host_bytes(),
        link=measured_link(device),
        steps_per_second=measured_cpu_step(),
        alone=not together or torch.distributed.get_world_size() == 1,
    )


def load_of(optimizer: Steppable) -> Load:
    """Return what an optimizer's step moves on this process, whether it has state yet or not."""
    state = params = elements = 0
    for _, param, group in optimizer.parameters_by_name():
        if not is_steppable(param):
            continue
        part, local = part_of(param), local_tensor(param)
        params += local.nbytes
        elements += local.numel()
        for codec in optimizer.codecs(param, group).values():
            share = local.numel() / max(param.numel(), 1) if part is not None else 1.0
            layout = codec.layout(param.shape)
            whole = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in layout.values())
            state += int(whole * share)
    return Load(state, params, elements)
