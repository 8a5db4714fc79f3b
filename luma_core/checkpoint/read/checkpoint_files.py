"""The files of one opened checkpoint: read once where their tensors are wanted, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

from luma_core.checkpoint.format.compression import Delta
from luma_core.checkpoint.format.folder import reading, refuse_replaced
from luma_core.checkpoint.format.manifest import FileEntry, FileKind, Manifest, TensorEntry
from luma_core.checkpoint.read.files import (
    MISSING,
    Progress,
    content_problem,
    corrupt,
    counted,
    digest_problem,
    in_lanes,
    size_problem,
)
from luma_core.checkpoint.read.shard_reader import ShardReader
from luma_core.checkpoint.read.shard_stream import Target, read_shard
from luma_core.checkpoint.storage.store import Store, storage_errors
from luma_core.errors import CorruptCheckpointError


class CheckpointFiles:
    """The files of one checkpoint.

    Args:
        store: the folder.
        manifest: what it holds.
        lanes: how many files are read at once.
        delta: returns the delta base of a tensor's chunk; None where it is stored in full.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        lanes: int,
        delta: Callable[[TensorEntry, int], Delta | None],
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._lanes = lanes
        self._delta = delta
        self._readers: dict[str, ShardReader] = {}

    def reader(self, file: str) -> ShardReader:
        """Return what reads single tensors of a shard."""
        if file not in self._readers:
            entry, tensors = self._shards[file]
            self._readers[file] = ShardReader(
                self._store,
                entry,
                tensors,
                chunk_bytes=self._manifest.chunk_bytes,
                generation=self._manifest.generation,
                delta=self._delta,
            )
        return self._readers[file]

    @cached_property
    def _shards(self) -> dict[str, tuple[FileEntry, list[TensorEntry]]]:
        shards: dict[str, tuple[FileEntry, list[TensorEntry]]] = {
            file.name: (file, []) for file in self._manifest.files_of("optimizer", "model", "extra")
        }
        for entry in self._manifest.tensors:
            shards[entry.file][1].append(entry)
        return shards

    def read(
        self,
        kinds: Sequence[FileKind],
        check: Sequence[FileKind],
        *,
        target: Target,
        progress: Progress | None,
    ) -> None:
        """Check files of some kinds, and read those of others once: see `Checkpoint.read_checked`.

        Args:
            kinds: of files whose tensors are wanted.
            check: kinds of files that are only checked, first.
            target: takes the tensors.
            progress: called with bytes done and in total.
        """
        wanted, others = (list(self._manifest.files_of(*some)) for some in (kinds, check))
        tick = counted(sum(file.bytes for file in (*others, *wanted)), progress)
        tick(0)
        self._refuse_problems(others, tick)
        read_file = partial(self._read_file, tick=tick, target=target)
        for _ in in_lanes(self._lanes, read_file, wanted):
            pass

    def _refuse_problems(self, files: Sequence[FileEntry], tick: Callable[[int], None]) -> None:
        for file, problem in self.problems(files, tick, again=True):
            if problem is not None and not (file.kind == "index" and problem is MISSING):
                raise corrupt(self._store.url, file, problem)

    def _read_file(self, file: FileEntry, tick: Callable[[int], None], target: Target) -> None:
        with reading(self._store, self._manifest, file.name):
            problem = size_problem(self._store, file)
            if problem is None:
                sha256 = read_shard(
                    self._store,
                    file.name,
                    self._shards[file.name][1],
                    header=self.reader(file.name).header,
                    chunk_bytes=self._manifest.chunk_bytes,
                    tick=tick,
                    target=target,
                    delta=self._delta,
                )
                problem = digest_problem(file, sha256)
            if problem is not None:
                raise corrupt(self._store.url, file, problem)

    def problems(
        self, files: Sequence[FileEntry], tick: Callable[[int], None], *, again: bool
    ) -> Iterator[tuple[FileEntry, str | None]]:
        """Check files, several at once; yield each with what `content_problem` says of it."""
        check = partial(self._file_problem, tick=tick, again=again)
        yield from zip(files, in_lanes(self._lanes, check, files), strict=True)

    def _file_problem(
        self, file: FileEntry, tick: Callable[[int], None], *, again: bool
    ) -> str | None:
        """Return what is wrong with a file, `MISSING` where it is not there, or None."""
        place = f"{self._store.url}/{file.name}"
        with storage_errors(place):
            problem = content_problem(self._store, file, tick, again=again)
            if problem is None and file.kind != "index":
                try:
                    self.reader(file.name)
                except CorruptCheckpointError as error:
                    problem = error.message.removeprefix(f"{place}: ").rstrip(".")
            if problem is not None:
                refuse_replaced(self._store, self._manifest)
        return problem
