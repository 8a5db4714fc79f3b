"""Loading: nothing is changed before all that was read is checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from luma_core.checkpoint.format.consistency import tensor_name
from luma_core.checkpoint.format.dtypes import tensor_bytes, torch_dtype
from luma_core.checkpoint.format.extra import restore_extra
from luma_core.checkpoint.format.manifest import Box, FileKind, Manifest, TensorEntry
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.model_loading import ModelLoad
from luma_core.checkpoint.read.opening import open
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.read.shard_stream import Room
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.store import Place
from luma_core.direct import Bytes
from luma_core.errors import StateMismatchError
from luma_core.naming import match_names
from luma_core.sharding import is_sharded
from luma_core.state import (
    ALL_FOUND,
    GroupOptions,
    LoadReport,
    MatchedState,
    ParameterState,
    StateSource,
)

if TYPE_CHECKING:
    from luma_core.optim.offload import LoadArena
    from luma_core.optim.state_io.entries import StateDevices


class LoadableState(StateSource, Protocol):
    """An optimizer that state can be loaded into."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        ...

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        ...

    def parameters_by_name(self) -> Iterable[tuple[str, Tensor, Any]]:
        """Return every parameter with its name and group, group by group."""
        ...

    def state_devices(self, param: Tensor) -> StateDevices:
        """Return where the state of a parameter is kept."""
        ...

    def matched_states(
        self,
        groups: Sequence[GroupOptions],
        states: Sequence[ParameterState],
        *,
        algorithm: str,
        named: bool,
        strict: bool,
        where: str,
    ) -> list[MatchedState]:
        """Return which states would be loaded into which parameters."""
        ...

    def incoming_state(self, states: Sequence[MatchedState]) -> LoadArena | None:
        """Return memory for states that are to be loaded; ``None`` where loading needs none."""
        ...

    def load_parameter_states(
        self,
        groups: Sequence[GroupOptions],
        states: list[ParameterState],
        *,
        incoming: LoadArena | None,
        algorithm: str,
        named: bool,
        strict: bool,
    ) -> LoadReport:
        """Replace the state; stored tensors may be in ``incoming`` already."""
        ...


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `load` returns.

    Attributes:
        manifest: what the checkpoint holds.
        extra: the values that were saved as ``extra``; None where there were none.
        optimizer: what found no counterpart among parameters.
        model: what found no counterpart among weights.
    """

    manifest: Manifest
    extra: Any
    optimizer: LoadReport = ALL_FOUND
    model: LoadReport = ALL_FOUND


def load_alone(
    url: Place,
    *,
    optimizer: LoadableState | None = None,
    model: nn.Module | None = None,
    strict: bool = True,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    progress: Progress | None = None,
) -> LoadedCheckpoint:
    """Load into one process, as `luma_core.checkpoint.load` says."""
    checkpoint = open(url, max_memory_bytes=max_memory_bytes)
    read: list[FileKind] = ["extra"]
    check: list[FileKind] = []
    found = _ReadTensors({}, checkpoint.stored_shape, {})
    incoming: LoadArena | None = None
    weights: ModelLoad | None = None
    if optimizer is not None:
        read.append("optimizer")
        matched = matched_states(checkpoint, optimizer, strict=strict)
        incoming = optimizer.incoming_state(matched)
        devices = _devices(matched, optimizer)
        found = _ReadTensors(devices, checkpoint.stored_shape, _rooms(matched, optimizer, incoming))
    if model is not None:
        check += ["model", "index"]
        held = [] if optimizer is None else [p for _, p, _ in optimizer.parameters_by_name()]
        weights = ModelLoad(checkpoint.manifest, model, held, strict=strict)
    checkpoint.read_checked(read, check, put=found.put, room=found.room, progress=progress)
    where = f"{checkpoint.url}/{MANIFEST_NAME}: extra"
    extra = restore_extra(checkpoint.manifest.extra, found.extra.__getitem__, where)
    of_state = of_weights = ALL_FOUND
    if optimizer is not None:
        of_state = load_optimizer(
            checkpoint,
            optimizer,
            checkpoint.states(found.stored),
            incoming=incoming,
            strict=strict,
        )
    if weights is not None:
        of_weights = weights.run(checkpoint.read_tensor)
    return LoadedCheckpoint(checkpoint.manifest, extra, of_state, of_weights)


def load_optimizer(
    checkpoint: Checkpoint,
    optimizer: LoadableState,
    states: list[ParameterState],
    elsewhere: Collection[str] = (),
    *,
    incoming: LoadArena | None,
    strict: bool,
) -> LoadReport:
    """Put the states of a checkpoint, which were read, into an optimizer."""
    return optimizer.load_parameter_states(
        checkpoint.group_options(),
        _here(checkpoint, optimizer, states, elsewhere),
        incoming=incoming,
        algorithm=checkpoint.algorithm,
        named=checkpoint.named,
        strict=strict,
    )


class FieldRoom(Room, Protocol):
    """The place of a field where the optimizer keeps it."""

    def view(self) -> Tensor:
        """Return the field, as a view of its place."""
        ...


class _RoomFrom:
    """Part of a room: all of it but its first bytes."""

    def __init__(self, room: Room, first: int) -> None:
        self._room = room
        self._first = first

    def part(self, first: int, size_bytes: int) -> Bytes:
        return self._room.part(self._first + first, size_bytes)

    def filled(self, first: int, data: Bytes) -> None:
        self._room.filled(self._first + first, data)


class _ReadTensors:
    """Tensors that were read, in memory of their own, by name.

    Args:
        devices: where fields of the state belong, by stored name.
        shape_of: returns the shape of one that is stored in pieces.
        rooms: places of fields that get no memory of their own.
    """

    def __init__(
        self,
        devices: Mapping[str, torch.device],
        shape_of: Callable[[str], tuple[int, ...]],
        rooms: Mapping[str, FieldRoom],
    ) -> None:
        self._devices = devices
        self._shape_of = shape_of
        self._rooms = rooms
        self._lock = threading.Lock()
        self.state = {name: room.view() for name, room in rooms.items()}
        self.parts: dict[tuple[str, Box], Tensor] = {}
        self.extra: dict[str, Tensor] = {}

    def stored(self, name: str, box: Box | None = None, /) -> Tensor:
        """Return a stored tensor of the state, which is forgotten where it is a field of a part."""
        return self.state[name] if box is None else self.parts.pop((name, box))

    def room(self, entry: TensorEntry) -> Room | None:
        room = None if entry.file.startswith("extra-") else self._rooms.get(entry.name)
        if room is None or entry.box is not None:
            return None
        if not entry.first_row:
            return room
        dtype = torch_dtype(entry.dtype)
        assert dtype is not None
        return _RoomFrom(room, entry.first_row * tensor_bytes(dtype, entry.shape[1:]))

    def put(self, entry: TensorEntry, tensor: Tensor) -> None:
        if entry.file.startswith("extra-"):
            self.extra[entry.name] = tensor
        elif entry.name not in self._devices:  # left out
            return
        elif entry.box is not None:
            self.parts[entry.name, entry.box] = tensor.to(self._devices[entry.name])
        elif entry.first_row is None:
            self.state[entry.name] = tensor.to(self._devices[entry.name])
        else:
            self._assembled(entry, tensor)[entry.first_row :][: len(tensor)] = tensor

    def _assembled(self, entry: TensorEntry, piece: Tensor) -> Tensor:
        with self._lock:
            if entry.name not in self.state:
                shape, device = self._shape_of(entry.name), self._devices[entry.name]
                self.state[entry.name] = torch.empty(shape, dtype=piece.dtype, device=device)
            return self.state[entry.name]


def _devices(matched: Sequence[MatchedState], optimizer: LoadableState) -> dict[str, torch.device]:
    """Return where each stored field belongs."""
    own = {
        name: optimizer.state_devices(param).stored
        for name, param, _ in optimizer.parameters_by_name()
    }
    return {
        tensor_name(found.state.name, key): own[found.name]
        for found in matched
        for key in found.state.fields
    }


def _rooms(
    matched: Sequence[MatchedState], optimizer: LoadableState, incoming: LoadArena | None
) -> dict[str, FieldRoom]:
    """Return the place of each stored field that has one and is whole and kept as it is there."""
    if incoming is None:
        return {}
    whole = {name for name, param, _ in optimizer.parameters_by_name() if not is_sharded(param)}
    rooms = {
        tensor_name(found.state.name, key): incoming.room(found.name, key)
        for found in matched
        if found.name in whole and found.kept
        for key in found.state.fields
    }
    return {name: room for name, room in rooms.items() if room is not None}


def matched_states(
    checkpoint: Checkpoint,
    optimizer: LoadableState,
    elsewhere: Collection[str] = (),
    *,
    strict: bool,
) -> list[MatchedState]:
    """Return the checkpoint's states, known to fit, with the optimizer's names for them.

    Args:
        checkpoint: has the states.
        optimizer: receives them.
        elsewhere: names of parameters that other processes have, which are left to them.
        strict: as `load` takes it.

    Raises:
        StateMismatchError: algorithm, names or shapes do not fit.
    """
    matched = optimizer.matched_states(
        checkpoint.group_options(),
        _here(checkpoint, optimizer, checkpoint.states(), elsewhere),
        algorithm=checkpoint.algorithm,
        named=checkpoint.named,
        strict=strict,
        where="the checkpoint",
    )
    shapes = {name: tuple(param.shape) for name, param, _ in optimizer.parameters_by_name()}
    for found in matched:
        if shapes[found.name] != found.state.shape:
            raise StateMismatchError(
                f"{found.name!r}: the checkpoint has shape {list(found.state.shape)}; "
                f"the optimizer's parameter has {list(shapes[found.name])}."
            )
    return matched


def _here(
    checkpoint: Checkpoint,
    optimizer: LoadableState,
    states: list[ParameterState],
    elsewhere: Collection[str],
) -> list[ParameterState]:
    """Return the states of parameters that this process has."""
    own = optimizer.parameter_names()
    if not checkpoint.named or (own and not optimizer.named):
        return states
    names = [*own, *sorted(set(elsewhere) - set(own))]
    if len(names) == len(own):
        return states
    saved = match_names(names, [state.name for state in states])
    others = {saved[name] for name in names[len(own) :] if name in saved}
    return [state for state in states if state.name not in others]
