"""One save by any number of ranks: each writes its own shards, the coordinator the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from luma_core._version import __version__
from luma_core.checkpoint.format.compression import CHUNK_BYTES
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
from luma_core.checkpoint.format.shard import ShardWriter
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.names import INDEX_NAME, MANIFEST_NAME, ShardKind, shard_name
from luma_core.checkpoint.storage.store import Store, storage_errors
from luma_core.checkpoint.write.coordination import Ranks
from luma_core.checkpoint.write.delta_base import BaseChoice, DeltaBase, open_base
from luma_core.checkpoint.write.lanes import Shard, ShardLanes, WrittenShard
from luma_core.checkpoint.write.options import SaveOptions
from luma_core.errors import CheckpointNotFoundError, CorruptCheckpointError

_log = logging.getLogger("luma")


def do_nothing() -> None:
    """Do nothing, where nothing is to be done before a save."""


class SaveRun:
    """One rank's work on one save, once all is planned and staged; all ranks run it together.

    Args:
        store: the folder, which all ranks reach.
        plan: what this rank writes; of all but the shards, what the coordinator has counts.
        ranks: those that save together.
        options: of the save; ``base`` is in ``choice``.
        begin: called on the coordinator before anything is looked at or written.
        choice: of the delta base, where there may be one; that of the coordinator counts.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        ranks: Ranks,
        options: SaveOptions,
        *,
        begin: Callable[[], None] = do_nothing,
        choice: BaseChoice | None = None,
    ) -> None:
        self._store = store
        self._plan = plan
        self._ranks = ranks
        self._options = options
        self._budget = Budget.of(options.max_memory_bytes)
        self._begin = begin
        self._choice = choice
        self._folder: CheckpointFolder | None = None

    def run(self) -> Manifest:
        """Write, and return the manifest once the coordinator has committed it.

        The save is full where the base that was chosen cannot be used and is not required.

        Raises:
            CheckpointError: as `luma_core.checkpoint.save` says, on all ranks.
        """
        with storage_errors(self._store.url):
            name, required = self._ranks.run_on_coordinator(self._find_base)
            if name is None:
                return self._write_and_commit(None)
            try:
                base = open_base(self._store.beside(name), self._budget, self._ranks)
                return self._write_and_commit(base)
            except (CheckpointNotFoundError, CorruptCheckpointError) as error:
                if required:
                    raise
                if self._ranks.is_coordinator:
                    _log.warning("saving in full, for the last checkpoint is no base: %s", error)
            return self._write_and_commit(None)

    def _find_base(self) -> tuple[str | None, bool]:
        """Return the delta base's folder, where there is one, and whether it must be used."""
        self._begin()
        if self._choice is None or self._options.compression == "none":
            return None, False
        return self._choice.find(), self._choice.required

    def _write_and_commit(self, base: DeltaBase | None) -> Manifest:
        ranks, plan = self._ranks, self._plan
        kinds = ranks.all_gather([kind for kind, some in plan.shards.items() for _ in some])
        with ExitStack() as stack:
            with_model = any("model" in some for some in kinds)
            generation = ranks.run_on_coordinator(partial(self._open_folder, stack, with_model))
            lanes = ShardLanes(
                self._store,
                partial(self._writer, generation, base),
                lanes=self._budget.lanes,
                progress=self._options.progress,
                total_bytes=plan.total_bytes,
            )
            shards = _named_shards(plan, generation, kinds, ranks.rank)
            written = ranks.run_on_all_ranks(partial(lanes.write, shards))
            return ranks.run_on_coordinator(partial(self._commit, written, base))

    def _open_folder(self, stack: ExitStack, with_model: bool) -> int:
        """Keep other savers out of the folder and return the generation."""
        alone = stack.enter_context(self._store.exclusive())
        self._folder = CheckpointFolder(
            self._store, overwrite=self._options.overwrite, with_model=with_model, alone=alone
        )
        self._folder.clean()
        return self._folder.generation

    def _writer(
        self,
        generation: int,
        base: DeltaBase | None,
        kind: ShardKind,
        tick: Callable[[int], None],
    ) -> ShardWriter:
        return ShardWriter(
            self._store,
            compression="none" if kind == "model" else self._options.compression,
            chunk_bytes=CHUNK_BYTES,
            generation=generation,
            budget=self._budget,
            tick=tick,
            base=base.reader if base is not None and kind == "optimizer" else None,
        )

    def _commit(
        self, written: Sequence[Sequence[WrittenShard]], base: DeltaBase | None
    ) -> Manifest:
        """Make the checkpoint appear."""
        folder = self._folder
        assert folder is not None
        shards = _by_kind(written)
        manifest: Manifest | None = None
        try:
            files = [file for file, _ in shards]
            tensors = tuple(entry for _, entries in shards for entry in entries)
            index = index_bytes([entry for entry in tensors if entry.file.startswith("model-")])
            with_model = any(file.kind == "model" for file in files)
            if with_model:
                digest = hashlib.sha256(index).hexdigest()
                files.append(FileEntry(INDEX_NAME, len(index), digest, "index"))
            manifest = self._manifest(files, tensors, base)
            folder.commit(manifest)
        except BaseException:
            if manifest is None or not folder.holds(manifest):
                _withdraw(self._store, (file.name for file, _ in shards))
            raise
        if with_model:
            folder.put(INDEX_NAME, index)
        try:
            folder.retire(manifest)
        except OSError as error:
            _log.warning("saved, but files of the previous checkpoint are left: %s", error)
        return manifest

    def _manifest(
        self, files: Sequence[FileEntry], tensors: tuple[TensorEntry, ...], base: DeltaBase | None
    ) -> Manifest:
        plan, folder = self._plan, self._folder
        assert folder is not None
        entry = base.entry_for(tensors) if base is not None else None
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"luma-state {__version__}",
            algorithm=plan.algorithm,
            named=plan.named,
            compression=self._options.compression,
            chunk_bytes=CHUNK_BYTES,
            groups=plan.groups,
            parameters=plan.parameters,
            tensors=tensors,
            files=tuple(files),
            summary=_summary(plan.parameters, tensors, files),
            generation=folder.generation,
            extra=plan.extra,
            aliases=dict(plan.aliases),
            version=version_of(tensors, entry, plan.parameters),
            base=entry,
        )
        check_consistency(manifest, MANIFEST_NAME)
        return manifest


