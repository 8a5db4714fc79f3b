"""Steps of parameters whose state is brought to them, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from luma_core import changes
from luma_core.direct import PAGE_BYTES
from luma_core.optim.offload.arena import ALIGNMENT_BYTES, DIRECT_BYTES
from luma_core.optim.offload.pieces import Piece, Stored, cut
from luma_core.optim.offload.pipeline import Chunk, Move, Pipeline
from luma_core.optim.step.clipping import GradientClip
from luma_core.optim.step.contracts import Steppable
from luma_core.optim.step.resident_plan import ResidentPlan
from luma_core.optim.step.stepped_parameter import SteppedParameter

_ALIGNED = 16


class Cut(NamedTuple):
    """A piece and the tensor that stands for its part of the parameter."""

    piece: Piece
    param: Tensor


class _Group:
    """Pieces that are stepped together."""

    def __init__(
        self, chunk: Chunk, plan: ResidentPlan, cuts: list[Cut], homes: list[Tensor]
    ) -> None:
        self.chunk = chunk
        self.plan = plan
        self.cuts = cuts
        self._homes = homes

    def step(
        self, *, grad_scale: Tensor | None, found_inf: Tensor | None, clip: GradientClip | None
    ) -> None:
        """Step state that is in the slot; what is where it lives may be replaced from then on."""
        self.plan.launch(grad_scale=grad_scale, found_inf=found_inf, clip=clip)
        changes.before_change(self._homes)

    def take_gradients(self) -> None:
        """Give the pieces their present gradients."""
        take_gradients(self.cuts)

    def drop_gradients(self) -> None:
        """Forget them, so that their memory is free when the parameters drop them."""
        for cut_ in self.cuts:
            cut_.param.grad = None


def take_gradients(cuts: Iterable[Cut]) -> None:
    """Give each piece its part of its parameter's gradient."""
    for piece, param in cuts:
        grad = piece.stepped.param.grad
        assert grad is not None
        param.grad = piece.of(grad)


