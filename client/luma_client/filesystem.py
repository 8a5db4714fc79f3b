"""Checkpoints on a server as an fsspec file system: ``luma://host[:port]/run/step/file``."""

from __future__ import annotations

from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from luma_client.location import PROTOCOLS, Location
from luma_client.store import LumaStore
from luma_core.checkpoint.steps import STEP_NAME
from luma_core.checkpoint.storage.names import INDEX_NAME, MANIFEST_NAME, shard_generation
from luma_core.checkpoint.storage.store import ObjectWriter, Store
from luma_core.errors import CheckpointNotFoundError, ConfigurationError

BLOCK_BYTES = 4 << 20
"""What an open file reads ahead."""


class LumaFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Runs as folders, in them steps as folders, in them the files of one checkpoint each.

    A server keeps whole checkpoints, so only files of one can be written, and they are sent when
    ``luma.json`` is closed, which must be last. Deleting ``luma.json``, or a step recursively,
    deletes the checkpoint; other files cannot be deleted.

    Args:
        host: name or address of the server, with ``:port`` where it is not the default one.
        plain: whether HTTP is taken for hosts beyond this machine, too (``luma+http://``).
    """

    protocol = PROTOCOLS
    root_marker = "/"

    def __init__(self, host: str = "", *, plain: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if not host:
            raise ConfigurationError("host='' must name a server.", hint="luma://HOST/RUN/STEP")
        self._root = LumaStore(f"{PROTOCOLS[plain]}://{host}")

    @staticmethod
    def checkpoint_store(url: str) -> Store:
        """Return what `luma_core.checkpoint` uses for ``url`` instead of a plain file system."""
        return LumaStore(url)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(path)
        if "://" in text:
            text = "/".join(("", *Location.parse(text).names))
        return "/" + text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        location = Location.parse(path)
        return {"host": location.netloc, "plain": location.scheme == PROTOCOLS[1]}

    def unstrip_protocol(self, name: str) -> str:
        return f"{self._root.url}{self._strip_protocol(name)}"

    def _names(self, path: str) -> list[str]:
        return [name for name in self._strip_protocol(path).split("/") if name]

    def _folder(self, names: list[str]) -> Store:
        store: Store = self._root
        for name in names:
            store = store.folder(name)
        return store

    def _file(self, path: str) -> tuple[Store, str]:
        names = self._names(path)
        if len(names) != 3:
            raise FileNotFoundError(f"{self.unstrip_protocol(path)}: files are /run/step/file")
        return self._folder(names[:2]), names[2]

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        names = self._names(path)
        if len(names) == 3:
            found = [self.info(path)]
        elif len(names) > 3:
            raise FileNotFoundError(self.unstrip_protocol(path))
        else:
            found = self._entries(names)
            if names and not found:
                raise FileNotFoundError(self.unstrip_protocol(path))
        return found if detail else [entry["name"] for entry in found]

    def _entries(self, names: list[str]) -> list[dict[str, Any]]:
        folder, path = self._folder(names), "/".join(("", *names))
        if len(names) == 2:
            sizes = {name: folder.size(name) for name in folder.names()}
            return [_file_entry(f"{path}/{name}", size or 0) for name, size in sizes.items()]
        return [_folder_entry(f"{path}/{name}") for name in folder.folders()]

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        names = self._names(path)
        if len(names) == 3:
            store, name = self._file(path)
            size = store.size(name)
            if size is not None:
                version = store.version(name).token
                return {**_file_entry("/".join(("", *names)), size), "ETag": version}
        elif len(names) < 3 and (not names or self._entries(names)):
            return _folder_entry("/".join(("", *names)) if names else "/")
        raise FileNotFoundError(self.unstrip_protocol(path))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_options: Any
    ) -> bytes:
        store, name = self._file(path)
        if start is None or start < 0 or end is None or end < 0:
            size = store.size(name)
            if size is None:
                raise FileNotFoundError(self.unstrip_protocol(path))
            start, end, _ = slice(start, end).indices(size)
        return store.read_range(name, start, end)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        store, name = self._file(path)
        if mode == "wb":
            _check_writable(name)
            return _Writing(self.unstrip_protocol(path), store.write(name))
        if mode != "rb":
            raise ConfigurationError(f"mode={mode!r} must be 'rb' or 'wb'.")
        options.setdefault("cache_type", "readahead")
        block_bytes = options.pop("block_size", None) or BLOCK_BYTES
        return _Reading(self, path, store, name, block_size=block_bytes, **options)

    def rm_file(self, path: str) -> None:
        store, name = self._file(path)
        if store.size(name) is None:
            raise FileNotFoundError(self.unstrip_protocol(path))
        if name != MANIFEST_NAME and store.size(MANIFEST_NAME) is not None:
            raise ConfigurationError(
                f"{self.unstrip_protocol(path)}: a file goes with its checkpoint.",
                hint="Delete the step, or its luma.json.",
            )
        store.delete(name)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        for one in path if isinstance(path, list) else [path]:
            names = self._names(one)
            if len(names) == 2 and recursive:
                store = self._folder(names)
                for name in sorted(store.names(), key=lambda name: name != MANIFEST_NAME):
                    store.delete(name)
            else:
                self.rm_file(one)

    def mkdir(self, path: str, create_parents: bool = True, **_options: Any) -> None:
        """Do nothing: the server keeps no empty folders."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: the server keeps no empty folders."""

    def rmdir(self, path: str) -> None:
        """Do nothing: the server keeps no empty folders."""


def _check_writable(name: str) -> None:
    if name in (MANIFEST_NAME, INDEX_NAME, STEP_NAME) or shard_generation(name) is not None:
        return
    raise ConfigurationError(
        f"{name!r} is not the name of a checkpoint's file, and a server keeps nothing else.",
        hint="Write it to a folder or a bucket.",
    )


def _file_entry(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "type": "file"}


def _folder_entry(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


class _Reading(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is open for reading."""

    def __init__(
        self, fs: LumaFileSystem, path: str, store: Store, name: str, **options: Any
    ) -> None:
        size = store.size(name)
        if size is None:
            raise CheckpointNotFoundError(f"{fs.unstrip_protocol(path)}: there is no such file.")
        self._store, self._name = store, name
        super().__init__(fs, path, "rb", size=size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._store.read_range(self._name, start, end)


class _Writing:
    """A file that is open for writing; an exception in its ``with`` block discards it."""

    def __init__(self, url: str, writer: ObjectWriter) -> None:
        self.name = url
        self.mode = "wb"
        self.closed = False
        self._writer = writer
        self._count = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._writer.write(view)
        self._count += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._count

    def flush(self, force: bool = False) -> None:
        """Do nothing: a file appears whole."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._writer.commit()

    def discard(self) -> None:
        """Forget what was written."""
        self.closed = True
        self._writer.discard()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
