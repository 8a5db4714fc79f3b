"""Checking whole files of a checkpoint: there, as long as they should be, and with their hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from luma_core.checkpoint.format.compression import in_order
from luma_core.checkpoint.format.manifest import FileEntry
from luma_core.checkpoint.read.read_ahead import SPAN_BYTES, read_ahead
from luma_core.checkpoint.storage.store import Store
from luma_core.errors import CorruptCheckpointError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

T = TypeVar("T")

MISSING = "the file is missing"

_READ_AHEAD = 2


def counted(total_bytes: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds up bytes, from any thread, and reports them to ``progress``."""
    done_bytes = 0
    lock = threading.Lock()

    def tick(count: int) -> None:
        nonlocal done_bytes
        with lock:
            done_bytes += count
            if progress is not None:
                progress(done_bytes, total_bytes)

    return tick


def in_lanes(lanes: int, work: Callable[[FileEntry], T], files: Sequence[FileEntry]) -> Iterator[T]:
    """Yield the results of ``work``, done with several files at once, in order."""
    with ThreadPoolExecutor(lanes) as pool:
        try:
            yield from in_order(pool, work, files, waiting=lanes)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def corrupt(url: str, file: FileEntry, problem: str) -> CorruptCheckpointError:
    """Return the error of a file that is not what was written."""
    return CorruptCheckpointError(
        f"{url}/{file.name}: {problem}.",
        hint="Restore the file from a copy, or load an older checkpoint.",
    )


def content_problem(
    store: Store, file: FileEntry, tick: Callable[[int], None], *, again: bool
) -> str | None:
    """Return what is wrong with a file's bytes, `MISSING` where it is not there, or None.

    Args:
        store: its folder.
        file: what the manifest says of it.
        tick: called with numbers of bytes read.
        again: whether it will be read once more soon.
    """
    if (problem := size_problem(store, file)) is not None:
        return problem
    digest = hashlib.sha256()
    try:
        for data in _read_spans(store, file, again=again):
            digest.update(data)
            tick(len(data))
    except FileNotFoundError:
        return MISSING
    return digest_problem(file, digest.hexdigest())


def size_problem(store: Store, file: FileEntry) -> str | None:
    """Return what is wrong with a file's size, `MISSING` where it is not there, or None."""
    size = store.size(file.name)
    if size is None:
        return MISSING
    return None if size == file.bytes else f"the file has {size} bytes, expected {file.bytes}"


def digest_problem(file: FileEntry, sha256: str) -> str | None:
    """Return what is wrong with the SHA-256 that was found, or None."""
    return (
        None if sha256 == file.sha256 else f"the file's SHA-256 is {sha256}, expected {file.sha256}"
    )


class _FileSpan(NamedTuple):
    start: int
    stop: int


def _read_spans(store: Store, file: FileEntry, *, again: bool) -> Iterator[memoryview]:
    """Yield a file's bytes, read ahead of their use; each span is there until the next."""
    starts = range(0, file.bytes, SPAN_BYTES)
    spans = (_FileSpan(start, min(file.bytes, start + SPAN_BYTES)) for start in starts)
    with store.reader(file.name, again=again) as reader:
        for _, found in read_ahead(reader, spans, threads=_READ_AHEAD, use=lambda *_: None):
            yield found
