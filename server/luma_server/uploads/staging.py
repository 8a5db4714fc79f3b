"""The bytes of one session, until they are published or forgotten."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from luma_core.checkpoint.names import check_name
from luma_core.checkpoint.remote import FsspecStore
from luma_core.checkpoint.store import ObjectWriter, Store
from luma_server.place import Root
from luma_server.problems import ApiError

UPLOADS = "uploads"
READ_BYTES = 4 << 20
_MARKER_FIELDS = 3


@dataclass(frozen=True)
class Part:
    """A part of a file that has arrived whole.

    Attributes:
        number: from 1.
        size_bytes: its size.
        sha256: of its content, hex.
    """

    number: int
    size_bytes: int
    sha256: str

    @property
    def marker(self) -> str:
        """The name under which it is remembered."""
        return f"{self.number:06d}.{self.size_bytes}.{self.sha256}"

    @staticmethod
    def of(marker: str) -> Part | None:
        """Return the part a name stands for; ``None`` where it is no such name."""
        fields = marker.split(".")
        if len(fields) != _MARKER_FIELDS or not (fields[0].isdigit() and fields[1].isdigit()):
            return None
        return Part(int(fields[0]), int(fields[1]), fields[2])


class PartWriter(ABC):
    """Takes the bytes of one part. Its methods block and are called one after another."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Take the next bytes."""

    @abstractmethod
    def commit(self) -> None:
        """Keep the part."""

    @abstractmethod
    def discard(self) -> None:
        """Forget it; does nothing after `commit`."""


class Staging(ABC):
    """Keeps parts, and makes files of them. Its methods block."""

    @abstractmethod
    def parts(self, name: str) -> dict[int, Part]:
        """Return the parts of a file that have arrived, by number."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the files of which parts have arrived."""

    @abstractmethod
    def begin(self, name: str, part: Part) -> PartWriter:
        """Begin to write a part, which replaces one of the same number when it is committed."""

    @abstractmethod
    def adopt(self, name: str, source: Store, source_name: str) -> None:
        """Take a file from a checkpoint that is there.

        Raises:
            OSError: that is not possible.
        """

    @abstractmethod
    def clear(self, name: str) -> None:
        """Forget a file."""

    @abstractmethod
    def check(self, name: str, parts: list[Part], sha256: str) -> None:
        """Check a whole file before anything is published, where that needs no second copy.

        Raises:
            ApiError: its content is another.
        """

    @abstractmethod
    def publish(
        self,
        name: str,
        parts: list[Part],
        sha256: str,
        target: Store,
        *,
        adopted: tuple[Store, str] | None,
        tick: Callable[[], None],
    ) -> None:
        """Make a file appear under its name, so that this may be done again.

        Args:
            name: of the file.
            parts: all of them, in order; of an adopted file none.
            sha256: of the whole, hex.
            target: where to.
            adopted: store and name of the file that was taken, if it was.
            tick: called now and then.

        Raises:
            ApiError: its content is another.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget everything."""


class WrongFileError(ApiError):
    """The parts of a file make another whole than the manifest names.

    Attributes:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            "digest_mismatch",
            f"the parts of {name!r} do not make the file whose SHA-256 the manifest names.",
            hint="Send that file again.",
        )
        self.name = name


def file_sha256(store: Store, name: str, size_bytes: int) -> str:
    """Return the SHA-256 of an object, hex, in bounded memory."""
    found = hashlib.sha256()
    for start in range(0, size_bytes, READ_BYTES):
        found.update(store.read_range(name, start, min(start + READ_BYTES, size_bytes)))
    return found.hexdigest()


def open_staging(root: Root, session_id: str, part_bytes: int) -> Staging:
    """Return the staging area of a session."""
    from luma_server.uploads.local import LocalStaging

    folder = root.private_path(UPLOADS, session_id)
    if folder is not None:
        return LocalStaging(folder, part_bytes)
    return RemoteStaging(root.private(UPLOADS, session_id))


class RemoteStaging(Staging):
    """Keeps each part as an object; a file is streamed into its place when it is published.

    Args:
        store: the folder of the session.
    """

    def __init__(self, store: Store) -> None:
        self._parts = store.folder("parts")

    def parts(self, name: str) -> dict[int, Part]:
        found = filter(None, map(Part.of, self._parts.folder(check_name(name)).names()))
        return {part.number: part for part in found}

    def names(self) -> list[str]:
        return self._parts.folders()

    def begin(self, name: str, part: Part) -> PartWriter:
        store = self._parts.folder(check_name(name))
        former = self.parts(name).get(part.number)
        return _ObjectPart(store, store.write(part.marker), part, former)

    def adopt(self, name: str, source: Store, source_name: str) -> None:
        """Do nothing: the copy is made by the store when the file is published."""

    def clear(self, name: str) -> None:
        store = self._parts.folder(check_name(name))
        for marker in store.names():
            store.delete(marker)
        store.remove_folder()

    def check(self, name: str, parts: list[Part], sha256: str) -> None:
        """Do nothing: what is published is checked on its way."""

    def publish(
        self,
        name: str,
        parts: list[Part],
        sha256: str,
        target: Store,
        *,
        adopted: tuple[Store, str] | None,
        tick: Callable[[], None],
    ) -> None:
        if adopted is not None:
            _copy(*adopted, target, name)
            return
        whole = hashlib.sha256()
        with target.write(name) as out:
            for data in self._contents(name, parts):
                whole.update(data)
                out.write(data)
                tick()
            if whole.hexdigest() != sha256:
                raise WrongFileError(name)
            out.commit()

    def _contents(self, name: str, parts: list[Part]) -> Iterator[bytes]:
        """Yield the bytes of each part while those of the next one are fetched."""
        store = self._parts.folder(name)
        with ThreadPoolExecutor(1) as pool:
            waiting = None
            for part in parts:
                fetched = pool.submit(store.read_range, part.marker, 0, part.size_bytes)
                if waiting is not None:
                    yield waiting.result()
                waiting = fetched
            if waiting is not None:
                yield waiting.result()

    def discard(self) -> None:
        for name in self.names():
            self.clear(name)
        self._parts.remove_folder()


class _ObjectPart(PartWriter):
    def __init__(self, store: Store, out: ObjectWriter, part: Part, former: Part | None) -> None:
        self._store = store
        self._out = out
        self._former = former if former is not None and former != part else None

    def write(self, data: bytes) -> None:
        self._out.write(data)

    def commit(self) -> None:
        self._out.commit()
        if self._former is not None:
            self._store.delete(self._former.marker)

    def discard(self) -> None:
        self._out.discard()


def _copy(source: Store, source_name: str, target: Store, name: str) -> None:
    """Copy an object inside the store, without its bytes passing through here."""
    assert isinstance(source, FsspecStore)
    assert isinstance(target, FsspecStore)
    if source.path_of(source_name) == target.path_of(name):
        return
    target.call("makedirs", target.path, exist_ok=True)
    target.call("cp_file", source.path_of(source_name), target.path_of(name))
