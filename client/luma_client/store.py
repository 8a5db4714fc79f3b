"""A checkpoint on a server as a store, so that saving and loading work on it as on a folder."""

from __future__ import annotations

import atexit
import os
import threading
from functools import cache

from luma_client.client import Client
from luma_client.location import Location
from luma_client.staging import StagedFile, StagedWriter, UnsentFiles
from luma_core.checkpoint.format import MANIFEST_NAME, parse_manifest
from luma_core.checkpoint.format.model import index_bytes
from luma_core.checkpoint.steps import STEP_NAME
from luma_core.checkpoint.storage import check_name
from luma_core.checkpoint.storage.commit import CommitStrategy, ConditionalPut
from luma_core.checkpoint.storage.names import INDEX_NAME
from luma_core.checkpoint.storage.store import (
    ABSENT,
    ObjectWriter,
    Store,
    Version,
    changed_meanwhile,
)
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    ServiceError,
)

_CONFLICT = 409


def shared_client(base_url: str) -> Client:
    """Return the client of a server that all stores and file systems of this process use."""
    # A forked child must not use its parent's connections.
    return _client_of(base_url, os.getpid())


@cache
def _client_of(base_url: str, _process: int) -> Client:
    client = Client(base_url)
    atexit.register(client.close)
    return client


