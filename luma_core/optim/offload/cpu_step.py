"""Steps on the CPU of parameters that live on a GPU: gradients come, parameters return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luma_core import changes
from luma_core.optim.offload.arena import ALIGNMENT_BYTES, HostArena
from luma_core.optim.offload.pieces import Piece, cut
from luma_core.optim.step.clipping import GradientClip, gradient_square_digits
from luma_core.optim.step.contracts import Steppable
from luma_core.optim.step.resident_plan import ResidentPlan
from luma_core.optim.step.stepped_parameter import SteppedParameter
from luma_core.rules.norms import total

_SLOTS = 4


@dataclass(eq=False)
class _Group:
    """Pieces that cross the link together.

    Attributes:
        slot: number of the host's memory that they use.
        pieces: of parameters.
        params: their memory on the host; with it the gradients, as ``grad``.
        plan: steps them.
        state: their state, which the step changes.
    """

    slot: int
    pieces: list[Piece]
    params: list[Tensor]
    plan: ResidentPlan
    state: list[Tensor]


class HostSlots:
    """Memory of the host that parameters and gradients under way use in turn.

    Args:
        device: that they come from.
        buffer_bytes: of all slots, if that is enough for the largest pieces.
    """

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self._pin = device.type == "cuda"
        self.slot_bytes = buffer_bytes // _SLOTS
        self.generation = 0
        self.memory: list[Tensor] = []
        self.busy: list[torch.cuda.Event | None] = []
        """The last copy out of each slot."""
        self._arenas: list[HostArena] = []

    def reserve(self, nbytes: int) -> None:
        """Make slots of ``nbytes`` at least; pieces that had places must be placed anew then."""
        if self.memory and self.memory[0].numel() >= nbytes:
            return
        for event in self.busy:
            if event is not None:
                event.synchronize()
        room = max(nbytes, self.slot_bytes)
        self._arenas = [HostArena(room, pin=self._pin) for _ in range(_SLOTS)]
        self.memory = [arena.bytes for arena in self._arenas]
        self.busy = [None] * _SLOTS
        self.generation += 1


class CpuStepPlan:
    """Parameters of a CUDA device that are stepped on the CPU; does what `ResidentPlan` does.

    Gradients of the next pieces come and parameters of the last ones return while the CPU steps.

    Args:
        optimizer: gives rule, backend and groups.
        device: of the parameters.
        slots: memory of the host, shared by all plans of the device.
    """

    def __init__(self, optimizer: Steppable, device: torch.device, slots: HostSlots) -> None:
        self._optimizer = optimizer
        self._device = device
        self._slots = slots
        self._generation = -1
        self._parameters: Sequence[SteppedParameter] = ()
        self._groups: list[_Group] = []
        self._link = _Link(device)

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step: none does."""
        return False

    def build(self, parameters: Sequence[SteppedParameter]) -> None:
        """Take other parameters."""
        self._parameters, slot_bytes = parameters, self._slots.slot_bytes
        pieces = [piece for item in parameters for piece in cut(item, self._most_state_bytes(item))]
        parts: list[list[Piece]] = []
        size = slot_bytes
        for piece in pieces:
            if size + _nbytes(piece) > slot_bytes:
                parts.append([])
                size = 0
            parts[-1].append(piece)
            size += _nbytes(piece)
        self._slots.reserve(max((sum(map(_nbytes, part)) for part in parts), default=0))
        self._generation = self._slots.generation
        self._groups = [self._group(index % _SLOTS, part) for index, part in enumerate(parts)]

    def _most_state_bytes(self, stepped: SteppedParameter) -> int:
        numel = max(stepped.param.numel(), 1)
        state = sum(value.nbytes for key, value in stepped.state.items() if "." in key)
        return self._slots.slot_bytes * state // (numel * 2 * stepped.param.element_size())

    def _group(self, slot: int, pieces: list[Piece]) -> _Group:
        memory, first = self._slots.memory[slot], 0
        params, stepped = [], []
        advanced: set[int] = set()
        for piece in pieces:
            item, dtype = piece.stepped, piece.stepped.param.dtype
            places = []
            for _ in range(2):
                size = torch.Size(piece.shape).numel() * dtype.itemsize
                places.append(memory[first : first + size].view(dtype).view(piece.shape))
                first += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            param, param.grad = places[0], places[1]
            state = dict(item.state)
            for part in piece.stored:
                state[part.key] = part.of(state[part.key])
            if piece.first or id(item.state) in advanced:
                state["step"] = state["step"].clone()
            advanced.add(id(item.state))
            params.append(param)
            stepped.append(item._replace(param=param, state=state, start=piece.first))
        plan = ResidentPlan(self._optimizer)
        plan.build(stepped)
        stored = [part.of(p.stepped.state[part.key]) for p in pieces for part in p.stored]
        return _Group(slot, pieces, params, plan, stored)

    def follow_gradients(self) -> bool:
        """Do nothing: gradients are read where they are."""
        return True

    def square_sums(self) -> list[Tensor]:
        """Return the sum of squares of the gradients, float64 0-d, on the device."""
        parameters = {
            id(p.stepped.param): p.stepped for group in self._groups for p in group.pieces
        }
        digits = [
            gradient_square_digits(stepped.param.grad)
            for stepped in parameters.values()
            if stepped.param.grad is not None
        ]
        return [total(torch.stack(digits).sum(dim=0))] if digits else []

    def launch(
        self, *, grad_scale: Tensor | None, found_inf: Tensor | None, clip: GradientClip | None
    ) -> None:
        """Take the step: see `ResidentPlan.launch`. Gradients are unscaled before."""
        if self._generation != self._slots.generation:
            self.build(self._parameters)
        link, busy = self._link, self._slots.busy
        link.open()
        come: list[torch.cuda.Event | None] = []
        for index, group in enumerate(self._groups):
            while len(come) < min(index + _SLOTS, len(self._groups)):
                following = self._groups[len(come)]
                come.append(link.bring(following, busy[following.slot]))
            link.wait(come[index])
            changes.before_change(group.state)
            group.plan.launch(grad_scale=None, found_inf=None, clip=clip)
            busy[group.slot] = link.send(_returning(group))
        link.close()


