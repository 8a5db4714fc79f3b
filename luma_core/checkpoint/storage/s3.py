"""S3 and what speaks its protocol: parts uploaded while writing, conditional PUT where it works."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luma_core.checkpoint.storage.commit import CommitStrategy, ConditionalPut, ManifestLast
from luma_core.checkpoint.storage.names import check_name, is_safe_name
from luma_core.checkpoint.storage.remote import FsspecStore, plain_errors
from luma_core.checkpoint.storage.store import ABSENT, ObjectWriter, Version, changed_meanwhile

PART_BYTES = 16 << 20
"""S3 allows 10,000 parts, so an object has at most 160 GB."""

PARTS_IN_FLIGHT = 2

_CONFIG = {
    "retries": {"mode": "standard", "max_attempts": 5},
    # Some servers repeat the checksum of the whole object for a range of it. Ours are checked.
    "response_checksum_validation": "when_required",
}
_NONCE = "luma-write"
_PRECONDITION_FAILED, _CONFLICT, _INVALID_RANGE = 412, 409, 416

_conditional: dict[tuple[str, str], bool] = {}
_probing = threading.Lock()


class S3Store(FsspecStore):
    """A prefix of a bucket, through s3fs.

    Credentials and the endpoint come from where s3fs and botocore look for them: environment
    variables (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...), their files, or ``options``.

    Args:
        url: ``s3://bucket/prefix``.
        options: more arguments of ``s3fs.S3FileSystem``.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        self._options = options
        configured = fsspec.config.conf.get("s3", {})
        kind = fsspec.get_filesystem_class("s3")
        # Timeouts, resets and 5xx are retried by botocore; 403 and 404 are not.
        config = {"config_kwargs": {**_CONFIG, **configured.get("config_kwargs", {})}}
        with plain_errors():
            fs = kind(use_listings_cache=False, **{**config, **options})
        super().__init__(fs, kind._strip_protocol(url), url)
        self.bucket, _, self.prefix = self.path.partition("/")

    def folder(self, name: str) -> S3Store:
        return S3Store(f"{self.url}/{check_name(name)}", **self._options)

    def beside(self, name: str) -> S3Store:
        parent = self.url[: -len(self.place[1])]
        return S3Store(f"{parent}{check_name(name)}", **self._options)

    def key(self, name: str) -> str:
        """Return the object's key."""
        return f"{self.prefix}/{check_name(name)}" if self.prefix else check_name(name)

    def request(self, method: str, name: str, **arguments: Any) -> Any:
        """Send a request about one object and wait for the answer."""
        key = self.key(name)
        with plain_errors():
            return self.fs.call_s3(method, Bucket=self.bucket, Key=key, **arguments)

    def begin(self, method: str, name: str, **arguments: Any) -> Future[Any]:
        """Send a request about one object and return what its answer will be."""
        sent: Coroutine[Any, Any, Any] = self.fs._call_s3(
            method, Bucket=self.bucket, Key=self.key(name), **arguments
        )
        return asyncio.run_coroutine_threadsafe(sent, self.fs.loop)

    @property
    def strategy(self) -> CommitStrategy:
        """Conditional PUT where the endpoint honours it, which is tried once per process."""
        return ConditionalPut() if self._honours_conditions() else ManifestLast()

    def _honours_conditions(self) -> bool:
        with plain_errors():
            endpoint = str(self.fs.s3.meta.endpoint_url)
        if (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com"):
            return True
        with _probing:
            known = _conditional.get((endpoint, self.bucket))
            if known is None:
                known = _conditional[endpoint, self.bucket] = self._probe()
        return known

    def _probe(self) -> bool:
        """Whether an object is refused that must not exist, or must be another."""
        name = f"luma-probe-{secrets.token_hex(8)}"
        self.request("put_object", name, Body=b"1")
        try:
            return all(
                self._refused(name, **condition)
                for condition in ({"IfNoneMatch": "*"}, {"IfMatch": f'"{secrets.token_hex(16)}"'})
            )
        finally:
            self.delete(name)

    def _refused(self, name: str, **condition: str) -> bool:
        try:
            self.request("put_object", name, Body=b"2", **condition)
        except OSError as error:
            if status(error) == _PRECONDITION_FAILED:
                return True
            # A store that does not know the header may say so instead of ignoring it.
            if status(error) in (400, 501):
                return False
            raise
        return False

    def write(self, name: str, *, expected: Version | None = None) -> ObjectWriter:
        if expected is not None and not self._honours_conditions():
            return super().write(name, expected=expected)
        return S3Writer(self, name, expected)

    def put(self, name: str, data: bytes | Path) -> None:
        body = data if isinstance(data, bytes) else data.read_bytes()
        self.request("put_object", name, Body=body)

    def head(self, name: str) -> dict[str, Any] | None:
        """Return what the store tells about an object, or ``None`` where there is none."""
        try:
            found: dict[str, Any] = self.request("head_object", name)
        except FileNotFoundError:
            return None
        return found

    def size(self, name: str) -> int | None:
        found = self.head(name)
        return None if found is None else int(found["ContentLength"])

    def version(self, name: str) -> Version:
        found = self.head(name)
        return ABSENT if found is None else Version(found["ETag"])

    def modified(self, name: str) -> float | None:
        found = self.head(name)
        return None if found is None else float(found["LastModified"].timestamp())

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        try:
            return super().read_range(name, start, stop)
        except OSError as error:
            if status(error) == _INVALID_RANGE:
                return b""
            raise

    def discard_leftovers(self, *, older_than_seconds: float = 0) -> None:
        """Abort uploads that were begun that long ago and never completed."""
        latest = time.time() - older_than_seconds
        prefix = f"{self.prefix}/" if self.prefix else ""
        with plain_errors():
            found = self.fs.call_s3("list_multipart_uploads", Bucket=self.bucket, Prefix=prefix)
        for upload in found.get("Uploads", ()):
            name = upload["Key"].removeprefix(prefix)
            if is_safe_name(name) and upload["Initiated"].timestamp() <= latest:
                with contextlib.suppress(FileNotFoundError):
                    self.request("abort_multipart_upload", name, UploadId=upload["UploadId"])

    def remove_folder(self) -> None:
        """Remove the marker that some servers and tools keep for an empty prefix."""
        if self.prefix and not self._listing():
            with plain_errors():
                self.fs.call_s3("delete_object", Bucket=self.bucket, Key=f"{self.prefix}/")


def status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of s3fs, or ``None``."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return found if isinstance(found, int) else None


class S3Writer(ObjectWriter):
    """Uploads an object in parts while it is written; it appears when the upload is completed.

    An object of less than a part, or with an expected version, is put in one request.

    Args:
        store: where to.
        name: of the object.
        expected: what may be replaced.
    """

    def __init__(self, store: S3Store, name: str, expected: Version | None) -> None:
        self._store = store
        self._name = check_name(name)
        self._expected = expected
        self._buffer: bytearray | None = bytearray()
        self._upload: str | None = None
        self._sent: list[Future[Any]] = []
        self._waiting: deque[Future[Any]] = deque()
        # Tells whether an object is ours when the answer to its commit was lost on the way.
        self._nonce = secrets.token_hex(16)

    def write(self, data: bytes | memoryview) -> None:
        if self._buffer is None:
            raise ValueError(f"{self._name} is committed or discarded")
        self._buffer += data
        while self._expected is None and len(self._buffer) >= PART_BYTES:
            part = bytes(memoryview(self._buffer)[:PART_BYTES])
            del self._buffer[:PART_BYTES]
            self._send(part)

    def _send(self, part: bytes) -> None:
        if self._upload is None:
            begun = self._store.request(
                "create_multipart_upload", self._name, Metadata={_NONCE: self._nonce}
            )
            self._upload = begun["UploadId"]
        with plain_errors():
            while len(self._waiting) >= PARTS_IN_FLIGHT:
                self._waiting.popleft().result()
        number = len(self._sent) + 1
        sent = self._store.begin(
            "upload_part", self._name, UploadId=self._upload, PartNumber=number, Body=part
        )
        self._sent.append(sent)
        self._waiting.append(sent)

    def commit(self) -> None:
        if self._buffer is None:
            raise ValueError(f"{self._name} is committed or discarded")
        try:
            self._put() if self._upload is None else self._complete()
        except OSError as error:
            if not self._is_there():
                if status(error) in (_PRECONDITION_FAILED, _CONFLICT) and self._expected:
                    place = f"{self._store.url}/{self._name}"
                    raise changed_meanwhile(place) from error
                raise
        self._buffer = None
        self._upload = None

    def _put(self) -> None:
        condition = {}
        if self._expected is not None:
            token = self._expected.token
            condition = {"IfMatch": token} if token else {"IfNoneMatch": "*"}
        self._store.request(
            "put_object",
            self._name,
            Body=bytes(self._buffer or b""),
            Metadata={_NONCE: self._nonce},
            **condition,
        )

    def _complete(self) -> None:
        if self._buffer:
            self._send(bytes(self._buffer))
        with plain_errors():
            tags = [sent.result()["ETag"] for sent in self._sent]
        parts = [{"PartNumber": i, "ETag": tag} for i, tag in enumerate(tags, start=1)]
        self._store.request(
            "complete_multipart_upload",
            self._name,
            UploadId=self._upload,
            MultipartUpload={"Parts": parts},
        )

    def _is_there(self) -> bool:
        try:
            found = self._store.head(self._name)
        except OSError:
            return False
        return found is not None and found.get("Metadata", {}).get(_NONCE) == self._nonce

    def discard(self) -> None:
        self._buffer = None
        upload, self._upload = self._upload, None
        if upload is None:
            return
        for sent in self._waiting:
            sent.cancel()
        # A part that arrives after the abort would stay, and be paid for.
        wait(self._waiting)
        with contextlib.suppress(OSError):
            self._store.request("abort_multipart_upload", self._name, UploadId=upload)