class LumaStore(Store):
    """A place on a server: all of it, a run, or a step, which may hold a checkpoint.

    A server keeps whole checkpoints only. So what is written is staged on this side, where this
    store and those of folders inside see it, and nobody else does. Writing ``luma.json`` sends the
    staged files that it names, in an upload session, and commits that; the manifest replaces the
    one that was expected, or none. Files go with their checkpoint: `delete` removes the whole
    checkpoint when it is told the manifest, and nothing else from the server.

    Args:
        url: ``luma://host[:port][/run[/step]]``.
        client: asks the server; by default one that all stores of the process share.

    Raises:
        ConfigurationError: it is no such URL.
        UnsafeNameError: a part of it is not a safe name.
    """

    def __init__(self, url: str, *, client: Client | None = None) -> None:
        self._set(Location.parse(url), UnsentFiles(), client)

    def _set(self, location: Location, staging: UnsentFiles, client: Client | None) -> None:
        self._location = location
        self.staging = staging
        self._given_client = client
        self.url = str(location)

    def _at(self, location: Location, staging: UnsentFiles) -> LumaStore:
        store = LumaStore.__new__(LumaStore)
        store._set(location, staging, self._given_client)
        return store

    @property
    def client(self) -> Client:
        """What asks the server."""
        return self._given_client or shared_client(self._location.base_url)

    @property
    def checkpoint(self) -> tuple[str, str] | None:
        """Run and step, or None where this is not the place of a checkpoint."""
        names = self._location.names
        return (names[0], names[1]) if len(names) == 2 else None

    @property
    def strategy(self) -> CommitStrategy:
        return ConditionalPut()

    def write(self, name: str, *, expected: Version | None = None) -> ObjectWriter:
        place = str(self._location / name)
        if name == MANIFEST_NAME:
            self._location.checkpoint()

        def publish(file: StagedFile) -> None:
            if name == MANIFEST_NAME:
                self._commit(file.read(0, file.size_bytes), expected)
            elif not self._has_index(name, file):
                self.staging.put(name, file)

        return StagedWriter(
            place,
            expected=expected,
            version=lambda: self.version(name),
            publish=publish,
            # The server compares the manifest's version itself; nobody waits for its upload here.
            lock=threading.RLock() if name == MANIFEST_NAME else self.staging.lock,
        )

    def _has_index(self, name: str, file: StagedFile) -> bool:
        """Whether this is the index that was derived and sent with the manifest."""
        if name != INDEX_NAME or self.checkpoint is None or self.size(name) != file.size_bytes:
            return False
        return self.read_range(name, 0, file.size_bytes) == file.read(0, file.size_bytes)

    def _commit(self, data: bytes, expected: Version | None) -> None:
        run, step = self._location.checkpoint()
        source = _Staged(self.staging, data)
        replaced = "" if expected is None else expected.token.strip('"')
        mark = self.staging.get(STEP_NAME)
        # A checkpoint that is marked already stays so when it is replaced.
        beside = self._mark_on_server() if mark is None else mark.read(0, mark.size_bytes)
        try:
            self.client.upload(
                source,
                data,
                run,
                step,
                beside={STEP_NAME: beside} if beside else {},
                overwrite=expected != ABSENT,
                expected=replaced or None,
                resumable=False,
            )
        except (CheckpointExistsError, ConcurrentSaveError) as error:
            raise changed_meanwhile(f"{self.url}/{MANIFEST_NAME}") from error
        for name in (*source.names, STEP_NAME):
            self.staging.drop(name)

    def _mark_on_server(self) -> bytes:
        try:
            return self._read(STEP_NAME, 0, 1000)
        except FileNotFoundError:
            return b""

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        staged = self._staged(name)
        if staged is not None:
            return staged.read(start, stop)
        return self._read(name, start, stop)

    def _read(self, name: str, start: int, stop: int) -> bytes:
        return self.client.read(*self._held(name), name, start, stop)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        if self._staged(name) is not None:
            return super().read_into(name, start, out)
        return self.client.read_into(*self._held(name), name, start, out)

    def _staged(self, name: str) -> StagedFile | None:
        return self.staging.get(check_name(name))

    def _held(self, name: str) -> tuple[str, str]:
        """Return run and step of what may hold ``name`` on the server."""
        if self.checkpoint is None:
            raise CheckpointNotFoundError(f"{self.url}/{name}: there is no such file.")
        return self.checkpoint

    def size(self, name: str) -> int | None:
        staged = self._staged(name)
        if staged is not None:
            return staged.size_bytes
        found = self._found(name)
        return None if found is None else found[0]

    def version(self, name: str) -> Version:
        staged = self._staged(name)
        if staged is not None:
            return staged.version
        found = self._found(name)
        return ABSENT if found is None else Version(found[1])

    def _found(self, name: str) -> tuple[int, str] | None:
        return None if self.checkpoint is None else self.client.version(*self.checkpoint, name)

    def modified(self, name: str) -> float | None:
        staged = self._staged(name)
        return None if staged is None else staged.written

    def names(self) -> list[str]:
        found = set(self.staging.names())
        if self.checkpoint is not None:
            try:
                found |= {file.name for file in self.client.files(*self.checkpoint)}
                found.add(MANIFEST_NAME)
            except CheckpointNotFoundError:
                pass
        return sorted(found)

    def delete(self, name: str) -> None:
        self.staging.drop(check_name(name))
        if name == MANIFEST_NAME and self.checkpoint is not None:
            try:
                self.client.delete(*self.checkpoint)
            except ServiceError as error:
                if error.status != _CONFLICT:
                    raise
                # Somebody pinned it or needs it: it is in use, and a manager leaves it alone.
                raise ConcurrentSaveError(error.message, hint=error.hint) from error

    def discard_leftovers(self, *, older_than_seconds: float = 0) -> None:
        """Do nothing: what is staged ends with this process, and the server forgets sessions."""

    def folders(self) -> list[str]:
        found = set(self.staging.folders())
        match self._location.names:
            case ():
                found |= {info.run for info in self.client.runs()}
            case (run,):
                found |= {info.step for info in self.client.checkpoints(run=run)}
        return sorted(found)

    def folder(self, name: str) -> Store:
        return self._at(self._location / name, self.staging.folder(name))

    @property
    def place(self) -> tuple[str, str]:
        *around, name = self._location.names or [""]
        if not name:
            raise self._alone()
        return "/".join((self._location.base_url, *around)), name

    def beside(self, name: str) -> Store:
        *around, own = self._location.names or [""]
        if not own:
            raise self._alone()
        parent = Location(self._location.scheme, self._location.netloc, tuple(around))
        return self._at(parent / name, UnsentFiles())

    def remove_folder(self) -> None:
        """Do nothing: the server keeps no empty folders."""


class _Staged:
    """The files of a manifest that are about to be sent, its index derived from itself."""

    def __init__(self, staging: UnsentFiles, data: bytes) -> None:
        manifest = parse_manifest(data)
        self.names = [file.name for file in manifest.files]
        self._staging = staging
        # It is written after the manifest, but the server takes all files before.
        self._index = index_bytes(
            [entry for entry in manifest.tensors if entry.file.startswith("model-")]
        )

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Read the bytes of a file from ``start`` on into ``out``; return how many there were."""
        staged = self._staging.get(name)
        if name == INDEX_NAME:
            data = self._index[start : start + len(out)]
        elif staged is not None:
            data = staged.read(start, start + len(out))
        else:
            raise CheckpointNotFoundError(f"{name}: the manifest names it, but nobody wrote it.")
        out[: len(data)] = data
        return len(data)
