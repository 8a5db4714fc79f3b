"""Staging in a store: parts are objects of their own, and the store assembles files of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from luma_core.checkpoint.storage.names import check_name
from luma_core.checkpoint.storage.store import ObjectWriter, Store
from luma_server.uploads.assembly import assemble, copy
from luma_server.uploads.running import RunningHashes
from luma_server.uploads.staging import PartWriter, StagingArea, UploadPart, WrongFileError

_hashes = RunningHashes()


class RemoteStagingArea(StagingArea):
    """Keeps each part as an object.

    Files are hashed while their parts arrive, and assembled by the store when they are published.
    Where one is not hashed yet, as its parts came far out of order or to several servers, or the
    store cannot assemble them, it is streamed into its place and hashed then.

    Args:
        store: the folder of the session.
    """

    def __init__(self, store: Store) -> None:
        self._parts = store.folder("parts")

    def _key(self, name: str) -> str:
        return f"{self._parts.url}/{name}"

    def parts(self, name: str) -> dict[int, UploadPart]:
        found = filter(None, map(UploadPart.of, self._parts.folder(check_name(name)).names()))
        return {part.number: part for part in found}

    def names(self) -> list[str]:
        return self._parts.folders()

    def begin(self, name: str, part: UploadPart) -> PartWriter:
        store = self._parts.folder(check_name(name))
        former = self.parts(name).get(part.number)
        return _ObjectPart(store, store.write(part.marker), part, former, self._key(name))

    def adopt(self, name: str, source: Store, source_name: str) -> None:
        """Do nothing: the copy is made by the store when the file is published."""

    def clear(self, name: str) -> None:
        _hashes.forget(self._key(name))
        store = self._parts.folder(check_name(name))
        for marker in store.names():
            store.delete(marker)
        store.remove_folder()

    def check(self, name: str, parts: list[UploadPart], sha256: str) -> None:
        found = _hashes.digest(self._key(name), parts)
        if found is not None and found != sha256:
            raise WrongFileError(name)

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
        if adopted is not None:
            copy(*adopted, target, name)
            return
        if _hashes.digest(self._key(name), parts) == sha256:
            source = self._parts.folder(check_name(name))
            sizes = [(part.marker, part.size_bytes) for part in parts]
            if assemble(source, sizes, target, name, tick):
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

    def _contents(self, name: str, parts: list[UploadPart]) -> Iterator[bytes]:
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
    def __init__(
        self, store: Store, out: ObjectWriter, part: UploadPart, former: UploadPart | None, key: str
    ) -> None:
        self._store = store
        self._out = out
        self._part = part
        self._former = former if former is not None and former != part else None
        self._key = key
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._out.write(data)
        self._pieces.append(data)

    def commit(self) -> None:
        self._out.commit()
        if self._former is not None:
            self._store.delete(self._former.marker)
        _hashes.add(self._key, self._part, self._pieces)

    def discard(self) -> None:
        self._out.discard()
        self._pieces = []
