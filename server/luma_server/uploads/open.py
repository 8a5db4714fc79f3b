"""The choice of a staging area, by what keeps the checkpoints."""

from __future__ import annotations

from luma_server.catalog.place import Root
from luma_server.uploads.local import LocalStagingArea
from luma_server.uploads.remote import RemoteStagingArea
from luma_server.uploads.staging import UPLOADS, StagingArea


def open_staging(root: Root, session_id: str, part_bytes: int) -> StagingArea:
    """Return the staging area of a session."""
    folder = root.private_path(UPLOADS, session_id)
    if folder is not None:
        return LocalStagingArea(folder, part_bytes)
    return RemoteStagingArea(root.private(UPLOADS, session_id))