class StreamedPlan:
    """Parameters whose state lives elsewhere; does what `ResidentPlan` does.

    Args:
        optimizer: gives rule, backend and groups.
        pipeline: brings state.
    """

    def __init__(self, optimizer: Steppable, pipeline: Pipeline) -> None:
        self._optimizer = optimizer
        self._pipeline = pipeline
        self._generation = -1
        self._parameters: Sequence[SteppedParameter] = ()
        self._groups: list[_Group] = []

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step."""
        return bool(self._groups) and all(group.plan.all_fused for group in self._groups)

    def build(self, parameters: Sequence[SteppedParameter]) -> None:
        """Take other parameters."""
        pipeline = self._pipeline
        # New chunks know nothing of what old ones have on its way back.
        pipeline.settle()
        self._parameters = parameters
        room = pipeline.slot_bytes - pipeline.slot_bytes // 16
        pieces = [piece for item in parameters for piece in cut(item, room)]
        parts = list(_groups_of(pieces, pipeline.slot_bytes))
        plans = [_planned(part) for part in parts]
        pipeline.reserve(max((size for _, _, size in plans), default=0))
        self._generation = pipeline.generation
        self._groups = [
            self._group(part, moves, places)
            for part, (moves, places, _) in zip(parts, plans, strict=True)
        ]

    def _group(
        self, pieces: list[Piece], moves: list[Move], places: list[dict[str, int]]
    ) -> _Group:
        chunk = self._pipeline.chunk(moves)
        cuts, stepped = [], []
        advanced: set[int] = set()
        for piece, place in zip(pieces, places, strict=True):
            item = piece.stepped
            param = piece.of(item.param.detach())
            state = dict(item.state)
            for part in piece.stored:
                state[part.key] = _in_slot(chunk.slot.memory, place.get(part.key, 0), part, item)
            if piece.first or id(item.state) in advanced:
                # The parameter's own counter is advanced with its first piece.
                state["step"] = item.state["step"].clone()
            advanced.add(id(item.state))
            cuts.append(Cut(piece, param))
            stepped.append(item._replace(param=param, state=state, start=piece.first))
        homes = [move.home for move in moves]
        group = _Group(chunk, ResidentPlan(self._optimizer), cuts, homes)
        group.take_gradients()
        group.plan.build(stepped)
        return group

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        for group in self._groups:
            group.take_gradients()
            if not group.plan.follow_gradients():
                return False
        return True

    def square_sums(self) -> list[Tensor]:
        """Return sums of squares of the gradients, float64 0-d, which add up to that of all."""
        for group in self._groups:
            group.take_gradients()
        return [found for group in self._groups for found in group.plan.square_sums()]

    def launch(
        self, *, grad_scale: Tensor | None, found_inf: Tensor | None, clip: GradientClip | None
    ) -> None:
        """Take the step: see `ResidentPlan.launch`."""
        if self._generation != self._pipeline.generation:
            self.build(self._parameters)
        for group in self._groups:
            if not group.plan.all_fused:
                group.take_gradients()
            step = partial(group.step, grad_scale=grad_scale, found_inf=found_inf, clip=clip)
            self._pipeline.run(group.chunk, step)
        for group in self._groups:
            group.drop_gradients()


def _groups_of(pieces: Sequence[Piece], most_bytes: int) -> Iterator[list[Piece]]:
    """Put neighbouring pieces together as long as their state fits a slot."""
    found: list[Piece] = []
    size = 0
    for piece in pieces:
        nbytes = piece.state_bytes + 2 * ALIGNMENT_BYTES * len(piece.stored)
        if found and size + nbytes > most_bytes:
            yield found
            found, size = [], 0
        found.append(piece)
        size += nbytes
    if found:
        yield found


def _planned(pieces: Sequence[Piece]) -> tuple[list[Move], list[dict[str, int]], int]:
    """Return the moves of pieces, the place in the slot of each part by key, and their size.

    Parts that lie side by side are one move.
    """
    parts = [
        (key, _bytes_of(part.of(piece.stepped.state[key])), index)
        for index, piece in enumerate(pieces)
        for key, part in ((part.key, part) for part in piece.stored)
    ]
    parts = [part for part in parts if part[1].numel()]
    parts.sort(key=lambda part: part[1].data_ptr())
    places: list[dict[str, int]] = [{} for _ in pieces]
    runs: list[list[tuple[str, Tensor, int]]] = []
    for before, part in pairwise([None, *parts]):
        assert part is not None
        if before is None or not _adjoin(before[1], part[1]):
            runs.append([])
        runs[-1].append(part)
    moves, first = [], 0
    for run in runs:
        start, last = run[0][1], run[-1][1]
        size = last.data_ptr() + last.numel() - start.data_ptr()
        if size >= DIRECT_BYTES:
            # Disks read and write whole pages, which must be pages of the slot too.
            first += (start.data_ptr() - first) % PAGE_BYTES
        for key, part_bytes, index in run:
            places[index][key] = first + part_bytes.data_ptr() - start.data_ptr()
        moves.append(Move(start.as_strided((size,), (1,)), first))
        first = -(-(first + size) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return moves, places, first


def _adjoin(before: Tensor, after: Tensor) -> bool:
    if before.untyped_storage().data_ptr() != after.untyped_storage().data_ptr():
        return False
    gap = after.data_ptr() - before.data_ptr() - before.numel()
    return 0 <= gap < ALIGNMENT_BYTES and after.data_ptr() % _ALIGNED == 0


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _in_slot(memory: Tensor, first: int, part: Stored, stepped: SteppedParameter) -> Tensor:
    like = stepped.state[part.key]
    nbytes = like.element_size()
    for size in part.shape:
        nbytes *= size
    return memory[first : first + nbytes].view(like.dtype).view(part.shape)
