"""Checkpoints of sharded optimizers: every process writes its own shards and reads its own rows.

Fields that are cut along dimension 0 are stored as pieces, without being gathered. Two kinds of
moments are gathered, one at a time: those cut along another dimension, and those whose blocks the
sharding cuts, which are coded anew by rounding to nearest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from torch import distributed as dist

from luma_core._version import __version__
from luma_core.checkpoint.agreement import Processes
from luma_core.checkpoint.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.compression import CHUNK_BYTES, Compression
from luma_core.checkpoint.consistency import check_consistency
from luma_core.checkpoint.dtypes import tensor_bytes, torch_dtype
from luma_core.checkpoint.extra import flatten_extra
from luma_core.checkpoint.folder import CheckpointFolder
from luma_core.checkpoint.loading import LoadedCheckpoint, check_optimizer, matched_states
from luma_core.checkpoint.manifest import (
    PIECES_VERSION,
    VERSION,
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
)
from luma_core.checkpoint.names import MANIFEST_NAME, ShardKind, shard_name
from luma_core.checkpoint.parts import loaded_fields, part_count, planned_parts
from luma_core.checkpoint.plan import parameter_entry, plain_options
from luma_core.checkpoint.reader import Checkpoint, open
from luma_core.checkpoint.shard import PlannedTensor, ShardWriter, plan_shards
from luma_core.checkpoint.store import Place, Store, open_store, storage_errors
from luma_core.checkpoint.writer import MAX_SHARD_BYTES, check_options
from luma_core.errors import StorageError
from luma_core.optim.base import CompressedOptimizer
from luma_core.sharding import part_of
from luma_core.state import SCALAR_STATE_BYTES, ParameterState

_log = logging.getLogger("luma")

Shards = list[tuple[ShardKind, list[PlannedTensor]]]
Written = list[tuple[FileEntry, list[TensorEntry]]]


def save_sharded(
    url: Place,
    *,
    optimizer: CompressedOptimizer,
    extra: Any = None,
    compression: Compression = "zstd",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    group: dist.ProcessGroup | None = None,
) -> Manifest:
    """Write a checkpoint of an optimizer of sharded parameters; all processes call it together.

    The folder must be one that all processes reach. Process 0 makes the checkpoint appear once all
    have written; if any fails or disappears before, the folder keeps the checkpoint that was there,
    and what others wrote is removed by the next save. Parameters that are not sharded are shared
    out among the processes.

    Args:
        url: folder of the checkpoint, as `luma_core.checkpoint.save` takes it.
        optimizer: whose state is saved.
        extra: as `save` takes it; that of process 0 counts.
        compression: ``"zstd"`` or ``"none"``.
        overwrite: whether to replace a checkpoint that is there.
        max_shard_bytes: uncompressed bound on a shard.
        max_memory_bytes: bound on what each process holds beside the state.
        group: the processes; all by default. Its time-out bounds how long they wait for one that
            disappeared.

    Raises:
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False.
        ConcurrentSaveError: another saver is at work in the folder.
        StorageError: a process failed or disappeared; the message says which and why.
    """
    check_options(compression, max_shard_bytes)
    check_optimizer(optimizer, hint="Save it with torch.distributed.checkpoint.")
    store = open_store(url)
    save = _Save(store, optimizer, compression, Budget.of(max_memory_bytes), Processes(group))
    with storage_errors(store.url):
        return save.run(extra, overwrite=overwrite, max_shard_bytes=max_shard_bytes)


class _Save:
    """One process's share of one save."""

    def __init__(
        self,
        store: Store,
        optimizer: CompressedOptimizer,
        compression: Compression,
        budget: Budget,
        processes: Processes,
    ) -> None:
        self._store = store
        self._optimizer = optimizer
        self._compression = compression
        self._budget = budget
        self._processes = processes
        self._folder: CheckpointFolder | None = None

    def run(self, extra: Any, *, overwrite: bool, max_shard_bytes: int) -> Manifest:
        processes = self._processes
        with ExitStack() as stack:
            generation = processes.agreed(lambda: self._open(stack, overwrite))[0]
            tree, extra_tensors = flatten_extra(extra)
            plan = planned_parts(self._optimizer, processes)
            kinds: dict[ShardKind, list[PlannedTensor]] = {"optimizer": plan.tensors}
            if processes.rank == 0:
                kinds["extra"] = [
                    PlannedTensor(name, tensor.dtype, tuple(tensor.shape), lambda t=tensor: t)  # type: ignore[misc]
                    for name, tensor in extra_tensors.items()
                ]
            shards: Shards = [
                (kind, shard)
                for kind, tensors in kinds.items()
                for shard in plan_shards(tensors, max_shard_bytes)
            ]
            counts = processes.told([kind for kind, _ in shards])
            written = processes.agreed(lambda: self._write(shards, counts, generation))
            nonfinite = _added(processes.told(plan.nonfinite))
            manifest = processes.agreed(lambda: self._commit(tree, written, nonfinite))[0]
        assert manifest is not None
        return manifest

    def _open(self, stack: ExitStack, overwrite: bool) -> int:
        """Return the generation, in process 0, which alone looks at what is there."""
        if self._processes.rank:
            return 0
        alone = stack.enter_context(self._store.exclusive())
        self._folder = CheckpointFolder(
            self._store, overwrite=overwrite, with_model=False, alone=alone
        )
        self._folder.clean()
        return self._folder.generation

    def _write(
        self, shards: Shards, counts: Sequence[Sequence[ShardKind]], generation: int
    ) -> Written:
        writer = ShardWriter(
            self._store,
            compression=self._compression,
            chunk_bytes=CHUNK_BYTES,
            generation=generation,
            budget=self._budget,
            tick=lambda _: None,
        )
        written: Written = []
        begun: list[str] = []
        before = [kind for some in counts[: self._processes.rank] for kind in some]
        everywhere = [kind for some in counts for kind in some]
        try:
            for kind, tensors in shards:
                before.append(kind)
                begun.append(
                    shard_name(kind, generation, before.count(kind), everywhere.count(kind))
                )
                written.append(writer.write(begun[-1], kind, tensors))
        except BaseException:
            # Later than here others may count on these files.
            for name in begun:
                with suppress(OSError):
                    self._store.delete(name)
            raise
        return written

    def _commit(
        self, tree: Any, written: Sequence[Written], nonfinite: Mapping[str, int]
    ) -> Manifest | None:
        """Make the checkpoint appear, in process 0."""
        optimizer, folder = self._optimizer, self._folder
        if folder is None:
            return None
        files = [file for some in written for file, _ in some]
        tensors = tuple(entry for some in written for _, entries in some for entry in entries)
        parameters = tuple(
            parameter_entry(replace(state, nonfinite=nonfinite.get(state.name, state.nonfinite)))
            for state in optimizer.parameter_states()
        )
        in_pieces = any(entry.first_row is not None for entry in tensors)
        groups = enumerate(optimizer.group_options())
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"luma-state {__version__}",
            algorithm=optimizer.algorithm,
            named=optimizer.named,
            compression=self._compression,
            chunk_bytes=CHUNK_BYTES,
            groups=tuple(plain_options(index, group) for index, group in groups),
            parameters=parameters,
            tensors=tensors,
            files=tuple(files),
            summary=_summary(parameters, tensors, files),
            generation=folder.generation,
            extra=tree,
            version=PIECES_VERSION if in_pieces else VERSION,
        )
        check_consistency(manifest, MANIFEST_NAME)
        folder.commit(manifest)
        try:
            folder.retire(manifest)
        except OSError as error:
            _log.warning("saved, but files of the previous checkpoint are left: %s", error)
        return manifest


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for some in counts:
        for name, count in some.items():
            found[name] = found.get(name, 0) + count
    return found


