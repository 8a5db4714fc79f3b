"""Upload sessions: begun, looked at, committed, given up, and collected when they are old."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format import MANIFEST_NAME
from luma_core.checkpoint.steps import STEP_NAME
from luma_core.checkpoint.storage import check_name
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.errors import StorageError
from luma_core.wire import Committed, FileInfo, UploadFile, UploadSession
from luma_server.catalog.checkpoints import Catalog
from luma_server.http.access import Principal
from luma_server.http.problems import ApiError
from luma_server.settings import Settings
from luma_server.uploads.commit import REPLACING_NAME, commit_upload
from luma_server.uploads.open import open_staging
from luma_server.uploads.record import (
    RECORD_NAME,
    Record,
    after,
    read_record,
    session_store,
    write_record,
)
from luma_server.uploads.staging import UPLOADS, StagingArea, WrongFileError
from luma_server.uploads.validation import adopt_files, check_place, parse_upload

_log = logging.getLogger(__name__)

COMMITTED_SECONDS = 900.0
"""How long a committed session is remembered, for clients that did not hear of it."""

_CACHE_SECONDS = 2.0
_ID = re.compile(r"[0-9a-f]{32}")


class Sessions:
    """The sessions below a root. Thread-safe; methods block on the store.

    Args:
        catalog: where checkpoints appear.
        settings: limits.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._root = catalog.root
        self._settings = settings
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Record]] = {}
        self._active: Counter[str] = Counter()
        self._committing: set[str] = set()

    def create(
        self,
        principal: Principal,
        run: str,
        step: str,
        text: str | None,
        *,
        overwrite: bool,
        expected: str | None = None,
    ) -> UploadSession:
        """Begin a session.

        Args:
            principal: whose it is.
            run: where the checkpoint shall be.
            step: likewise.
            text: content of ``luma.json``; ``None`` where the commit brings it.
            overwrite: whether it may replace a checkpoint.
            expected: digest of the one that it may replace; any by default.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointExistsError: there is one and ``overwrite`` is False.
            ApiError: the manifest cannot be taken, or there are too many sessions.
            StorageError: the store failed.
        """
        self._root.checkpoint(check_name(run), check_name(step))
        manifest = None if text is None else parse_upload(text, self._settings)
        check_place(self._catalog, run, step, manifest, overwrite=overwrite, expected=expected)
        with storage_errors("uploads"):
            self._check_count(principal)
            record = Record(
                id=secrets.token_hex(16),
                owner=principal.id,
                run=run,
                step=step,
                overwrite=overwrite,
                state="open",
                created=after(0),
                expires=after(self._settings.session_seconds),
                part_bytes=self._settings.part_bytes,
                files=None if manifest is None else _declared(manifest),
                expected=expected,
            )
            record = adopt_files(self._catalog, principal, record, self.staging(record))
            if text is not None:
                with session_store(self._root, record.id).write(MANIFEST_NAME) as out:
                    out.write(text.encode())
                    out.commit()
            self._keep(record)
        return self.describe(record)

    def get(self, principal: Principal, session_id: str, *, fresh: bool = True) -> Record:
        """Return a session of whoever asks.

        Args:
            principal: who asks; ``admin`` sees all.
            session_id: names it.
            fresh: whether to ask the store, and not to trust what was read a moment ago.

        Raises:
            ApiError: there is none.
            StorageError: the store failed.
        """
        record = None
        if _ID.fullmatch(session_id):
            known = self._known.get(session_id)
            if known is not None and not fresh and time.monotonic() - known[0] < _CACHE_SECONDS:
                record = known[1]
            else:
                with storage_errors("uploads"):
                    record = self._renewed(read_record(self._root, session_id))
        theirs = record is not None and (record.owner == principal.id or principal.may("admin"))
        if record is None or record.expired or not theirs:
            raise ApiError("upload_not_found", f"there is no upload {session_id[:64]!r}.")
        with self._lock:
            self._known[session_id] = (time.monotonic(), record)
        return record

    def list(self, principal: Principal) -> list[UploadSession]:
        """Return the open sessions of whoever asks, by the time they were begun."""
        found = []
        for session_id in self._root.private(UPLOADS).folders():
            with suppress(ApiError):
                record = self.get(principal, session_id)
                if record.state == "open":
                    found.append(record)
        return [self.describe(one) for one in sorted(found, key=lambda one: one.created)]

    def describe(self, record: Record) -> UploadSession:
        """Return what clients see of a session."""
        files = [] if record.state == "committed" else list(self._files(record))
        return UploadSession(
            id=record.id,
            run=record.run,
            step=record.step,
            state=record.state,
            created=record.created,
            expires=record.expires,
            part_bytes=record.part_bytes,
            files=tuple(files),
        )

    def _files(self, record: Record) -> Iterator[UploadFile]:
        staging = self.staging(record)
        there = set(staging.names())
        declared = record.files or ()
        for file in declared:
            received = tuple(sorted(staging.parts(file.name))) if file.name in there else ()
            count = max(1, -(-file.size_bytes // record.part_bytes))
            needed = file.name not in record.adopted and len(received) < count
            yield UploadFile(file.name, file.size_bytes, file.sha256, needed, received)
        for name in sorted(there - {file.name for file in declared}):
            yield UploadFile(name, None, None, False, tuple(sorted(staging.parts(name))))

    def staging(self, record: Record) -> StagingArea:
        """Return the staging area of a session."""
        return open_staging(self._root, record.id, record.part_bytes)

    def commit(self, principal: Principal, session_id: str, text: str | None) -> Committed:
        """Make the checkpoint of a session visible; may be repeated.

        Args:
            principal: whose it is.
            session_id: names it.
            text: content of ``luma.json`` where the session was begun without.

        Raises:
            ApiError: something is missing or wrong.
            CheckpointExistsError: there is a checkpoint already.
            ConcurrentSaveError: somebody else is at work there.
            StorageError: the store failed.
        """
        record = self.get(principal, session_id)
        if record.state == "committed":
            return Committed(record.run, record.step, record.digest)
        with self._alone(record.id), storage_errors("uploads"):
            manifest = self._manifest(record, text)
            staging = self.staging(record)
            try:
                commit_upload(self._catalog, record, staging, manifest)
            except WrongFileError as error:
                self._clear(record, staging, error.name)
                raise
            ended = replace(
                record,
                state="committed",
                digest=manifest.digest,
                files=None,
                adopted={},
                expires=after(min(COMMITTED_SECONDS, self._settings.session_seconds)),
            )
            self._keep(ended)
            self._clean(record)
        return Committed(record.run, record.step, manifest.digest)

    def delete(self, principal: Principal, session_id: str) -> None:
        """Forget a session and its bytes.

        Raises:
            ApiError: there is none, or it is being committed.
            StorageError: the store failed.
        """
        record = self.get(principal, session_id)
        with self._alone(record.id), storage_errors("uploads"):
            self._forget(record)

    def sweep(self) -> int:
        """Collect sessions that have expired; return how many were."""
        count = 0
        with storage_errors("uploads"):
            for session_id in self._root.private(UPLOADS).folders():
                record = read_record(self._root, session_id) if _ID.fullmatch(session_id) else None
                if record is not None and record.expired:
                    with suppress(ApiError), self._alone(record.id):
                        self._forget(record)
                        count += 1
        return count

    @contextmanager
    def receiving(self, record: Record) -> Iterator[None]:
        """Keep a session from being committed or forgotten while a part of it arrives.

        Raises:
            ApiError: that is happening right now.
        """
        with self._lock:
            if record.id in self._committing:
                raise _busy(record.id)
            self._active[record.id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._active[record.id] -= 1
                if not self._active[record.id]:
                    del self._active[record.id]

    def count_open(self) -> int:
        """Return how many sessions this process knows as open."""
        with self._lock:
            return sum(record.state == "open" for _, record in self._known.values())

    @contextmanager
    def _alone(self, session_id: str) -> Iterator[None]:
        with self._lock:
            if session_id in self._committing or self._active[session_id]:
                raise _busy(session_id)
            self._committing.add(session_id)
        try:
            yield
        finally:
            with self._lock:
                self._committing.discard(session_id)

    def _manifest(self, record: Record, text: str | None) -> Manifest:
        if record.files is not None:
            store = session_store(self._root, record.id)
            data = store.read_range(MANIFEST_NAME, 0, self._settings.max_manifest_bytes)
            return parse_upload(data.decode(), self._settings)
        if text is None:
            raise ApiError(
                "invalid_request",
                "body.manifest: the session was begun without a manifest.",
                hint="Send the content of luma.json with the commit.",
            )
        return parse_upload(text, self._settings)

    def _check_count(self, principal: Principal) -> None:
        count = 0
        for session_id in self._root.private(UPLOADS).folders():
            known = self._known.get(session_id)
            record = known[1] if known else read_record(self._root, session_id)
            count += (
                record is not None
                and record.owner == principal.id
                and record.state == "open"
                and not record.expired
            )
        if count >= self._settings.max_sessions:
            raise ApiError(
                "too_many_sessions",
                f"{count} uploads are open already.",
                hint="Commit or delete one: GET /v1/uploads lists them.",
                headers={"Retry-After": "60"},
            )

    def _clear(self, record: Record, staging: StagingArea, name: str) -> None:
        """Forget a file that is not what was announced, so that it can be sent again."""
        staging.clear(name)
        if name in record.adopted:
            left = {key: value for key, value in record.adopted.items() if key != name}
            self._keep(replace(record, adopted=left))

    def _renewed(self, record: Record | None) -> Record | None:
        """Put off the end of a session in use, once half of its time is over."""
        if record is None or record.state != "open" or record.expired:
            return record
        if record.left_seconds() < self._settings.session_seconds / 2:
            record = replace(record, expires=after(self._settings.session_seconds))
            write_record(self._root, record)
        return record

    def _keep(self, record: Record) -> None:
        write_record(self._root, record)
        with self._lock:
            self._known[record.id] = (time.monotonic(), record)

    def _clean(self, record: Record) -> None:
        """Remove the bytes of a committed session; what is left is swept later."""
        try:
            self.staging(record).discard()
            for name in (MANIFEST_NAME, REPLACING_NAME):
                session_store(self._root, record.id).delete(name)
        except (OSError, StorageError) as error:
            _log.warning("an upload was not cleaned up: %s", error)

    def _forget(self, record: Record) -> None:
        self.staging(record).discard()
        store = session_store(self._root, record.id)
        # The record goes last, so that a sweep that is cut short is made again.
        for name in sorted(store.names(), key=lambda name: name == RECORD_NAME):
            store.delete(name)
        store.remove_folder()
        with self._lock:
            self._known.pop(record.id, None)


def _declared(manifest: Manifest) -> tuple[FileInfo, ...]:
    return tuple(FileInfo(file.name, file.bytes, file.sha256) for file in manifest.files)


def _busy(session_id: str) -> ApiError:
    return ApiError(
        "commit_in_progress",
        f"the upload {session_id} is in use by another request.",
        hint="Try again in a moment.",
        headers={"Retry-After": "1"},
    )


def is_wanted(record: Record, name: str) -> bool:
    """Whether parts of a file are taken."""
    check_name(name)
    if name in record.adopted or name == MANIFEST_NAME:
        return False
    return record.files is None or name == STEP_NAME or record.declared(name) is not None
