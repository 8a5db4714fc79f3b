"""The SHA-256 of files whose parts arrive more or less in order, without reading them again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from luma_server.uploads.staging import UploadPart

WAITING_BYTES = 64 << 20
"""Bound on all parts that wait in memory for those before them."""

_FILES = 256


class RunningHashes:
    """Hashes by file. Thread-safe.

    A file is given up where one of its parts is replaced, or where too much waits and nothing of
    it came for longest.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Running] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, key: str, part: UploadPart, pieces: list[bytes]) -> None:
        """Take in a part that has arrived whole.

        Args:
            key: of the file.
            part: what arrived.
            pieces: its content.
        """
        with self._lock:
            running = self._known.setdefault(key, _Running())
            self._known.move_to_end(key)
            while len(self._known) > _FILES:
                self._known.popitem(last=False)
        running.add(part, pieces)
        self._make_room()

    def _make_room(self) -> None:
        with self._lock:
            files = list(self._known.values())
        waiting_bytes = sum(one.waiting_bytes for one in files)
        for one in files:
            if waiting_bytes <= WAITING_BYTES:
                return
            waiting_bytes -= one.waiting_bytes
            if one.waiting_bytes:
                one.give_up()

    def digest(self, key: str, parts: list[UploadPart]) -> str | None:
        """Return the SHA-256 of all parts in order, hex; ``None`` where it is not known."""
        with self._lock:
            running = self._known.get(key)
        return None if running is None else running.digest(parts)

    def forget(self, key: str) -> None:
        """Forget a file."""
        with self._lock:
            self._known.pop(key, None)


class _Running:
    def __init__(self) -> None:
        self.waiting_bytes = 0
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._parts: list[UploadPart] = []
        self._waiting: dict[int, tuple[UploadPart, list[bytes]]] = {}
        self._lost = False

    def add(self, part: UploadPart, pieces: list[bytes]) -> None:
        with self._lock:
            known = self._known_part(part.number)
            if self._lost or known == part:
                return
            if known is not None:
                self._forget()
                return
            self._waiting[part.number] = (part, pieces)
            self._hash_what_follows()
            self.waiting_bytes = sum(one.size_bytes for one, _ in self._waiting.values())

    def _known_part(self, number: int) -> UploadPart | None:
        if number <= len(self._parts):
            return self._parts[number - 1]
        return self._waiting[number][0] if number in self._waiting else None

    def _hash_what_follows(self) -> None:
        while (found := self._waiting.pop(len(self._parts) + 1, None)) is not None:
            part, pieces = found
            for piece in pieces:
                self._hash.update(piece)
            self._parts.append(part)

    def give_up(self) -> None:
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._lost = True
        self._waiting.clear()
        self.waiting_bytes = 0

    def digest(self, parts: list[UploadPart]) -> str | None:
        with self._lock:
            return self._hash.hexdigest() if self._parts == parts and not self._lost else None
