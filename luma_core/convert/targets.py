"""Where sinks write: files and folders that appear when they are whole, local or remote.

What goes to a remote place is written to a temporary file or folder first and then handed over.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch

from luma_core.checkpoint.storage.local import LocalWriter, make_folder, sync_folder
from luma_core.checkpoint.storage.s3 import S3Store
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.convert.base import ConvertOptions, Url, Written
from luma_core.convert.places import (
    File,
    LocalFolder,
    RemoteFolder,
    file_at,
    folder_at,
)
from luma_core.errors import CheckpointExistsError

_ELSEWHERE = "Choose another destination, or allow it to be overwritten."


def write_torch_file(
    destination: Url, options: ConvertOptions, make: Callable[[IO[bytes]], Any]
) -> Written:
    """Write a file of ``torch.save``.

    Args:
        destination: path or URL of the file.
        options: say whether something there may be replaced.
        make: returns what to save; takes a scratch file that lasts until it is saved.

    Raises:
        CheckpointExistsError: something is there and may not be replaced.
        StorageError: the store failed; what was there before is whole.
    """
    file = file_at(destination)
    with storage_errors(str(file)):
        _check_free_file(file, options)
        if isinstance(file.folder, RemoteFolder):
            return _write_remote_file(file, file.folder, make)
        # What a link names is replaced, and not the link.
        path = Path(os.path.realpath(cast(LocalFolder, file.folder).path / file.name))
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent) as scratch, LocalWriter(path) as out:
            torch.save(make(scratch), cast(IO[bytes], out))
            out.keep_mode()
            out.commit()
        return Written(path.stat().st_size)


def _check_free_file(file: File, options: ConvertOptions) -> None:
    if file.is_there():
        if not options.overwrite:
            raise CheckpointExistsError(f"{file}: there is a file already.", hint=_ELSEWHERE)
        return
    inside = file.folder.folder(file.name)
    if (isinstance(inside, LocalFolder) and inside.path.is_dir()) or inside.names():
        raise CheckpointExistsError(f"{file}: is a folder; the state is written as one file.")


def _write_remote_file(
    file: File, folder: RemoteFolder, make: Callable[[IO[bytes]], Any]
) -> Written:
    with tempfile.TemporaryDirectory(prefix="luma-") as place:
        path = Path(place) / "content"
        with (Path(place) / "scratch").open("w+b") as scratch, path.open("wb") as out:
            torch.save(make(scratch), out)
        _put(path, folder, file.name)
        return Written(path.stat().st_size)


def _put(path: Path, folder: RemoteFolder, name: str) -> None:
    """Hand a local file over as a whole."""
    before = folder.size(name)
    # S3 has no folders, and making one could make a bucket.
    if not isinstance(folder.store, S3Store):
        folder.call(name, "makedirs", folder.path, exist_ok=True)
    try:
        folder.call(name, "put_file", str(path), folder.path_of(name))
    except BaseException:
        # A backend that streams may have published the part it got.
        if before is None:
            with contextlib.suppress(OSError):
                folder.call(name, "rm_file", folder.path_of(name))
        raise


def write_folder(
    destination: Url,
    options: ConvertOptions,
    fill: Callable[[Path, IO[bytes]], None],
    *,
    own: Callable[[str], bool],
    last: str,
) -> Written:
    """Write a folder.

    A local one appears as a whole. A remote one is handed over file by file, and the file without
    which it is none comes last; where it replaces another, that file is removed first.

    Args:
        destination: path or URL of the folder.
        options: say whether something there may be replaced.
        fill: writes the content into a local folder, which it makes; takes a scratch file as well.
        own: whether a name in a folder is one of this format's, so that it may be replaced.
        last: name of the file that makes the folder what it is, as a path in it.

    Raises:
        CheckpointExistsError: something is there and may not be replaced.
        StorageError: the store failed.
    """
    folder = folder_at(destination)
    with storage_errors(folder.where):
        if isinstance(folder, LocalFolder) and folder.path.is_file():
            raise CheckpointExistsError(f"{folder.where}: there is a file already.")
    names = folder.names()
    if names and not options.overwrite:
        raise CheckpointExistsError(f"{folder.where}: something is there already.", hint=_ELSEWHERE)
    if not all(map(own, names)):
        raise CheckpointExistsError(
            f"{folder.where}: holds other files than a checkpoint's, so it is not replaced.",
            hint="Choose another destination.",
        )
    with storage_errors(folder.where):
        if isinstance(folder, LocalFolder):
            return _write_local_folder(folder.path, fill)
        return _write_remote_folder(cast(RemoteFolder, folder), fill, last)


def _write_local_folder(path: Path, fill: Callable[[Path, IO[bytes]], None]) -> Written:
    path = Path(os.path.realpath(path))
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.luma-tmp")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as scratch:
            fill(temporary, scratch)
        stored_bytes = sum(file.stat().st_size for file in _files(temporary))
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            old = temporary.with_suffix(".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(stored_bytes)


def _write_remote_folder(
    folder: RemoteFolder, fill: Callable[[Path, IO[bytes]], None], last: str
) -> Written:
    with tempfile.TemporaryDirectory(prefix="luma-") as place:
        made = Path(place) / "content"
        with (Path(place) / "scratch").open("w+b") as scratch:
            fill(made, scratch)
        if folder.names():
            if folder.size(last) is not None:
                folder.call(last, "rm_file", folder.path_of(last))
            folder.call("", "rm", folder.path, recursive=True)
        files = sorted(_files(made), key=lambda file: (file == made / last, file))
        for file in files:
            inside = file.relative_to(made)
            target = folder
            for part in inside.parts[:-1]:
                target = cast(RemoteFolder, target.folder(part))
            _put(file, target, file.name)
        return Written(sum(file.stat().st_size for file in files))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
