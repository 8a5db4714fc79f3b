"""The choice of a staging area, by what keeps the checkpoints."""

from __future__ import annotations

from luma_server.catalog.place import Root
from luma_server.uploads.local import LocalStaging
from luma_server.uploads.remote import RemoteStaging
from luma_server.uploads.staging import UPLOADS, Staging


def open_staging(root: Root, session_id: str, part_bytes: int) -> Staging:
    """Return the staging area of a session."""
    folder = root.private_path(UPLOADS, session_id)
    if folder is not None:
        return LocalStaging(folder, part_bytes)
    return RemoteStaging(root.private(UPLOADS, session_id))
