"""Which servers over a root are alive."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable

from luma_core.checkpoint.storage.names import is_safe_name
from luma_core.errors import ConcurrentSaveError
from luma_server.catalog.claims import LostClaimError, held, is_held, remove_left
from luma_server.catalog.place import Root

SILENT_SECONDS = 60.0
"""A server on a root without locks that gave no sign of life for that long is gone."""

_SERVERS = "servers"
_ID_BYTES = 16
_TRIES = 10
_WAIT_SECONDS = 0.1


class Presence:
    """This server's sign of life, and those of others. Thread-safe; its methods block.

    A server holds a folder of its own, which no other will ever have, for as long as its process
    lives; neither the number of a process nor the name of a machine tells as much.

    Args:
        root: where checkpoints are.
    """

    def __init__(self, root: Root) -> None:
        self._servers = root.private(_SERVERS)
        self._lock = threading.Lock()
        self._id = secrets.token_hex(_ID_BYTES)
        self._holding = contextlib.ExitStack()
        self._check: Callable[[], None] | None = None

    def enter(self) -> str:
        """Show that this server is alive, from now on, and again where others think it gone.

        Returns:
            The id of this server.

        Raises:
            OSError: the store failed.
            ConcurrentSaveError: others look for servers that are gone again and again.
        """
        with self._lock:
            if self._check is not None:
                try:
                    self._check()
                    return self._id
                except LostClaimError:
                    self._holding.close()
                    self._check = None
            self._check = self._take()
            return self._id

    def _take(self) -> Callable[[], None]:
        for _ in range(_TRIES - 1):
            # Whoever removes what is left of others may have it this very moment.
            with contextlib.suppress(ConcurrentSaveError):
                return self._hold()
            time.sleep(_WAIT_SECONDS)
        return self._hold()

    def _hold(self) -> Callable[[], None]:
        own = self._servers.folder(self._id)
        return self._holding.enter_context(held(own, self._id, stale_seconds=SILENT_SECONDS))

    def leave(self) -> None:
        """End that."""
        with self._lock:
            self._check = None
            self._holding.close()

    def is_there(self, server: str) -> bool:
        """Return whether a server is alive.

        Args:
            server: its id.

        Raises:
            OSError: the store failed.
        """
        if not is_safe_name(server):
            return False
        return is_held(self._servers.folder(server), stale_seconds=SILENT_SECONDS)

    def sweep(self) -> None:
        """Remove what is left of servers that are gone.

        Raises:
            OSError: the store failed.
        """
        remove_left(self._servers, stale_seconds=SILENT_SECONDS)
