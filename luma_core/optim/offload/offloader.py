"""Keeps an optimizer's state away from the device that steps it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from luma_core.codecs import Codec, Fields
from luma_core.errors import ConfigurationError
from luma_core.optim.offload.arena import Arena, HostArena, blank, place
from luma_core.optim.offload.cpu_step import CpuStepPlan, HostSlots
from luma_core.optim.offload.file_movers import FileCudaMover, FileMover
from luma_core.optim.offload.files import FileArena, Folder
from luma_core.optim.offload.load_arena import AwaitedTensor, LoadArena
from luma_core.optim.offload.movers import CudaMover, HostMover
from luma_core.optim.offload.options import OffloadOptions
from luma_core.optim.offload.pipeline import Mover, Pipeline
from luma_core.optim.offload.snapshot import Snapshot
from luma_core.optim.offload.streamed import StreamedPlan
from luma_core.optim.step.clipping import GradientClip
from luma_core.optim.step.contracts import Steppable
from luma_core.optim.step.resident_plan import ResidentPlan
from luma_core.optim.step.stepped_parameter import SteppedParameter
from luma_core.sharding import local_tensor
from luma_core.values import has_values

_LOGGER = logging.getLogger(__name__)

_SLOTS = 8
_SCALARS = ("step", "noise_key", "nonfinite")


class Offloader:
    """Where one optimizer's state lives, and how it gets to the step and back.

    Args:
        optimizer: whose state.
        options: with a mode other than ``"auto"``.
    """

    def __init__(self, optimizer: Steppable, options: OffloadOptions) -> None:
        self._optimizer = weakref.ref(optimizer)
        self.options = options
        self._folder = None
        if options.mode == "disk":
            assert options.directory is not None
            self._folder = Folder(options.directory)
        self._arenas: list[Arena] = []
        self._pipelines: dict[torch.device, Pipeline] = {}
        self._host_slots: dict[torch.device, HostSlots] = {}

    @property
    def mode(self) -> str:
        """``"host"``, ``"disk"`` or ``"cpu-step"``."""
        return self.options.mode

    def takes(self, param: Tensor) -> bool:
        """Return whether a parameter's state is kept away from it."""
        return self.mode == "disk" or local_tensor(param).is_cuda

    def counter_device(self, param: Tensor) -> torch.device:
        """Return where a parameter's counters are."""
        here = local_tensor(param).device
        return torch.device("cpu") if self.mode == "cpu-step" else here

    def new_fields(self, codec: Codec, shape: torch.Size) -> Fields:
        """Return the fields of a moment of zeros, which take memory once they are placed."""
        if self.mode == "cpu-step":
            return codec.init(shape, "cpu")
        return {name: blank(spec.shape, spec.dtype) for name, spec in codec.layout(shape).items()}

    def step_plan(self, optimizer: Steppable) -> OffloadedPlan:
        """Return what steps parameters of ``optimizer``, all or one of this one's."""
        return OffloadedPlan(optimizer, self)

    def adopt(self) -> bool:
        """Place state that is not there yet, such as what was loaded; return whether any was."""
        optimizer = self._optimizer()
        if self.mode == "cpu-step" or optimizer is None:
            return False
        states = [optimizer.state[p] for p in _with_state(optimizer) if self.takes(p)]
        if not any(True for state in states for _ in self._unplaced(state)):
            return False
        self.settle()
        self._drop_unused(optimizer)
        found = place(states, self._unplaced, self._new_arena)
        assert found is not None
        self._arenas.append(found)
        return True

    def new_load_arena(self, awaited: Sequence[AwaitedTensor]) -> LoadArena | None:
        """Return an arena for state that is to be loaded; ``None`` where loading needs none.

        Args:
            awaited: tensors of parameters that `takes` is true of.

        Raises:
            StorageError: the disk has no room for it beside the present state.
            ConfigurationError: the host's memory has none.
        """
        if self.mode == "cpu-step" or not awaited:
            return None
        return LoadArena(awaited, self._new_arena)

    def take(self, loaded: LoadArena) -> None:
        """Keep the arena of state that was loaded, and drop the arenas that it replaces."""
        self._arenas.append(loaded.arena)
        optimizer = self._optimizer()
        if optimizer is not None:
            self._drop_unused(optimizer)

    def _drop_unused(self, optimizer: Steppable) -> None:
        held = self._held(optimizer)
        self._arenas[:] = [
            arena for arena in self._arenas if arena.bytes.untyped_storage().data_ptr() in held
        ]

    def pipeline(self, device: torch.device) -> Pipeline:
        """Return what moves state of parameters on a device."""
        if device not in self._pipelines:
            # What is left is for counters and tables.
            room = self.options.buffer_bytes // 64 * 61
            self._pipelines[device] = Pipeline(self._mover(device), buffer_bytes=room, slots=_SLOTS)
        return self._pipelines[device]

    def host_slots(self, device: torch.device) -> HostSlots:
        """Return the memory that parameters of a device cross to the CPU by."""
        if device not in self._host_slots:
            self._host_slots[device] = HostSlots(device, self.options.buffer_bytes)
        return self._host_slots[device]

    def settle(self) -> None:
        """Wait until state may be read where it lives."""
        for pipeline in self._pipelines.values():
            pipeline.settle()
        lost = [arena for arena in self._arenas if isinstance(arena, FileArena) and arena.lost]
        optimizer = self._optimizer()
        if lost and optimizer is not None:
            held = self._held(optimizer)
            for arena in lost:
                if arena.bytes.untyped_storage().data_ptr() in held:
                    arena.check()

    def snapshot(self) -> Snapshot | None:
        """Return the state of now, as steps that follow leave it.

        It takes neither memory nor reading: files are cloned, where their file system can do that
        (XFS, Btrfs). ``None`` where it cannot, where it has too little room, and where state is in
        no files.
        """
        optimizer = self._optimizer()
        if self._folder is None or optimizer is None:
            return None
        self.settle()
        held, frozen = self._held(optimizer), {}
        for arena in self._arenas:
            block = arena.bytes.untyped_storage().data_ptr()
            if block not in held:
                continue
            assert isinstance(arena, FileArena)
            clone = self._folder.clone(arena)
            if clone is None:
                return None
            frozen[block] = clone
        return Snapshot(frozen) if frozen else None

    def _held(self, optimizer: Steppable) -> set[int]:
        """Return where the blocks are that state is in."""
        return {
            local_tensor(value).untyped_storage().data_ptr()
            for param in _with_state(optimizer)
            for value in optimizer.state[param].values()
        }

    def forget(self) -> None:
        """Settle, and take nothing that was fetched for valid any longer."""
        for pipeline in self._pipelines.values():
            pipeline.forget()

    def _mover(self, device: torch.device) -> Mover:
        if self._folder is None:
            return CudaMover(device) if device.type == "cuda" else HostMover()
        if device.type == "cuda":
            return FileCudaMover(self._arenas, device)
        return FileMover(self._arenas)

    def _unplaced(self, state: dict[str, Tensor]) -> Iterable[str]:
        known = {arena.bytes.untyped_storage().data_ptr() for arena in self._arenas}
        for key, value in state.items():
            if key not in _SCALARS:
                local = local_tensor(value)
                if local.untyped_storage().data_ptr() not in known:
                    yield key

    def _new_arena(self, size: int) -> Arena:
        if self._folder is not None:
            return self._folder.arena(size)
        return HostArena(size, pin=torch.cuda.is_available())


