"""Checkpoints of sharded optimizers: every process writes its own shards and reads its own rows.

Fields that are cut along dimension 0 are stored as pieces, and moments whose blocks the sharding
cuts as parts, without being gathered. Those cut along another dimension are gathered, one at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, overload

from torch import Tensor, nn
from torch import distributed as dist

from luma_core.checkpoint.format.compression import Compression
from luma_core.checkpoint.format.manifest import Manifest
from luma_core.checkpoint.read.load import LoadedCheckpoint, load_optimizer, matched_states
from luma_core.checkpoint.read.model_loading import ModelLoad
from luma_core.checkpoint.read.reader import Checkpoint, open
from luma_core.checkpoint.staging import async_executor as background
from luma_core.checkpoint.staging.async_executor import SaveHandle
from luma_core.checkpoint.staging.staged import Staging, released
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store
from luma_core.checkpoint.write.coordination import Processes, group_for_saves
from luma_core.checkpoint.write.parts import check_sharded_optimizer, loaded_fields, part_count
from luma_core.checkpoint.write.saver import MAX_SHARD_BYTES, check_options
from luma_core.checkpoint.write.shared_save import SharedSave
from luma_core.checkpoint.write.shares import Replicas, check_replicas_option, planned_share
from luma_core.checkpoint.write.weights import check_models, load_weights
from luma_core.errors import StorageError
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.offload import Incoming
from luma_core.sharding import part_of
from luma_core.state import ALL_FOUND, LoadReport, MatchedState, ParameterState


class SharedOptions(TypedDict, total=False):
    """What `save_sharded` takes beside the place, the optimizer and ``wait``."""

    model: nn.Module | None
    extra: Any
    compression: Compression
    overwrite: bool
    max_shard_bytes: int
    max_memory_bytes: int
    group: dist.ProcessGroup | None
    replicas: Replicas


@overload
def save_sharded(
    url: Place,
    *,
    optimizer: CompressedOptimizer,
    wait: Literal[True] = True,
    **options: Unpack[SharedOptions],
) -> Manifest: ...


@overload
def save_sharded(
    url: Place,
    *,
    optimizer: CompressedOptimizer,
    wait: bool,
    **options: Unpack[SharedOptions],
) -> Manifest | SaveHandle: ...


def save_sharded(
    url: Place,
    *,
    optimizer: CompressedOptimizer,
    wait: bool = True,
    **options: Unpack[SharedOptions],
) -> Manifest | SaveHandle:
    """Write a checkpoint of an optimizer of sharded parameters; all processes call it together.

    The folder must be one that all processes reach. Process 0 makes the checkpoint appear once all
    have written; if any fails or disappears before, the folder keeps the checkpoint that was there,
    and what others wrote is removed by the next save.

    A parameter may be on any part of the processes: whole on one (a pipeline's stage, an expert),
    whole on several, or cut over any mesh of them. Parameters are the same if their names are.
    What several processes have is written by one of them, and must be equal in all: before anything
    is written, they compare shapes, dtypes, codecs, group options, counters and a digest of a
    sample of the values. Buffers may differ; those of the first process that has them are saved.

    With ``wait=False`` training is held while those tensors are gathered that need to be, and
    weights copied; the rest goes on behind it, as `luma_core.checkpoint.save` says, over a process
    group of its own (gloo). Call `luma_core.checkpoint.wait_for_saves` before
    ``destroy_process_group``.

    Args:
        url: folder of the checkpoint, as `luma_core.checkpoint.save` takes it.
        optimizer: whose state is saved.
        model: whose weights are saved as well, in the Hub's layout: each whole, put together by
            the process that writes it, which holds its share of the weights until then.
        extra: as `save` takes it; that of process 0 counts.
        compression: ``"zstd"`` or ``"none"``.
        overwrite: whether to replace a checkpoint that is there.
        max_shard_bytes: uncompressed bound on a shard.
        max_memory_bytes: bound on what each process holds beside the state and its share of the
            weights.
        wait: whether to return only when the checkpoint is committed.
        group: the processes; all by default. Its time-out bounds how long they wait for one that
            disappeared.
        replicas: ``"equal"``, or ``"first"`` to save the values of the first process that has them
            where those of others may differ; they are not compared then.

    Raises:
        StateMismatchError: what several processes have is not equal, or is parts of no whole; says
            of which parameter and in which processes.
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False.
        ConcurrentSaveError: another saver is at work in the folder.
        UnsupportedParameterError: parameters are flat ones of FSDP1; see `unflattened`.
        StorageError: a process failed or disappeared; the message says which and why.
    """
    store = open_store(url)
    run = prepared_sharded(store, optimizer=optimizer, wait=wait, **options)
    return run() if wait else background.submit(run, store.url)


def prepared_sharded(
    store: Store,
    *,
    optimizer: CompressedOptimizer,
    wait: bool,
    model: nn.Module | None = None,
    extra: Any = None,
    compression: Compression = "zstd",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    group: dist.ProcessGroup | None = None,
    replicas: Replicas = "equal",
    begin: Callable[[], None] = lambda: None,
) -> Callable[[], Manifest]:
    """Return what is left of `save_sharded` once tensors are gathered and, unless it waits, staged.

    ``begin`` is called by process 0 before anything is written.
    """
    check_options(compression, max_shard_bytes, overwrite=overwrite)
    check_replicas_option(replicas)
    budget = Budget.of(max_memory_bytes)
    background.before_save(wait=wait)
    processes = Processes(group)
    share = planned_share(optimizer, model, extra, max_shard_bytes, replicas, processes)
    # Before steps may have to wait for the save, since this may fail.
    processes = Processes(group if wait else group_for_saves(group))
    staging = None if wait else Staging(optimizer)
    if staging is not None:
        share = staging.staged(share)
    save = SharedSave(
        store,
        share,
        processes,
        compression=compression,
        budget=budget,
        overwrite=overwrite,
        begin=begin,
    )
    # A closure would keep the share, and all copies with it, as long as a traceback lives.
    return save.run if staging is None else partial(released, save.run, staging)


def load_sharded(
    url: Place,
    *,
    optimizer: CompressedOptimizer,
    model: nn.Module | None = None,
    strict: bool = True,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    group: dist.ProcessGroup | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint into an optimizer of sharded parameters; all processes call it together.

    Any checkpoint will do, whoever saved it under whatever sharding. Each process gets what its own
    optimizer and model have, by name; together they must have what the checkpoint has. Each reads
    the rows it needs, and checks the checksums of the chunks that hold them. Neither state nor
    weights change before all processes have read their state; weights are then copied one by one.
    Saves in flight of this process end first.

    Args:
        url: folder of the checkpoint.
        optimizer: receives the state.
        model: receives the weights.
        strict: as `luma_core.checkpoint.load` takes it.
        max_memory_bytes: as `luma_core.checkpoint.open` takes it.
        group: the processes; all by default.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: a file is missing, cut or altered.
        StateMismatchError: it does not fit the optimizer; says where.
        StorageError: a process failed or disappeared, or they did not find the same checkpoint.
    """
    processes = Processes(group)
    background.finish()
    opened: list[Checkpoint] = []

    def find() -> tuple[str, list[str], set[str] | None]:
        check_sharded_optimizer(optimizer, "Load it")
        opened.append(open(url, max_memory_bytes=max_memory_bytes))
        keys = None if model is None else set(model.state_dict())
        return opened[0].manifest.digest, optimizer.parameter_names(), keys

    digests, names, keys = zip(*processes.agreed(find), strict=True)
    checkpoint = opened[0]
    manifest = checkpoint.manifest
    _check_same(checkpoint.url, digests)
    check_models([some is not None for some in keys])
    elsewhere = set().union(*names)
    states: list[ParameterState] = []
    blocks: list[Incoming | None] = []
    weights: list[ModelLoad] = []

    def read() -> None:
        if model is not None:
            held = [param for _, param, _ in optimizer.parameters_by_name()]
            weights.append(ModelLoad(manifest, model, held, set().union(*keys), strict=strict))
        matched = matched_states(checkpoint, optimizer, elsewhere, strict=strict)
        blocks.append(optimizer.incoming_state(matched))
        states.extend(_states(checkpoint, optimizer, matched, blocks[0]))

    processes.agreed(read)
    loaded: list[LoadReport] = []
    processes.agreed(
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
        found = processes.agreed(lambda: load_weights(checkpoint, weights[0]))[processes.rank]
    return LoadedCheckpoint(manifest, checkpoint.extra(), loaded[0], found)


def _check_same(url: str, digests: Sequence[str]) -> None:
    if len(set(digests)) > 1:
        raise StorageError(
            f"{url}: the processes found {len(set(digests))} different checkpoints there.",
            hint="Give a folder that all processes share, and load while nobody saves to it.",
        )


def _states(
    checkpoint: Checkpoint,
    optimizer: CompressedOptimizer,
    matched: Sequence[MatchedState],
    incoming: Incoming | None,
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
