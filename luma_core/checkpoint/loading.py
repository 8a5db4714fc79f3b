"""Loading into one process, or into the ranks of a process group, each of which reads its rows.

Fields that are cut along dimension 0 are stored as pieces, and moments whose blocks the sharding
cuts as parts, without being gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from luma_core.checkpoint.format.any_optimizer import AnyOptimizers, state_of_any
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.load import (
    LoadableState,
    LoadedCheckpoint,
    load_alone,
    load_optimizer,
    matched_states,
)
from luma_core.checkpoint.read.model_loading import ModelLoad
from luma_core.checkpoint.read.opening import open
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.staging import async_executor
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.storage.store import Place
from luma_core.checkpoint.write.coordination import Ranks, group_or_default
from luma_core.checkpoint.write.parts import (
    ShardedOptimizer,
    loaded_fields,
    part_count,
    sharded_optimizer,
)
from luma_core.checkpoint.write.weights import check_models, load_weights
from luma_core.errors import ConfigurationError, StorageError
from luma_core.optim.offload import LoadArena
from luma_core.sharding import part_of
from luma_core.state import ALL_FOUND, LoadReport, MatchedState, ParameterState


def load(
    url: Place,
    *,
    optimizer: LoadableState | AnyOptimizers | None = None,
    model: nn.Module | None = None,
    strict: bool = True,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    progress: Progress | None = None,
    process_group: ProcessGroup | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint into an optimizer, a model, or both.

    Names, shapes and every checksum of the files concerned are checked before anything is changed.
    State that the optimizer keeps in a file goes straight to a new one, which takes the other's
    place in the end.

    State is matched, and of another optimizer of this project coded anew, as
    `CompressedOptimizer.load_state_dict` says; but the names of the optimizer's parameters stay.
    Names of weights may have other wrappers than the model's as well.

    A model gets what its ``load_state_dict`` would restore, extra state included. A module that
    loads in a way of its own (a hook, a ``_load_from_state_dict``) is handed its part through
    PyTorch: that part is in memory at once, and whether it fits is known only then. Parameters on
    the meta device are replaced by what is read, on the CPU.

    With a process group, all its ranks call this together, and any checkpoint will do, whoever
    saved it under whatever sharding. Each rank gets what its own optimizer and model have, by name;
    together they must have what the checkpoint has. Each reads the rows it needs, and checks the
    checksums of the chunks that hold them. Neither state nor weights change before all ranks have
    read their state; weights are then copied one by one. Saves in flight of this process end first.

    Args:
        url: folder of the checkpoint.
        optimizer: receives the state, matched by name, or by position where either side has no
            names. Any ``torch.optim.Optimizer`` takes what was saved of one of its kind, and a list
            or dict of several what was saved of such a list or dict: exactly as it was.
        model: receives the weights.
        strict: whether every parameter and weight must have been saved, with the same shape, and
            all that was saved must find its place. If not, the result says what did not:
            parameters without saved state start fresh, weights that were not saved stay.
        max_memory_bytes: bound on what loading holds beside the old and the new state and one
            weight; decides how many files are read at once.
        progress: called with bytes read and checked, and in total; without a process group only.
        process_group: the ranks that load together: ``torch.distributed.group.WORLD`` for all; None
            for this process alone.

    Raises:
        ConfigurationError: the optimizer is none that can be loaded, or holds parameters on the
            meta device that loading the model would replace; or an option is not for a process
            group.
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: a file is missing, cut or altered.
        UnsupportedVersionError: a newer version wrote it.
        StateMismatchError: it does not fit the optimizer or the model; says where.
        StorageError: the store failed, a disk has no room for offloaded state beside the
            present one, a process failed or disappeared, or the ranks did not find the same
            checkpoint.
    """
    state = None if optimizer is None else state_of_any(optimizer, model)
    if process_group is None:
        return load_alone(
            url,
            optimizer=state,
            model=model,
            strict=strict,
            max_memory_bytes=max_memory_bytes,
            progress=progress,
        )
    if progress is not None:
        raise ConfigurationError(
            f"progress={progress!r} must be None with a process group.",
            hint="Ranks read single rows, and do not know how many bytes that will be.",
        )
    async_executor.finish()
    return _load_on_ranks(
        url,
        state,
        model,
        strict=strict,
        max_memory_bytes=max_memory_bytes,
        ranks=Ranks(process_group),
    )


