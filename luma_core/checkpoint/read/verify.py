"""Checking a whole checkpoint without loading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from luma_core.checkpoint.format.manifest import FileEntry
from luma_core.checkpoint.read.files import MISSING, counted
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store, storage_errors
from luma_core.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    LumaError,
    StorageError,
)


@dataclass(frozen=True)
class Problem:
    """Something found in a checkpoint.

    Attributes:
        file: name of the file; with that of its folder, ``00000010/luma.json``, where it is one of
            a checkpoint that this one builds on.
        message: what is wrong with it.
    """

    file: str
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        problems: what makes the checkpoint unusable in part or whole; empty where all is well.
        notes: what is amiss and does no harm: a missing index, which is derived.
        files: number of files checked, with the manifest; a missing file is not one.
        bytes: their size, as found.
    """

    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    files: int
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.problems


def verify(
    url: Place,
    *,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check every file of a checkpoint: size, SHA-256, header, and the manifest's own consistency.

    Of the checkpoints that it holds differences to, manifests and optimizer shards are checked
    likewise.

    Args:
        url: folder of the checkpoint, as `save` takes it.
        max_memory_bytes: bound on what verifying holds; decides how many files are read at once.
        progress: called with bytes done and in total.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CheckpointReplacedError: it was replaced or removed meanwhile.
        ConfigurationError: ``max_memory_bytes`` is too small.
        StorageError: the store failed.
    """
    budget = Budget.of(max_memory_bytes)
    store = open_store(url)
    try:
        checkpoint = Checkpoint(store, budget=budget)
    except (CheckpointNotFoundError, StorageError):
        raise
    except LumaError as error:
        problem = Problem(MANIFEST_NAME, str(error))
        return VerifyReport((problem,), (), 1, _size(store, MANIFEST_NAME))
    problems: list[Problem] = []
    notes: list[Problem] = []
    chain = _chain(checkpoint, problems)
    size = sum(len(member.manifest.to_bytes()) for member in chain)
    wanted = [_files(member, own=member is checkpoint) for member in chain]
    tick = counted(size + sum(file.bytes for files in wanted for file in files), progress)
    tick(size)
    count = len(chain)
    for member, files in zip(chain, wanted, strict=True):
        folder = "" if member is checkpoint else f"{member.store.place[1]}/"
        for file, found in member.file_problems(files, tick):
            if found is not MISSING:
                count += 1
                size += _size(member.store, file.name)
            if found is not None:
                harmless = found is MISSING and file.kind == "index"
                (notes if harmless else problems).append(Problem(f"{folder}{file.name}", found))
    return VerifyReport(tuple(problems), tuple(notes), count, size)


def _chain(checkpoint: Checkpoint, problems: list[Problem]) -> list[Checkpoint]:
    """Return a checkpoint and those that it builds on, as far as these can be opened."""
    found = [checkpoint]
    try:
        while (base := found[-1].base()) is not None:
            found.append(base)
    except CorruptCheckpointError as error:
        problems.append(Problem(MANIFEST_NAME, str(error)))
    return found


def _files(member: Checkpoint, *, own: bool) -> list[FileEntry]:
    return list(member.manifest.files if own else member.manifest.files_of("optimizer"))


def _size(store: Store, name: str) -> int:
    with storage_errors(f"{store.url}/{name}"):
        return store.size(name) or 0