def _named_shards(
    plan: Plan, generation: int, kinds: Sequence[Sequence[ShardKind]], rank: int
) -> list[Shard]:
    """Return the shards of one rank, numbered after those of the ranks before it.

    Args:
        plan: of this rank.
        generation: of the checkpoint.
        kinds: the kind of each shard, of all ranks.
        rank: of this process.
    """
    done = [kind for some in kinds[:rank] for kind in some]
    everywhere = [kind for some in kinds for kind in some]
    shards = []
    for kind, some in plan.shards.items():
        first = done.count(kind) + 1
        for number, tensors in enumerate(some, first):
            name = shard_name(kind, generation, number, everywhere.count(kind))
            shards.append(Shard(name, kind, tensors))
    return shards


def _by_kind(written: Sequence[Sequence[WrittenShard]]) -> list[WrittenShard]:
    """Return all ranks' shards in the order in which one rank would have written them."""
    found = [shard for some in written for shard in some]
    kinds = list(dict.fromkeys(file.kind for file, _ in found))
    return [shard for kind in kinds for shard in found if shard[0].kind == kind]


def _withdraw(store: Store, names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            store.delete(name)


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
        state_bytes=fields + sum(entry.counter_bytes for entry in parameters),
        stored_bytes=sum(file.bytes for file in files if file.kind == "optimizer"),
        step=max((entry.step for entry in parameters), default=0),
    )