def _with_state(optimizer: Steppable) -> Iterator[Tensor]:
    return (
        param
        for _, param, _ in optimizer.parameters_by_name()
        if optimizer.state.get(param) and has_values(param)
    )


class OffloadedPlan:
    """A plan of parameters whose state is offloaded, and of others beside them.

    Args:
        optimizer: gives rule, backend and groups.
        offloader: says whose state is where.
    """

    def __init__(self, optimizer: Steppable, offloader: Offloader) -> None:
        self._optimizer = optimizer
        self._offloader = offloader
        self._plans: dict[torch.device | None, ResidentPlan | StreamedPlan | CpuStepPlan] = {}
        self._used: list[ResidentPlan | StreamedPlan | CpuStepPlan] = []
        self._all_have_values = True

    @property
    def keeps(self) -> bool:
        """Whether what `build` found holds for the next step, if no tensor changes."""
        return self._all_have_values

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step."""
        return bool(self._used) and all(plan.all_fused for plan in self._used)

    def build(self, parameters: Sequence[SteppedParameter]) -> None:
        """Take other parameters."""
        _refuse_capture()
        parts: dict[torch.device | None, list[SteppedParameter]] = {}
        for item in parameters:
            _check_alone(item)
            far = item.has_values and self._offloader.takes(item.param)
            parts.setdefault(item.param.device if far else None, []).append(item)
        self._used = []
        self._all_have_values = all(item.has_values for item in parameters)
        for device, items in parts.items():
            if device not in self._plans:
                self._plans[device] = self._new(device)
            self._plans[device].build(items)
            self._used.append(self._plans[device])

    def _new(self, device: torch.device | None) -> ResidentPlan | StreamedPlan | CpuStepPlan:
        if device is None:
            return ResidentPlan(self._optimizer)
        if self._offloader.mode == "cpu-step":
            return CpuStepPlan(self._optimizer, device, self._offloader.host_slots(device))
        return StreamedPlan(self._optimizer, self._offloader.pipeline(device))

    def clear(self) -> None:
        """Forget the parameters, so that memory of state that was replaced is free."""
        self._plans.clear()
        self._used = []

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        return all(plan.follow_gradients() for plan in self._used)

    def square_sums(self) -> list[Tensor]:
        """Return sums of squares of the gradients, float64 0-d, which add up to that of all."""
        return [found for plan in self._used for found in plan.square_sums()]

    def launch(
        self, *, grad_scale: Tensor | None, found_inf: Tensor | None, clip: GradientClip | None
    ) -> None:
        """Take the step: see `ResidentPlan.launch`."""
        _refuse_capture()
        for plan in self._used:
            plan.launch(grad_scale=grad_scale, found_inf=found_inf, clip=clip)


def _refuse_capture() -> None:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ConfigurationError(
            "a step with offloaded state cannot be captured in a CUDA graph.",
            hint="Capture forward and backward, and call step() outside of the graph.",
        )


def _check_alone(item: SteppedParameter) -> None:
    if not item.independent:
        raise ConfigurationError(
            f"the step of {item.name!r} needs parts that other processes have, which offload= "
            "does not serve.",
            hint="Leave offload= out, or use LUMA or TurboAdam with blocks.",
        )