def _summary(
    parameters: Sequence[ParameterEntry],
    tensors: Sequence[TensorEntry],
    files: Sequence[FileEntry],
) -> Summary:
    state = {file.name for file in files if file.kind == "optimizer"}
    fields = 0
    for entry in tensors:
        dtype = torch_dtype(entry.dtype)
        if entry.file in state and dtype is not None:
            fields += tensor_bytes(dtype, entry.shape)
    return Summary(
        parameters=len(parameters),
        elements=sum(math.prod(entry.shape) for entry in parameters),
        state_bytes=fields + SCALAR_STATE_BYTES * sum(bool(entry.codecs) for entry in parameters),
        stored_bytes=sum(file.bytes for file in files if file.kind == "optimizer"),
        step=max((entry.step for entry in parameters), default=0),
    )


def load_sharded(
    url: Place,
    *,
    optimizer: CompressedOptimizer,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    group: dist.ProcessGroup | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint into an optimizer of sharded parameters; all processes call it together.

    Any checkpoint will do, whoever saved it under whatever sharding. Each process reads the rows it
    needs, and checks the checksums of the chunks that hold them. Nothing changes before all
    processes have read theirs.

    Args:
        url: folder of the checkpoint.
        optimizer: receives the state.
        max_memory_bytes: as `luma_core.checkpoint.open` takes it.
        group: the processes; all by default.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: a file is missing, cut or altered.
        StateMismatchError: it does not fit the optimizer; says where.
        StorageError: a process failed or disappeared, or they did not find the same checkpoint.
    """
    check_optimizer(optimizer, hint="Load it with torch.distributed.checkpoint.")
    processes = Processes(group)
    checkpoint: Checkpoint = open(url, max_memory_bytes=max_memory_bytes)
    digests = processes.told(checkpoint.manifest.digest)
    processes.agreed(lambda: _check_same(checkpoint.url, digests))
    states: list[ParameterState] = []
    processes.agreed(lambda: states.extend(_states(checkpoint, optimizer)))
    optimizer.load_parameter_states(checkpoint.group_options(), states)
    return LoadedCheckpoint(checkpoint.manifest, checkpoint.extra())


def _check_same(url: str, digests: Sequence[str]) -> None:
    if len(set(digests)) > 1:
        raise StorageError(
            f"{url}: the processes found {len(set(digests))} different checkpoints there.",
            hint="Give a folder that all processes share, and load while nobody saves to it.",
        )


def _states(checkpoint: Checkpoint, optimizer: CompressedOptimizer) -> list[ParameterState]:
    params = {name: param for name, param, _ in optimizer.parameters_by_name()}
    found = []
    for own, state in matched_states(checkpoint, optimizer):
        part = part_of(params[own])
        if state.codecs and part is not None and part.cut:
            state = replace(
                state,
                fields=loaded_fields(checkpoint, state, part),
                nonfinite=part_count(part, state),
            )
        found.append(state)
    return found
