"""Saving: shards first, the manifest last, by one process or by many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Unpack, overload

from torch import nn
from torch.distributed import ProcessGroup

from luma_core.checkpoint.format.any_optimizer import AnyOptimizers, memory_owner, state_of_any
from luma_core.checkpoint.format.manifest import Manifest
from luma_core.checkpoint.format.plan import Plan, SavableState, plan_save, refuse_sharded
from luma_core.checkpoint.staging import async_executor
from luma_core.checkpoint.staging.async_executor import SaveHandle
from luma_core.checkpoint.staging.staged import Staging, released
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store
from luma_core.checkpoint.write.coordination import Ranks, group_for_saves, group_or_default
from luma_core.checkpoint.write.delta_base import BaseChoice, choose_base
from luma_core.checkpoint.write.options import SaveKeywords, SaveOptions
from luma_core.checkpoint.write.save_run import SaveRun, do_nothing
from luma_core.checkpoint.write.shares import plan_share
from luma_core.keywords import merge_keywords


@overload
def save(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None = None,
    extra: Any = None,
    wait: Literal[True] = True,
    process_group: ProcessGroup | None = None,
    options: SaveOptions | None = None,
    **keywords: Unpack[SaveKeywords],
) -> Manifest: ...


@overload
def save(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None = None,
    extra: Any = None,
    wait: Literal[False],
    process_group: ProcessGroup | None = None,
    options: SaveOptions | None = None,
    **keywords: Unpack[SaveKeywords],
) -> SaveHandle: ...


@overload
def save(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None = None,
    extra: Any = None,
    wait: bool,
    process_group: ProcessGroup | None = None,
    options: SaveOptions | None = None,
    **keywords: Unpack[SaveKeywords],
) -> Manifest | SaveHandle: ...


def save(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None = None,
    extra: Any = None,
    wait: bool = True,
    process_group: ProcessGroup | None = None,
    options: SaveOptions | None = None,
    **keywords: Unpack[SaveKeywords],
) -> Manifest | SaveHandle:
    """Write a checkpoint and return its manifest, or with ``wait=False`` what `async_save` does.

    The folder holds either the checkpoint that was there before or the new one, whole, whenever a
    process is killed or a machine stops. Two savers to one folder: see
    `luma_core.checkpoint.storage.commit`. Saves of one process end in the order in which they
    began.

    With a process group, all its ranks call this together, and all reach the folder. Each writes
    its own shards; the coordinator, rank 0, makes the checkpoint appear once all have written. A
    parameter may be on any part of the ranks: whole on one (a pipeline's stage, an expert), whole
    on several, or cut over any mesh of them. Parameters are the same if their names are. What
    several ranks have is written by one of them, and must be equal on all: before anything is
    written, they compare shapes, dtypes, codecs, group options, counters and a digest of a sample
    of the values. Buffers may differ; those of the first rank that has them are saved.

    Args:
        url: folder, as a path, a URL that fsspec knows (``s3://bucket/run``), or a store; created
            where it is missing.
        optimizer: whose state is saved; without a process group also an opened checkpoint. Any
            ``torch.optim.Optimizer`` will do, wrapped or not, and a list or dict of several: their
            state is kept as it is. Parameters are named by their groups, or else by ``model``.
        model: whose weights are saved as well, uncompressed, in the Hub's layout: each whole, put
            together by the rank that writes it.
        extra: values of your own, nested at will, which come back in type and value: numbers (NaN,
            NumPy's), text, bytes, tensors, arrays, tuples, sets, dicts with any keys, and the like;
            those of the coordinator rank count.
        wait: whether to return only when the checkpoint is committed.
        process_group: the ranks that save together: ``torch.distributed.group.WORLD`` for all; None
            for this process alone. Its time-out bounds how long they wait for one that disappeared.
        options: how to save.
        **keywords: single options, in place of those in ``options``.

    Raises:
        ConfigurationError: an option, the model or ``extra`` holds something that cannot be saved.
        StateMismatchError: what several ranks have is not equal, or is parts of no whole; says of
            which parameter and on which ranks.
        UnsupportedParameterError: parameters are flat ones of FSDP1; see `unflattened`.
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False.
        CheckpointNotFoundError: there is no checkpoint at ``base``.
        CorruptCheckpointError: what is needed of ``base`` cannot be read, or changed meanwhile.
        ConcurrentSaveError: another saver is at work in the folder, or committed meanwhile.
        StateChangedError: state was changed in place, by no step, before it was written.
        StorageError: the store failed, for example a full disk, or a process failed or disappeared.
            Nearly always the folder then holds the previous checkpoint. It holds the new one if its
            manifest was in place already, and making that durable or writing the index of the model
            shards failed. Either is whole, but its index may be missing, which is derived. Old
            files that cannot be removed after all that are no error but a warning in the log; the
            next save removes them.
    """
    store = open_store(url)
    run = prepare_run(
        store,
        optimizer=optimizer,
        model=model,
        extra=extra,
        wait=wait,
        process_group=process_group,
        options=merge_keywords("save", SaveOptions, options, keywords),
    )
    return run() if wait else async_executor.submit(run, store.url)


def async_save(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None = None,
    extra: Any = None,
    process_group: ProcessGroup | None = None,
    options: SaveOptions | None = None,
    **keywords: Unpack[SaveKeywords],
) -> SaveHandle:
    """Write a checkpoint asynchronously, like ``save(..., wait=False)``, and return its handle.

    The caller is held only while weights and ``extra`` are copied and tensors gathered that need to
    be, and while two such saves are still at work; the process does not end before they have.
    State is saved as it was at the call: a step copies what it is about to change and was not
    written yet (copy-on-write), or waits for it where state is on disk. Whoever else changes state
    in place calls `before_change` first. Errors come from the handle's ``result()``, or else from
    the next save. Ranks write over a process group of their own (gloo): call `wait_for_saves`
    before ``destroy_process_group``.

    Args:
        url: as `save` takes it.
        optimizer: as `save` takes it.
        model: as `save` takes it.
        extra: as `save` takes it.
        process_group: as `save` takes it.
        options: how to save.
        **keywords: single options, in place of those in ``options``.

    Raises:
        LumaError: what `save` raises before it writes.
    """
    chosen = merge_keywords("async_save", SaveOptions, options, keywords)
    return save(
        url,
        optimizer=optimizer,
        model=model,
        extra=extra,
        wait=False,
        process_group=process_group,
        options=chosen,
    )


class ShardedKeywords(SaveKeywords, total=False):
    """What `save_sharded` takes beside the place, the optimizer and ``wait``."""

    model: nn.Module | None
    extra: Any
    options: SaveOptions | None


@overload
def save_sharded(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    wait: Literal[True] = True,
    group: ProcessGroup | None = None,
    **keywords: Unpack[ShardedKeywords],
) -> Manifest: ...


@overload
def save_sharded(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    wait: Literal[False],
    group: ProcessGroup | None = None,
    **keywords: Unpack[ShardedKeywords],
) -> SaveHandle: ...


@overload
def save_sharded(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    wait: bool,
    group: ProcessGroup | None = None,
    **keywords: Unpack[ShardedKeywords],
) -> Manifest | SaveHandle: ...


def save_sharded(
    url: Place,
    *,
    optimizer: SavableState | AnyOptimizers,
    wait: bool = True,
    group: ProcessGroup | None = None,
    **keywords: Unpack[ShardedKeywords],
) -> Manifest | SaveHandle:
    """Save with ``process_group=group``, or that of all processes where ``group`` is None.

    Args:
        url: as `save` takes it.
        optimizer: as `save` takes it.
        wait: as `save` takes it.
        group: the ranks that save together; all by default.
        **keywords: whatever else `save` takes.

    Raises:
        LumaError: whatever `save` raises.
    """
    ranks = group_or_default(group)
    return save(url, optimizer=optimizer, wait=wait, process_group=ranks, **keywords)


def prepare_run(
    store: Store,
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None,
    extra: Any,
    wait: bool,
    process_group: ProcessGroup | None,
    options: SaveOptions,
    begin: Callable[[], None] = do_nothing,
    choice: BaseChoice | None = None,
) -> Callable[[], Manifest]:
    """Plan a save, stage it if it is asynchronous, and return what writes and commits it.

    Args:
        store: the folder.
        optimizer: as `save` takes it, like the arguments that follow.
        model: whose weights are saved as well.
        extra: values of the caller's own.
        wait: whether the caller waits for the commit.
        process_group: the ranks that save together.
        options: how to save.
        begin: called on the coordinator rank before anything is written.
        choice: finds a delta base where ``options`` have none.
    """
    state = state_of_any(optimizer, model)
    if options.base is not None:
        choice = choose_base(options.base, store, options.compression)
    plan, ranks = _plan(state, model, extra, wait, process_group, options)
    again = choice is not None and not choice.required
    staging = None if wait else Staging(memory_owner(state), again=again)
    if staging is not None:
        plan = staging.staged(plan)
    save_run = SaveRun(store, plan, ranks, options, begin=begin, choice=choice)
    # A closure would keep the plan, and all copies with it, as long as a traceback lives.
    return save_run.run if staging is None else partial(released, save_run.run, staging)


def _plan(
    optimizer: SavableState,
    model: nn.Module | None,
    extra: Any,
    wait: bool,
    process_group: ProcessGroup | None,
    options: SaveOptions,
) -> tuple[Plan, Ranks]:
    """Return what this rank writes, and the ranks that write together."""
    if process_group is None:
        refuse_sharded(optimizer)
    async_executor.before_save(wait=wait)
    size = options.max_shard_bytes
    if process_group is None:
        return plan_save(optimizer, model, extra, size), Ranks(None)
    plan = plan_share(optimizer, model, extra, size, options.replicas, Ranks(process_group))
    # Before steps may have to wait for the save, since this may fail.
    return plan, Ranks(process_group if wait else group_for_saves(process_group))
