"""The bytes of one session, until they are published or forgotten."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from luma_core.checkpoint.storage.store import Store
from luma_server.http.problems import ApiError

UPLOADS = "uploads"
READ_BYTES = 4 << 20
_MARKER_FIELDS = 3


@dataclass(frozen=True)
class UploadPart:
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
    def of(marker: str) -> UploadPart | None:
        """Return the part a name stands for; ``None`` where it is no such name."""
        fields = marker.split(".")
        if len(fields) != _MARKER_FIELDS or not (fields[0].isdigit() and fields[1].isdigit()):
            return None
        return UploadPart(int(fields[0]), int(fields[1]), fields[2])


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


class StagingArea(ABC):
    """Keeps parts, and makes files of them. Its methods block."""

    @abstractmethod
    def parts(self, name: str) -> dict[int, UploadPart]:
        """Return the parts of a file that have arrived, by number."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the files of which parts have arrived."""

    @abstractmethod
    def begin(self, name: str, part: UploadPart) -> PartWriter:
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
    def check(self, name: str, parts: list[UploadPart], sha256: str) -> None:
        """Check a whole file before anything is published, where that needs no second copy.

        Raises:
            ApiError: its content is another.
        """

    @abstractmethod
    def publish(
        self,
        name: str,
        parts: list[UploadPart],
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
            tick: called now and then; raises where somebody else went on with it.

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
