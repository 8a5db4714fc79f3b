"""One checkpoint that several processes write: each its own shards, process 0 the manifest."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from itertools import pairwise

from luma_core._version import __version__
from luma_core.checkpoint.format.compression import CHUNK_BYTES, Compression
from luma_core.checkpoint.format.consistency import check_consistency
from luma_core.checkpoint.format.dtypes import tensor_bytes, torch_dtype
from luma_core.checkpoint.format.folder import CheckpointFolder
from luma_core.checkpoint.format.manifest import (
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
    version_of,
)
from luma_core.checkpoint.format.model import index_bytes
from luma_core.checkpoint.format.plan import Plan
from luma_core.checkpoint.format.shard import PlannedTensor, ShardWriter
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.names import INDEX_NAME, MANIFEST_NAME, ShardKind, shard_name
from luma_core.checkpoint.storage.store import Store, storage_errors
from luma_core.checkpoint.write.coordination import Processes
from luma_core.state import SCALAR_STATE_BYTES

_log = logging.getLogger("luma")

Written = list[tuple[FileEntry, list[TensorEntry]]]


class SharedSave:
    """One process's work on one save.

    Args:
        store: the folder, which all processes reach.
        share: what this process writes; of all but the shards, what process 0 has counts.
        processes: all of them.
        compression: of state and extra tensors.
        budget: of this process's memory.
        overwrite: whether to replace a checkpoint that is there.
        tick: called with uncompressed bytes as this process writes them.
        begin: called by process 0 before anything is written.
    """

    def __init__(
        self,
        store: Store,
        share: Plan,
        processes: Processes,
        *,
        compression: Compression,
        budget: Budget,
        overwrite: bool,
        tick: Callable[[int], None] = lambda _: None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._share = share
        self._processes = processes
        self._compression = compression
        self._budget = budget
        self._overwrite = overwrite
        self._tick = tick
        self._begin = begin
        self._folder: CheckpointFolder | None = None

    def run(self) -> Manifest:
        """Write, and return the manifest once process 0 has committed it.

        Raises:
            CheckpointError: as `luma_core.checkpoint.save_sharded` says, in all processes.
        """
        processes = self._processes
        kinds = {kind for some in processes.told(set(self._share.shards)) for kind in some}
        with storage_errors(self._store.url), ExitStack() as stack:
            generation = processes.agreed(lambda: self._open(stack, "model" in kinds))[0]
            counts = processes.told([kind for kind, _ in self._shards()])
            written = processes.agreed(lambda: self._write(counts, generation))
            manifest = processes.agreed(lambda: self._commit(written))[0]
        assert manifest is not None
        return manifest

    def _shards(self) -> list[tuple[ShardKind, list[PlannedTensor]]]:
        """Return the shards of this process, in order."""
        return [(kind, shard) for kind, shards in self._share.shards.items() for shard in shards]

    def _open(self, stack: ExitStack, with_model: bool) -> int:
        """Return the generation, in process 0, which alone looks at what is there."""
        if self._processes.rank:
            return 0
        self._begin()
        alone = stack.enter_context(self._store.exclusive())
        self._folder = CheckpointFolder(
            self._store, overwrite=self._overwrite, with_model=with_model, alone=alone
        )
        self._folder.clean()
        return self._folder.generation

    def _write(self, counts: Sequence[Sequence[ShardKind]], generation: int) -> Written:
        written: Written = []
        begun: list[str] = []
        before = [kind for some in counts[: self._processes.rank] for kind in some]
        everywhere = [kind for some in counts for kind in some]
        try:
            for kind, tensors in self._shards():
                before.append(kind)
                begun.append(
                    shard_name(kind, generation, before.count(kind), everywhere.count(kind))
                )
                written.append(self._writer(kind, generation).write(begun[-1], kind, tensors))
        except BaseException:
            # Later than here others may count on these files.
            for name in begun:
                with suppress(OSError):
                    self._store.delete(name)
            raise
        return written

    def _writer(self, kind: ShardKind, generation: int) -> ShardWriter:
        return ShardWriter(
            self._store,
            compression="none" if kind == "model" else self._compression,
            chunk_bytes=CHUNK_BYTES,
            generation=generation,
            budget=self._budget,
            tick=self._tick,
        )

    def _commit(self, written: Sequence[Written]) -> Manifest | None:
        """Make the checkpoint appear, in process 0."""
        folder = self._folder
        if folder is None:
            return None
        found = _by_kind(written)
        files = [file for file, _ in found]
        tensors = tuple(entry for _, entries in found for entry in entries)
        index = index_bytes([entry for entry in tensors if entry.file.startswith("model-")])
        with_model = any(file.kind == "model" for file in files)
        if with_model:
            digest = hashlib.sha256(index).hexdigest()
            files.append(FileEntry(INDEX_NAME, len(index), digest, "index"))
        manifest = self._manifest(files, tensors, folder.generation)
        check_consistency(manifest, MANIFEST_NAME)
        folder.commit(manifest)
        if with_model:
            folder.put(INDEX_NAME, index)
        try:
            folder.retire(manifest)
        except OSError as error:
            _log.warning("saved, but files of the previous checkpoint are left: %s", error)
        return manifest

    def _manifest(
        self,
        files: Sequence[FileEntry],
        tensors: tuple[TensorEntry, ...],
        generation: int,
    ) -> Manifest:
        plan = self._share
        return Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"luma-state {__version__}",
            algorithm=plan.algorithm,
            named=plan.named,
            compression=self._compression,
            chunk_bytes=CHUNK_BYTES,
            groups=plan.groups,
            parameters=plan.parameters,
            tensors=tensors,
            files=tuple(files),
            summary=_summary(plan.parameters, tensors, files),
            generation=generation,
            extra=plan.extra,
            aliases=dict(plan.aliases),
            version=version_of(tensors, None),
        )


def _by_kind(written: Sequence[Written]) -> Written:
    """Return what all processes wrote as one process would have: kind by kind."""
    found = [item for some in written for item in some]
    kinds = list(dict.fromkeys(file.kind for file, _ in found))
    return [item for kind in kinds for item in found if item[0].kind == kind]


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


def shared_out(sizes: Sequence[int], world: int) -> list[range]:
    """Return which of some items in a row each process takes: runs of about equal size.

    An item goes to the process in whose share of the total its middle lies.
    """
    total, done, owners = max(sum(sizes), 1), 0, []
    for size in sizes:
        owners.append(min(world - 1, (2 * done + size) * world // (2 * total)))
        done += size
    ends = [sum(owner < rank for owner in owners) for rank in range(world + 1)]
    return [range(*pair) for pair in pairwise(ends)]
