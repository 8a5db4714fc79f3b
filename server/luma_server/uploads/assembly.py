"""Assembly of files inside a store, without the bytes passing through here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from luma_core.checkpoint.storage.remote import FsspecStore
from luma_core.checkpoint.storage.s3 import S3Store
from luma_core.checkpoint.storage.store import Store

MIN_PART_BYTES = 5 << 20
"""S3 assembles objects of parts that have that many bytes, but for the last."""

_MAX_PARTS = 10_000
_AT_ONCE = 4


def copy(source: Store, source_name: str, target: Store, name: str) -> None:
    """Copy an object."""
    assert isinstance(source, FsspecStore)
    assert isinstance(target, FsspecStore)
    if source.path_of(source_name) == target.path_of(name):
        return
    target.call("makedirs", target.path, exist_ok=True)
    target.call("cp_file", source.path_of(source_name), target.path_of(name))


def assemble(
    source: Store,
    parts: list[tuple[str, int]],
    target: Store,
    name: str,
    tick: Callable[[], None],
) -> bool:
    """Make one object of several; return whether this store can do that.

    Args:
        source: where the parts are.
        parts: names and sizes in bytes, in order.
        target: where the whole shall be.
        name: of the whole.
        tick: called after each part; raises where somebody else went on with it.

    Raises:
        OSError: the store failed; there is no new object then.
    """
    if len(parts) == 1:
        copy(source, parts[0][0], target, name)
        return True
    small = any(size < MIN_PART_BYTES for _, size in parts[:-1])
    if small or len(parts) > _MAX_PARTS:
        return False
    if not (isinstance(source, S3Store) and isinstance(target, S3Store)):
        return False
    upload = target.request("create_multipart_upload", name)["UploadId"]
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:

            def copy_part(number: int) -> dict[str, Any]:
                found = target.request(
                    "upload_part_copy",
                    name,
                    UploadId=upload,
                    PartNumber=number,
                    CopySource={"Bucket": source.bucket, "Key": source.key(parts[number - 1][0])},
                )
                return {"PartNumber": number, "ETag": found["CopyPartResult"]["ETag"]}

            copied = []
            for one in pool.map(copy_part, range(1, len(parts) + 1)):
                copied.append(one)
                tick()
        target.request(
            "complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": copied}
        )
    except BaseException:
        with suppress(OSError):
            target.request("abort_multipart_upload", name, UploadId=upload)
        raise
    return True
