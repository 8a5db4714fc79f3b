"""Local paths, resolved when they are given: nothing asks for the current directory later on."""

from __future__ import annotations

import os
from pathlib import Path

from luma_core.errors import StorageError


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path: ``~`` stands for the home directory, as it does in a shell.

    Links and ``..`` stay as they are, for the system to follow whenever the path is used.

    Raises:
        StorageError: it is relative, and the current directory was removed.
    """
    # Path's own one would also expand the `~name` in `./~name`, and raise for an unknown user.
    expanded = os.path.expanduser(os.fspath(path))  # noqa: PTH111
    try:
        return Path(expanded).absolute()
    except FileNotFoundError as error:
        raise StorageError(
            f"{os.fspath(path)!r} is relative, and the current directory was removed.",
            hint="Give an absolute path, or change to a directory that is there.",
        ) from error