class _Link:
    """Copies between a device and the host's memory, each way on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        if self._cuda:
            self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def open(self) -> None:
        """Let all that is brought wait for the current stream."""
        if self._cuda:
            self._down.wait_stream(torch.cuda.current_stream(self._device))

    def bring(self, group: _Group, after: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Begin to copy parameters and gradients to the host."""
        if not self._cuda:
            _copy(_coming(group))
            return None
        if after is not None:
            self._down.wait_event(after)
        with torch.cuda.stream(self._down):
            _copy(_coming(group))
        done: torch.cuda.Event = self._down.record_event()
        return done

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Wait for a copy."""
        if event is not None:
            event.synchronize()

    def send(self, pairs: list[tuple[Tensor, Tensor]]) -> torch.cuda.Event | None:
        """Begin to copy each second tensor to the first."""
        if not self._cuda:
            _copy(pairs)
            return None
        with torch.cuda.stream(self._up):
            _copy(pairs)
        done: torch.cuda.Event = self._up.record_event()
        return done

    def close(self) -> None:
        """Let the current stream wait for all that was sent."""
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_stream(self._up)


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source, non_blocking=True)


def _coming(group: _Group) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for piece, param in zip(group.pieces, group.params, strict=True):
        grad = piece.stepped.param.grad
        assert grad is not None
        assert param.grad is not None
        pairs += [(param, piece.of(piece.stepped.param.detach())), (param.grad, piece.of(grad))]
    return pairs


def _returning(group: _Group) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(group.pieces, group.params, strict=True)
    return [(piece.of(piece.stepped.param.detach()), param) for piece, param in pairs]


def _nbytes(piece: Piece) -> int:
    size = torch.Size(piece.shape).numel() * piece.stepped.param.element_size()
    return 2 * (size + ALIGNMENT_BYTES)
