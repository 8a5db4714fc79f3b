"""Saving: shards first, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import nn

from luma_core._version import __version__
from luma_core.checkpoint.format.compression import CHUNK_BYTES, COMPRESSIONS, Compression, in_order
from luma_core.checkpoint.format.consistency import check_consistency
from luma_core.checkpoint.format.dtypes import tensor_bytes
from luma_core.checkpoint.format.folder import CheckpointFolder
from luma_core.checkpoint.format.manifest import FileEntry, Manifest, Summary, TensorEntry
from luma_core.checkpoint.format.model import index_bytes
from luma_core.checkpoint.format.plan import Plan, SavableState, plan_save, refuse_sharded
from luma_core.checkpoint.format.shard import PlannedTensor, ShardWriter
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.load import check_optimizer
from luma_core.checkpoint.staging import async_executor as background
from luma_core.checkpoint.staging.async_executor import SaveHandle
from luma_core.checkpoint.staging.staged import Staging, released
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.storage.names import INDEX_NAME, MANIFEST_NAME, ShardKind, shard_name
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store, storage_errors
from luma_core.checkpoint.write.delta_base import Base, BaseChoice, chosen_base
from luma_core.errors import CheckpointNotFoundError, ConfigurationError, CorruptCheckpointError
from luma_core.state import SCALAR_STATE_BYTES

_log = logging.getLogger("luma")

MAX_SHARD_BYTES = 512 << 20
"""Default bound on the uncompressed size of a shard."""


class SaveOptions(TypedDict, total=False):
    """What `save` takes beside the place, the optimizer and ``wait``."""

    model: nn.Module | None
    extra: Any
    compression: Compression
    overwrite: bool
    max_shard_bytes: int
    max_memory_bytes: int
    progress: Progress | None
    base: Place | None


@overload
def save(
    url: Place,
    *,
    optimizer: SavableState,
    wait: Literal[True] = True,
    **options: Unpack[SaveOptions],
) -> Manifest: ...


@overload
def save(
    url: Place,
    *,
    optimizer: SavableState,
    wait: bool,
    **options: Unpack[SaveOptions],
) -> Manifest | SaveHandle: ...


def save(
    url: Place,
    *,
    optimizer: SavableState,
    model: nn.Module | None = None,
    extra: Any = None,
    compression: Compression = "zstd",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    progress: Progress | None = None,
    wait: bool = True,
    base: Place | None = None,
) -> Manifest | SaveHandle:
    """Write a checkpoint and return its manifest, or what will tell it.

    The folder holds either the checkpoint that was there before or the new one, whole, whenever the
    process is killed or the machine stops. Two savers to one folder: see
    `luma_core.checkpoint.storage.commit`.

    Saves of one process end in the order in which they began. With ``wait=False`` the caller is
    held only while weights and ``extra`` are copied, and while two such saves are still at work;
    the process does not end before they have. State is saved as it was at the call: a step copies
    what it is about to change and was not written yet, or waits for it where state is on disk.
    Whoever else changes state in place calls `before_change` first. Errors come from the handle's
    ``result()``, or else from the next save.

    Args:
        url: folder, as a path, a URL that fsspec knows (``s3://bucket/run``), or a store; created
            where it is missing.
        optimizer: whose state is saved; also takes an opened checkpoint.
        model: whose weights are saved as well, uncompressed, in the Hub's layout.
        extra: values of your own, nested at will, which come back in type and value: numbers (NaN,
            NumPy's), text, bytes, tensors, arrays, tuples, sets, dicts with any keys, and the like.
        compression: ``"zstd"`` or ``"none"``, for optimizer state and extra tensors.
        overwrite: whether to replace a checkpoint that is there.
        max_shard_bytes: uncompressed bound on a shard; a larger tensor has a shard of its own.
        max_memory_bytes: bound on what the save holds beside the state, one parameter of an opened
            checkpoint, and the copies of ``wait=False``; decides how many shards are in flight.
        progress: called with uncompressed bytes done and in total, from any thread, never from two
            at once.
        wait: whether to return only when the checkpoint is committed.
        base: an earlier checkpoint in the same folder (``run/00000010`` for ``run/00000020``).
            Chunks of the state are stored as differences to it where that takes fewer bytes; the
            new checkpoint can then be read only together with it. It may be one that an earlier
            ``wait=False`` is still saving.

    Raises:
        ConfigurationError: an option, the model or ``extra`` holds something that cannot be saved.
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False.
        CheckpointNotFoundError: there is no checkpoint at ``base``.
        CorruptCheckpointError: what is needed of ``base`` cannot be read, or changed meanwhile.
        ConcurrentSaveError: another saver is at work in the folder, or committed meanwhile.
        StateChangedError: state was changed in place, by no step, before it was written.
        StorageError: the store failed, for example a full disk. Nearly always the folder then holds
            the previous checkpoint. It holds the new one if its manifest was in place already, and
            making that durable or writing the index of the model shards failed. Either is whole,
            but its index may be missing, which is derived. Old files that cannot be removed after
            all that are no error but a warning in the log; the next save removes them.
    """
    store = open_store(url)
    run = prepared(
        store,
        optimizer=optimizer,
        model=model,
        extra=extra,
        compression=compression,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
        max_memory_bytes=max_memory_bytes,
        progress=progress,
        wait=wait,
        base=base,
    )
    return run() if wait else background.submit(run, store.url)


def prepared(
    store: Store,
    *,
    optimizer: SavableState,
    wait: bool,
    model: nn.Module | None = None,
    extra: Any = None,
    compression: Compression = "zstd",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    progress: Progress | None = None,
    base: Place | None = None,
    choice: BaseChoice | None = None,
) -> Callable[[], Manifest]:
    """Return what is left of `save` once all is planned and, unless it waits, staged.

    ``choice`` finds a base where none is given.
    """
    check_options(compression, max_shard_bytes, overwrite=overwrite)
    refuse_sharded(optimizer)
    if base is not None:
        choice = chosen_base(base, store, compression)
    budget = Budget.of(max_memory_bytes)
    check_optimizer(optimizer, hint="Save it with torch.save, or convert it with luma convert.")
    background.before_save(wait=wait)
    plan = plan_save(optimizer, model, extra, max_shard_bytes)
    again = choice is not None and not choice.required
    staging = None if wait else Staging(optimizer, again=again)
    if staging is not None:
        plan = staging.staged(plan)
    # A closure would keep the plan, and all copies with it, as long as a traceback lives.
    run = partial(run_plan, store, plan, overwrite, compression, budget, progress, choice)
    return run if staging is None else partial(released, run, staging)


def run_plan(
    store: Store,
    plan: Plan,
    overwrite: bool,
    compression: Compression,
    budget: Budget,
    progress: Progress | None,
    choice: BaseChoice | None = None,
) -> Manifest:
    """Save what was planned, as differences where a base was chosen and can be used."""

    def run(base: Base | None) -> Manifest:
        with store.exclusive() as alone:
            folder = CheckpointFolder(
                store, overwrite=overwrite, with_model="model" in plan.shards, alone=alone
            )
            return _Save(folder, plan, compression, budget, progress, base).run()

    with storage_errors(store.url):
        if choice is None or compression == "none":
            return run(None)
        try:
            found = choice.find()
            return run(None if found is None else Base(found, budget))
        except (CheckpointNotFoundError, CorruptCheckpointError) as error:
            if choice.required:
                raise
            _log.warning("saving in full, for the last checkpoint is no base: %s", error)
        return run(None)


def check_options(compression: str, max_shard_bytes: int, *, overwrite: bool) -> None:
    """Refuse values that cannot work.

    Raises:
        ConfigurationError: naming the option, its value and what it must be.
    """
    if compression not in COMPRESSIONS:
        raise ConfigurationError(
            f"compression={compression!r} must be one of {', '.join(map(repr, COMPRESSIONS))}."
        )
    if isinstance(max_shard_bytes, bool) or not (
        isinstance(max_shard_bytes, int) and max_shard_bytes > 0
    ):
        raise ConfigurationError(f"max_shard_bytes={max_shard_bytes!r} must be a positive integer.")
    if not isinstance(overwrite, bool):
        raise ConfigurationError(f"overwrite={overwrite!r} must be True or False.")


class _Shard(NamedTuple):
    """A shard to be written."""

    name: str
    kind: ShardKind
    tensors: Sequence[PlannedTensor]


class _StoppedError(Exception):
    """Ends the work on other shards after one failed."""


class _Save:
    """One save into one folder."""

    def __init__(
        self,
        folder: CheckpointFolder,
        plan: Plan,
        compression: Compression,
        budget: Budget,
        progress: Progress | None,
        base: Base | None,
    ) -> None:
        self._folder = folder
        self._base = base
        self._plan = plan
        self._compression = compression
        self._budget = budget
        self._progress = progress
        self._begun: list[str] = []
        self._stopped = threading.Event()
        self._cause: BaseException | None = None
        self._tick_lock = threading.Lock()
        self._done_bytes = 0
        self._total_bytes = plan.total_bytes

    def run(self) -> Manifest:
        files: list[FileEntry] = []
        tensors: list[TensorEntry] = []
        manifest: Manifest | None = None
        self._folder.clean()
        try:
            self._tick(0)
            for file, entries in self._written(self._shards()):
                files.append(file)
                tensors.extend(entries)
            index = index_bytes([t for t in tensors if t.file.startswith("model-")])
            if "model" in self._plan.shards:
                digest = hashlib.sha256(index).hexdigest()
                files.append(FileEntry(INDEX_NAME, len(index), digest, "index"))
            manifest = self._manifest(files, tensors)
            self._folder.commit(manifest)
        except BaseException:
            if manifest is None or not self._folder.holds(manifest):
                self._withdraw()
            raise
        if "model" in self._plan.shards:
            self._folder.put(INDEX_NAME, index)
        self._retire(manifest)
        return manifest

    def _retire(self, manifest: Manifest) -> None:
        try:
            self._folder.retire(manifest)
        except OSError as error:
            _log.warning("saved, but files of the previous checkpoint are left: %s", error)

    def _withdraw(self) -> None:
        for name in self._begun:
            with contextlib.suppress(OSError):
                self._folder.store.delete(name)

    def _tick(self, raw_bytes: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._tick_lock:
            self._done_bytes += raw_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)

    def _shards(self) -> list[_Shard]:
        generation = self._folder.generation
        return [
            _Shard(shard_name(kind, generation, index, len(shards)), kind, shard)
            for kind, shards in self._plan.shards.items()
            for index, shard in enumerate(shards, start=1)
        ]

    def _written(self, shards: Sequence[_Shard]) -> Iterator[tuple[FileEntry, list[TensorEntry]]]:
        """Write shards, several at once; yield what the manifest says of each, in order."""
        lanes = min(self._budget.lanes, len(shards))
        if lanes < 2:
            yield from map(self._write_shard, shards)
            return
        pool = ThreadPoolExecutor(lanes)
        try:
            yield from in_order(pool, self._write_shard, shards, waiting=lanes)
        except _StoppedError as stopped:
            raise self._cause or stopped from None
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            self._stopped.clear()

    def _write_shard(self, shard: _Shard) -> tuple[FileEntry, list[TensorEntry]]:
        writer = ShardWriter(
            self._folder.store,
            compression="none" if shard.kind == "model" else self._compression,
            chunk_bytes=CHUNK_BYTES,
            generation=self._folder.generation,
            budget=self._budget,
            tick=self._tick,
            base=self._base.reader if self._base and shard.kind == "optimizer" else None,
        )
        self._begun.append(shard.name)
        try:
            return writer.write(shard.name, shard.kind, shard.tensors)
        except BaseException as error:
            self._cause = self._cause or error
            self._stopped.set()
            raise

    def _manifest(self, files: Sequence[FileEntry], tensors: Sequence[TensorEntry]) -> Manifest:
        plan = self._plan
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"luma-state {__version__}",
            algorithm=plan.algorithm,
            named=plan.named,
            compression=self._compression,
            chunk_bytes=CHUNK_BYTES,
            groups=plan.groups,
            parameters=plan.parameters,
            tensors=tuple(tensors),
            files=tuple(files),
            summary=self._summary(files),
            generation=self._folder.generation,
            extra=plan.extra,
            aliases=dict(plan.aliases),
        )
        if self._base is not None:
            manifest = self._base.named_in(manifest)
        check_consistency(manifest, MANIFEST_NAME)
        return manifest

    def _summary(self, files: Sequence[FileEntry]) -> Summary:
        parameters = self._plan.parameters
        return Summary(
            parameters=len(parameters),
            elements=sum(tensor_bytes(torch.uint8, entry.shape) for entry in parameters),
            state_bytes=self._state_bytes(),
            stored_bytes=sum(file.bytes for file in files if file.kind == "optimizer"),
            step=max((entry.step for entry in parameters), default=0),
        )

    def _state_bytes(self) -> int:
        shards = self._plan.shards.get("optimizer", [])
        with_state = sum(bool(entry.codecs) for entry in self._plan.parameters)
        fields = sum(tensor.nbytes for shard in shards for tensor in shard)
        return fields + SCALAR_STATE_BYTES * with_state