def load_sharded(
    url: Place,
    *,
    optimizer: LoadableState | AnyOptimizers,
    model: nn.Module | None = None,
    strict: bool = True,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    group: ProcessGroup | None = None,
) -> LoadedCheckpoint:
    """Load with ``process_group=group``, or that of all processes where ``group`` is None.

    Args:
        url: as `load` takes it.
        optimizer: as `load` takes it.
        model: as `load` takes it.
        strict: as `load` takes it.
        max_memory_bytes: as `load` takes it.
        group: the ranks that load together; all by default.

    Raises:
        LumaError: whatever `load` raises.
    """
    return load(
        url,
        optimizer=optimizer,
        model=model,
        strict=strict,
        max_memory_bytes=max_memory_bytes,
        process_group=group_or_default(group),
    )


def _load_on_ranks(
    url: Place,
    given: LoadableState | None,
    model: nn.Module | None,
    *,
    strict: bool,
    max_memory_bytes: int,
    ranks: Ranks,
) -> LoadedCheckpoint:
    optimizers: list[ShardedOptimizer] = []
    opened: list[Checkpoint] = []

    def find() -> tuple[str, list[str], set[str] | None]:
        optimizers.append(sharded_optimizer(given))
        opened.append(open(url, max_memory_bytes=max_memory_bytes))
        keys = None if model is None else set(model.state_dict())
        return opened[0].manifest.digest, optimizers[0].parameter_names(), keys

    digests, names, keys = zip(*ranks.run_on_all_ranks(find), strict=True)
    checkpoint, optimizer = opened[0], optimizers[0]
    manifest = checkpoint.manifest
    _check_same(checkpoint.url, digests)
    check_models([some is not None for some in keys])
    elsewhere = set().union(*names)
    states: list[ParameterState] = []
    blocks: list[LoadArena | None] = []
    weights: list[ModelLoad] = []

    def read() -> None:
        if model is not None:
            held = [param for _, param, _ in optimizer.parameters_by_name()]
            weights.append(ModelLoad(manifest, model, held, set().union(*keys), strict=strict))
        matched = matched_states(checkpoint, optimizer, elsewhere, strict=strict)
        blocks.append(optimizer.incoming_state(matched))
        states.extend(_states(checkpoint, optimizer, matched, blocks[0]))

    ranks.run_on_all_ranks(read)
    loaded: list[LoadReport] = []
    ranks.run_on_all_ranks(
        lambda: loaded.append(
            load_optimizer(
                checkpoint,
                optimizer,
                states,
                elsewhere,
                incoming=blocks[0],
                strict=strict,
            )
        )
    )
    found = ALL_FOUND
    if model is not None:
        found = ranks.run_on_all_ranks(lambda: load_weights(checkpoint, weights[0]))[ranks.rank]
    return LoadedCheckpoint(manifest, checkpoint.extra(), loaded[0], found)


def _check_same(url: str, digests: Sequence[str]) -> None:
    if len(set(digests)) > 1:
        raise StorageError(
            f"{url}: the processes found {len(set(digests))} different checkpoints there.",
            hint="Give a folder that all processes share, and load while nobody saves to it.",
        )


def _states(
    checkpoint: Checkpoint,
    optimizer: ShardedOptimizer,
    matched: Sequence[MatchedState],
    incoming: LoadArena | None,
) -> list[ParameterState]:
    """Return all states, those that are taken with this process's parts of them.

    What is kept as it was stored is in ``incoming`` where there is one.
    """
    params = {name: param for name, param, _ in optimizer.parameters_by_name()}
    states = {state.name: state for state in checkpoint.states()}
    for found in matched:
        state, part = found.state, part_of(params[found.name])
        keep: Callable[[str, Tensor], Tensor] = _as_it_is
        if incoming is not None and found.kept:
            keep = partial(incoming.put, found.name)
        if state.codecs and part is not None and part.cut:
            states[state.name] = replace(
                state,
                fields=loaded_fields(checkpoint, state, part, keep),
                nonfinite=part_count(part, state),
            )
    return list(states.values())


def _as_it_is(_key: str, local: Tensor) -> Tensor:
    return local
