"""Opening a checkpoint: its manifest first, tensors when they are used."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cached_property
from typing import Any, Self, TypeVar

from torch import Tensor

from luma_core.checkpoint.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.compression import in_order
from luma_core.checkpoint.consistency import state_fields, tensor_name
from luma_core.checkpoint.extra import restore_extra
from luma_core.checkpoint.folder import read_manifest
from luma_core.checkpoint.lazy import LazyFields
from luma_core.checkpoint.manifest import FileEntry, FileKind, ParameterEntry, TensorEntry
from luma_core.checkpoint.names import MANIFEST_NAME
from luma_core.checkpoint.rows import field_rows, moment_rows
from luma_core.checkpoint.shard import ShardReader
from luma_core.checkpoint.store import Place, Store, open_store, storage_errors
from luma_core.checkpoint.whole import read_shard
from luma_core.codecs import codec_from_dict
from luma_core.errors import CorruptCheckpointError
from luma_core.state import GroupOptions, ParameterState, field_key

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_PIECE_BYTES = 4 << 20
_READ_AHEAD = 2

T = TypeVar("T")


def counted(total_bytes: int, progress: Progress | None) -> Callable[[int], None]:
    """Return what adds up the bytes it is told of, by any thread, and tells ``progress``."""
    done_bytes = 0
    lock = threading.Lock()

    def tick(count: int) -> None:
        nonlocal done_bytes
        with lock:
            done_bytes += count
            if progress is not None:
                progress(done_bytes, total_bytes)

    return tick


class Checkpoint:
    """A checkpoint opened for reading: a state source that reads each tensor when it is used.

    Chunk checksums are checked on every read; `verify` also checks whole files.

    Attributes:
        url: the folder.
        manifest: what it holds.
    """

    def __init__(self, store: Store, *, budget: Budget | None = None) -> None:
        self._store = store
        self._budget = budget or Budget.of(MAX_MEMORY_BYTES)
        self.url = store.url
        with storage_errors(store.url):
            self.manifest = read_manifest(store)
        self._readers: dict[str, ShardReader] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._readers.clear()

    @property
    def algorithm(self) -> str:
        """Name of the optimizer's algorithm."""
        return self.manifest.algorithm

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        return self.manifest.named

    def parameter_names(self) -> list[str]:
        """Return the names of all parameters, group by group."""
        return [entry.name for entry in self.manifest.parameters]

    def group_options(self) -> list[GroupOptions]:
        """Return the options of each parameter group."""
        return [deepcopy(group) for group in self.manifest.groups]

    def parameter_state(self, name: str) -> ParameterState:
        """Return the state of one parameter; its fields are read when they are first used.

        Raises:
            KeyError: no parameter has that name.
        """
        return self._state(self._parameters[name], keep=True)

    def states(self, read: Callable[[str], Tensor] | None = None) -> list[ParameterState]:
        """Return the state of every parameter; each use of a field reads it anew.

        Args:
            read: returns a stored tensor by name that is nobody else's; from the store by default.
        """
        return [self._state(entry, keep=False, read=read) for entry in self.manifest.parameters]

    def extra(self) -> Any:
        """Return the values that were saved as ``extra``; None where there were none."""
        entries = {entry.name: entry for entry in self.manifest.tensors_of("extra")}
        return restore_extra(self.manifest.extra, lambda name: self.read_tensor(entries[name]))

    def model_tensors(self) -> list[TensorEntry]:
        """Return the entries of the stored model weights, for `read_tensor`."""
        return list(self.manifest.tensors_of("model"))

    def read(
        self,
        parameter: str,
        moment: str,
        *,
        field: str | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """Return a moment of one parameter, or some rows of it, as float32 on the CPU.

        Only the chunks that hold those rows are read.

        Args:
            parameter: its name.
            moment: ``"exp_avg"`` or ``"exp_avg_sq"``.
            field: returns this stored field as it is (``"codes"``, ``"exponent"``, ``"value"``)
                instead of the decoded moment.
            rows: indices of dimension 0 of what is returned, in steps of one; all by default.

        Raises:
            KeyError: there is no such parameter, moment or field.
            ConfigurationError: ``rows`` has steps, or there is no dimension 0.
            CorruptCheckpointError: a shard is missing or not what was written.
            StorageError: the store failed.
        """
        entry = self._parameters[parameter]
        codec = codec_from_dict(entry.codecs[moment])

        def elements(key: str, start: int, stop: int) -> Tensor:
            stored = self._fields[tensor_name(parameter, field_key(moment, key))]
            with storage_errors(f"{self.url}/{stored.file}"):
                return self._reader(stored.file).read_elements(stored, start, stop)

        if field is not None:
            shape = codec.layout(entry.shape)[field].shape
            return field_rows(shape, rows, lambda start, stop: elements(field, start, stop))
        return moment_rows(codec, entry.shape, rows, elements)

    def read_tensor(self, entry: TensorEntry) -> Tensor:
        """Return one stored tensor on the CPU.

        Raises:
            CorruptCheckpointError: its shard is missing or not what was written.
            StorageError: the store failed.
        """
        with storage_errors(f"{self.url}/{entry.file}"):
            return self._reader(entry.file).read(entry)

    @cached_property
    def _parameters(self) -> dict[str, ParameterEntry]:
        return {entry.name: entry for entry in self.manifest.parameters}

    @cached_property
    def _fields(self) -> dict[str, TensorEntry]:
        return {entry.name: entry for entry in self.manifest.tensors_of("optimizer")}

    @cached_property
    def _shards(self) -> dict[str, tuple[FileEntry, list[TensorEntry]]]:
        shards: dict[str, tuple[FileEntry, list[TensorEntry]]] = {
            file.name: (file, []) for file in self.manifest.files_of("optimizer", "model", "extra")
        }
        for entry in self.manifest.tensors:
            shards[entry.file][1].append(entry)
        return shards

    def _reader(self, file: str) -> ShardReader:
        if file not in self._readers:
            entry, tensors = self._shards[file]
            self._readers[file] = ShardReader(
                self._store,
                entry,
                tensors,
                chunk_bytes=self.manifest.chunk_bytes,
                generation=self.manifest.generation,
            )
        return self._readers[file]

    def _state(
        self, entry: ParameterEntry, *, keep: bool, read: Callable[[str], Tensor] | None = None
    ) -> ParameterState:
        keys = [key for key, _, _ in state_fields(entry)]
        stored = read or (lambda name: self.read_tensor(self._fields[name]))

        return ParameterState(
            name=entry.name,
            shape=entry.shape,
            dtype=entry.dtype,
            group=entry.group,
            step=entry.step,
            noise_key=entry.noise_key,
            nonfinite=entry.nonfinite,
            codecs={moment: codec_from_dict(config) for moment, config in entry.codecs.items()},
            fields=LazyFields(
                keys, lambda key: stored(tensor_name(entry.name, key)), keep=keep, fresh=True
            ),
        )

    def read_checked(
        self,
        read: Sequence[FileKind],
        check: Sequence[FileKind],
        *,
        put: Callable[[TensorEntry, Tensor], None],
        progress: Progress | None = None,
    ) -> None:
        """Check size, SHA-256 and header of the files of some kinds, and read those of others once.

        What is read is checked as well, but only when this returns: until then, what ``put``
        received may be wrong.

        Args:
            read: kinds of files whose tensors are wanted.
            check: kinds of files that are only checked, first.
            put: called with each tensor, on the CPU, by any thread.
            progress: called with bytes done and in total.

        Raises:
            CorruptCheckpointError: the first file that is missing or not what was written.
            StorageError: the store failed.
        """
        wanted, others = (list(self.manifest.files_of(*kinds)) for kinds in (read, check))
        tick = counted(sum(file.bytes for file in (*others, *wanted)), progress)
        tick(0)
        self._refuse_problems(others, tick)
        for _ in self._in_lanes(lambda file: self._read_file(file, tick, put), wanted):
            pass

    def _refuse_problems(self, files: Sequence[FileEntry], tick: Callable[[int], None]) -> None:
        for file, problem in self.file_problems(files, tick):
            if problem is not None and not (file.kind == "index" and problem is MISSING):
                raise self._corrupt(file, problem)

    def _corrupt(self, file: FileEntry, problem: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self.url}/{file.name}: {problem}.",
            hint="Restore the file from a copy, or load an older checkpoint.",
        )

    def _read_file(
        self,
        file: FileEntry,
        tick: Callable[[int], None],
        put: Callable[[TensorEntry, Tensor], None],
    ) -> None:
        with storage_errors(f"{self.url}/{file.name}"):
            problem = self._size_problem(file)
            if problem is None:
                sha256 = read_shard(
                    self._store,
                    file.name,
                    self._shards[file.name][1],
                    header=self._reader(file.name).header,
                    chunk_bytes=self.manifest.chunk_bytes,
                    tick=tick,
                    ended=put,
                )
                problem = _digest_problem(file, sha256)
        if problem is not None:
            raise self._corrupt(file, problem)

    def _in_lanes(self, work: Callable[[FileEntry], T], files: Sequence[FileEntry]) -> Iterator[T]:
        """Yield the results of ``work``, done with several files at once, in order."""
        lanes = self._budget.lanes
        with ThreadPoolExecutor(lanes) as pool:
            try:
                yield from in_order(pool, work, files, waiting=lanes)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def file_problems(
        self, files: Sequence[FileEntry], tick: Callable[[int], None]
    ) -> Iterator[tuple[FileEntry, str | None]]:
        """Check files, several at once; yield each with what is wrong, as `file_problem` says."""
        found = self._in_lanes(lambda file: self.file_problem(file, tick), files)
        yield from zip(files, found, strict=True)

    def file_problem(self, file: FileEntry, tick: Callable[[int], None]) -> str | None:
        """Return what is wrong with a file, `MISSING` where it is not there, or None."""
        with storage_errors(f"{self.url}/{file.name}"):
            if (problem := self._size_problem(file)) is not None:
                return problem
            digest = hashlib.sha256()
            for piece in self._pieces(file):
                digest.update(piece)
                tick(len(piece))
            if (problem := _digest_problem(file, digest.hexdigest())) is not None:
                return problem
        if file.kind != "index":
            try:
                self._reader(file.name)
            except CorruptCheckpointError as error:
                return error.message.removeprefix(f"{self.url}/{file.name}: ").rstrip(".")
        return None

    def _size_problem(self, file: FileEntry) -> str | None:
        size = self._store.size(file.name)
        if size is None:
            return MISSING
        return None if size == file.bytes else f"the file has {size} bytes, expected {file.bytes}"

    def _pieces(self, file: FileEntry) -> Iterator[bytes]:
        """Yield a file's bytes, read ahead of their use."""

        def read(start: int) -> bytes:
            stop = min(file.bytes, start + _PIECE_BYTES)
            return self._store.read_range(file.name, start, stop)

        starts = range(0, file.bytes, _PIECE_BYTES)
        if len(starts) < 2:
            yield from map(read, starts)
            return
        with ThreadPoolExecutor(_READ_AHEAD) as pool:
            yield from in_order(pool, read, starts, waiting=_READ_AHEAD)


MISSING = "the file is missing"


def _digest_problem(file: FileEntry, sha256: str) -> str | None:
    return (
        None if sha256 == file.sha256 else f"the file's SHA-256 is {sha256}, expected {file.sha256}"
    )


def open(url: Place, *, max_memory_bytes: int = MAX_MEMORY_BYTES) -> Checkpoint:
    """Open a checkpoint for reading; only its manifest is read at once.

    Args:
        url: folder of the checkpoint, as `save` takes it.
        max_memory_bytes: bound on what checking files holds.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: its manifest cannot be trusted.
        UnsupportedVersionError: a newer version wrote it.
        ConfigurationError: ``max_memory_bytes`` is too small.
        StorageError: the store failed.
    """
    return Checkpoint(open_store(url), budget=Budget.of(max_memory_bytes))


def exists(url: Place) -> bool:
    """Return whether there is a checkpoint, whole or damaged."""
    store = open_store(url)
    with storage_errors(store.url):
        return store.size(MANIFEST_NAME) is not None
