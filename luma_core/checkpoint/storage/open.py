"""The choice of a store by path or URL."""

from __future__ import annotations

import os

from luma_core.checkpoint.storage.local import LocalStore, is_local, local_path
from luma_core.checkpoint.storage.remote import FsspecStore, plain_errors
from luma_core.checkpoint.storage.store import Place, Store
from luma_core.errors import ConfigurationError, StorageError


def open_store(place: Place) -> Store:
    """Return the store of the folder that ``place`` names now; it need not exist yet.

    Relative paths and ``~`` are resolved here, so that the store stays where it is when the current
    directory changes.

    Raises:
        ConfigurationError: ``place`` is neither a path, a URL nor a store.
        StorageError: no store handles that kind of URL, or its package is not installed; or a path
            is relative to a directory that was removed.
    """
    if isinstance(place, Store):
        return place
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{place!r} is no place for a checkpoint: it must be a path, a URL or a store."
        )
    return LocalStore(local_path(text)) if is_local(text) else _open_remote(text)


def _open_remote(url: str) -> Store:
    """Return the store of an fsspec URL.

    Raises:
        StorageError: no backend handles it, its package is missing, or it is a chain of URLs.
    """
    import fsspec

    scheme, _, path = url.partition("://")
    told = f"{url!r}: no store for {scheme!r} locations."
    if "::" in url:
        raise StorageError(told, hint="Chained URLs are not taken: give the place itself.")
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        hint = (
            "Give a local path, or a URL of a kind that fsspec knows, such as s3://bucket/folder."
        )
        raise StorageError(told, hint=hint) from error
    except ImportError as error:
        hint = "pip install 'luma-state[s3]'" if scheme in ("s3", "s3a") else f"{error}."
        raise StorageError(told, hint=hint) from error
    # What keeps checkpoints only is no plain file system, and brings a store of its own.
    if hasattr(kind, "checkpoint_store"):
        store: Store = kind.checkpoint_store(url)
        return store
    if not path.strip("/"):
        raise StorageError(f"{url!r}: the URL names no folder.", hint="Give one, as in s3://b/run.")
    if scheme in ("s3", "s3a"):
        from luma_core.checkpoint.storage.s3 import S3Store

        return S3Store(url)
    with plain_errors():
        # A listing that is cached would hide what other processes wrote.
        fs = kind(use_listings_cache=False, **kind._get_kwargs_from_urls(url))
        return FsspecStore(fs, kind._strip_protocol(url), url)
