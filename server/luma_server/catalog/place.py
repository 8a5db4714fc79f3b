"""The configured root: where checkpoints are, where the server keeps its own things."""

from __future__ import annotations

import os
from pathlib import Path

from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.names import check_name
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Store
from luma_core.errors import CheckpointNotFoundError, ConfigurationError

PRIVATE_FOLDER = ".luma"
"""Below the root; no run can have that name, as names begin with a letter or digit."""

LAYOUT_HINT = "Give the folder that holds {run}/{step}/luma.json."


class Root:
    """A folder or bucket prefix laid out ``{run}/{step}/luma.json``.

    Names are checked here, so nothing outside is reachable; in local folders links that lead out
    are treated as if they were not there.

    Args:
        place: a path or fsspec URL.

    Raises:
        ConfigurationError: it is a path that is no folder.
        StorageError: no store handles that kind of URL.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        store = open_store(place)
        self.folder: Path | None = None
        if isinstance(store, LocalStore):
            self.folder = Path(os.path.realpath(store.path))
            check_folder(store.path)
            store = LocalStore(self.folder)
        self.store = store
        self.url = store.url

    def checkpoint(self, run: str, step: str) -> Store:
        """Return the store of a checkpoint, which need not exist.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: the folder lies outside the root.
        """
        check_name(run)
        check_name(step)
        if self.folder is not None and not self.holds(self.folder / run / step):
            raise not_found(run, step)
        return self.store.folder(run).folder(step)

    def private(self, *names: str) -> Store:
        """Return the store of a folder of the server's own."""
        store = open_store(f"{self.url.rstrip('/')}/{PRIVATE_FOLDER}")
        for name in names:
            store = store.folder(name)
        return store

    def private_path(self, *names: str) -> Path | None:
        """Return the path of such a folder, or ``None`` where the root is not a local folder."""
        if self.folder is None:
            return None
        return self.folder.joinpath(PRIVATE_FOLDER, *map(check_name, names))

    def holds(self, path: Path) -> bool:
        """Whether a local path is inside the root, its links followed."""
        assert self.folder is not None
        return Path(os.path.realpath(path)).is_relative_to(self.folder)

    def hide(self, text: str) -> str:
        """Return ``text`` without the address of the root; unchanged where that is ``/``."""
        if self.folder == Path("/"):
            return text
        for address in {self.url.rstrip("/"), str(getattr(self.store, "path", self.url))}:
            text = text.replace(f"{address}/", "").replace(address, "the root")
        return text


def check_folder(folder: Path) -> None:
    """Check that a root exists.

    Raises:
        ConfigurationError: it is not a folder.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigurationError(f"root {str(folder)!r} {what}.", hint=LAYOUT_HINT)


def not_found(run: str, step: str) -> CheckpointNotFoundError:
    """Return the error of a checkpoint that is not there."""
    return CheckpointNotFoundError(
        f"there is no checkpoint {run}/{step}.",
        hint="GET /v1/checkpoints lists those there are.",
    )
