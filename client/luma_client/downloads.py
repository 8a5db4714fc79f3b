"""Whole checkpoints from the server into any store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from luma_client.effects import Buffers, Steps, Work, in_lanes
from luma_client.exchange import Endpoint
from luma_client.operation import Operation
from luma_client.queries import manifest_of
from luma_client.reading import read_into
from luma_client.uploads import LANES, Progress
from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format import MANIFEST_NAME, FileEntry, parse_manifest
from luma_core.checkpoint.format.folder import read_manifest
from luma_core.checkpoint.format.manifest import BaseEntry
from luma_core.checkpoint.storage.store import ABSENT, ObjectWriter, Store, Version
from luma_core.errors import (
    BrokenChainError,
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
    UnknownCodecError,
)

PART_BYTES = 8 << 20
"""What one request asks for; `LANES` of them are held at a time."""


class Downloads:
    """Mixed into a runner.

    Attributes:
        endpoint: the server.
    """

    endpoint: Endpoint

    @Operation
    def download(
        self,
        run: str,
        step: str,
        destination: Store,
        *,
        overwrite: bool = False,
        bases: bool = True,
        progress: Progress | None = None,
    ) -> Steps[Manifest]:
        """Bring a checkpoint into a store, every file's SHA-256 checked, its manifest last.

        One that holds differences to others can be read only beside them, so those are brought
        first, each into the folder beside the destination that the next one's manifest names.

        Files that are there already and as the manifest says are not fetched again, so a call that
        was interrupted goes on where it was. Another checkpoint there is replaced only when all has
        arrived.

        Args:
            run: name of the run.
            step: name of the step.
            destination: the folder; other files in it are left alone.
            overwrite: whether to replace another checkpoint that is there; never one beside it.
            bases: whether to bring what the checkpoint holds differences to as well.
            progress: called with bytes that are there, and in total, from one thread at a time.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointExistsError: another checkpoint is there and ``overwrite`` is False.
            ConfigurationError: another checkpoint, or this one, would be where a base belongs.
            BrokenChainError: a base is not on the server, or is not the one that is meant.
            ConcurrentSaveError: somebody else saved there meanwhile.
            CorruptCheckpointError: what arrives is not what the manifest says.
            ServiceError: the server does not answer, or with an error.
            StorageError: ``destination`` failed.
        """
        reply = yield from manifest_of(self.endpoint, run, step)
        manifest = parse_manifest(reply.content, where=reply.url)
        chain = (yield from bases_of(self.endpoint, run, manifest)) if bases else []
        stores: list[Store] = yield Work(partial(_all_beside, destination, chain))
        everything = (manifest, *(one for _, one in chain))
        told = _Told(sum(file.bytes for one in everything for file in one.files), progress)
        # The last in the chain comes first, so that what is there can be read.
        for (base, one), store in zip(reversed(chain), reversed(stores), strict=True):
            work = _Download(self.endpoint, (run, base.folder), store, one, told)
            try:
                yield from work.run_through(overwrite=False)
            except CheckpointExistsError as error:
                raise _occupied(destination, base.folder) from error
        work = _Download(self.endpoint, (run, step), destination, manifest, told)
        yield from work.run_through(overwrite=overwrite)
        return manifest


def bases_of(
    endpoint: Endpoint, run: str, manifest: Manifest
) -> Steps[list[tuple[BaseEntry, Manifest]]]:
    """Return what a checkpoint holds differences to, and what that does, to the full one.

    Raises:
        BrokenChainError: one is missing, or another one than was meant.
        ServiceError: the server does not answer, or with an error.
    """
    found: list[tuple[BaseEntry, Manifest]] = []
    base = manifest.base
    while base is not None:
        try:
            reply = yield from manifest_of(endpoint, run, base.folder)
        except CheckpointNotFoundError as error:
            raise _broken(run, base, "is not on the server") from error
        one = parse_manifest(reply.content, where=reply.url)
        if (one.digest, one.chain) != (base.digest, base.chain):
            raise _broken(run, base, f"has changed there: its digest is {one.digest}")
        found.append((base, one))
        base = one.base
    return found


def _broken(run: str, base: BaseEntry, what: str) -> BrokenChainError:
    return BrokenChainError(
        f"the checkpoint holds differences to {run}/{base.folder}, which {what}; expected "
        f"{base.digest}.",
        hint="Push that one again, or bring another checkpoint.",
    )


def _all_beside(destination: Store, chain: list[tuple[BaseEntry, Manifest]]) -> list[Store]:
    names = [base.folder for base, _ in chain]
    if names and destination.place[1] in names:
        raise _occupied(destination, destination.place[1])
    return [destination.beside(name) for name in names]


def _occupied(destination: Store, folder: str) -> ConfigurationError:
    return ConfigurationError(
        f"destination={destination.url!r}: the checkpoint holds differences to one that must lie "
        f"beside it as {folder!r}, and another checkpoint has that place.",
        hint="Choose a destination in another folder, or `luma flatten` the checkpoint to it.",
    )


class _Told:
    """Tells how far several downloads are, together."""

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress

    def add(self, count: int) -> None:
        self._done_bytes += count
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)


class _FileRange(NamedTuple):
    """A range of a file."""

    file: FileEntry
    start: int
    size: int


class _Download:
    """One download."""

    def __init__(
        self,
        endpoint: Endpoint,
        place: tuple[str, str],
        store: Store,
        manifest: Manifest,
        told: _Told,
    ) -> None:
        self._endpoint = endpoint
        self._place = place
        self._store = store
        self._manifest = manifest
        self._told = told
        self._in_use: set[str] = set()
        self._writer: ObjectWriter | None = None
        self._digest = hashlib.sha256()
        self._waiting: list[ObjectWriter] = []
        self._buffers = Buffers(PART_BYTES)

    def run_through(self, *, overwrite: bool) -> Steps[None]:
        """Fetch what is missing, then make it the folder's checkpoint."""
        expected: Version = yield Work(partial(self._prepare, overwrite))
        wanted: list[FileEntry] = yield Work(self._missing)
        try:
            works = (partial(self._fetch, part) for file in wanted for part in _parts(file))
            yield from in_lanes(works, self._keep, lanes=LANES)
            yield Work(partial(self._finish, expected))
        finally:
            for writer in (self._writer, *self._waiting):
                if writer is not None:
                    writer.discard()

    def _prepare(self, overwrite: bool) -> Version:
        expected = self._store.version(MANIFEST_NAME)
        if expected == ABSENT:
            return expected
        try:
            present = read_manifest(self._store)
        except (CheckpointError, UnknownCodecError):
            present = None
        if present is not None and present.digest == self._manifest.digest:
            return expected
        if not overwrite:
            raise CheckpointExistsError(
                f"{self._store.url}: there is another checkpoint already.",
                hint="Choose another folder, or allow it to be overwritten.",
            )
        names = self._store.names() if present is None else [f.name for f in present.files]
        self._in_use = set(names)
        return expected

    def _missing(self) -> list[FileEntry]:
        return [file for file in self._manifest.files if not self._is_there(file)]

    def _is_there(self, file: FileEntry) -> bool:
        if self._store.size(file.name) != file.bytes:
            return False
        digest = hashlib.sha256()
        for part in _parts(file):
            digest.update(self._store.read_range(file.name, part.start, part.start + part.size))
        if digest.hexdigest() != file.sha256:
            return False
        self._told.add(file.bytes)
        return True

    def _fetch(self, part: _FileRange) -> Steps[tuple[_FileRange, memoryview]]:
        out = self._buffers.take(part.size)
        count = yield from read_into(self._endpoint, *self._place, part.file.name, part.start, out)
        if count != part.size:
            raise self._corrupt(part.file, f"it ends at byte {part.start + count}")
        return part, out

    def _keep(self, fetched: tuple[_FileRange, memoryview]) -> Steps[None]:
        yield Work(partial(self._write, *fetched))
        self._buffers.give_back(fetched[1])

    def _write(self, part: _FileRange, data: memoryview) -> None:
        if part.start == 0:
            self._writer = self._store.write(part.file.name)
            self._digest = hashlib.sha256()
        writer = self._writer
        assert writer is not None
        writer.write(data)
        self._digest.update(data)
        self._told.add(part.size)
        if part.start + part.size < part.file.bytes:
            return
        if self._digest.hexdigest() != part.file.sha256:
            raise self._corrupt(part.file, f"its SHA-256 is {self._digest.hexdigest()}")
        # A file of the checkpoint that is still there is replaced when all has arrived.
        if part.file.name in self._in_use:
            self._waiting.append(writer)
        else:
            writer.commit()
        self._writer = None

    def _finish(self, expected: Version) -> None:
        if self._waiting:
            self._store.delete(MANIFEST_NAME)
            expected = ABSENT
            for writer in self._waiting:
                writer.commit()
        with self._store.write(MANIFEST_NAME, expected=expected) as out:
            out.write(self._manifest.to_bytes())
            out.commit()
        for name in self._in_use - {file.name for file in self._manifest.files}:
            self._store.delete(name)

    def _corrupt(self, file: FileEntry, what: str) -> CorruptCheckpointError:
        url = self._endpoint.url("v1", "checkpoints", *self._place, "files", file.name)
        return CorruptCheckpointError(
            f"{url}: what arrived is not the file that was written: {what}, expected "
            f"{file.bytes} bytes and {file.sha256}.",
            hint="Try again; if it stays so, the file on the server is damaged.",
        )


def _parts(file: FileEntry) -> Iterator[_FileRange]:
    """Yield the parts of a file; an empty one has one."""
    for start in range(0, max(1, file.bytes), PART_BYTES):
        yield _FileRange(file, start, min(PART_BYTES, file.bytes - start))
