"""The client of a LUMA server, and the ``luma`` command line.

Importing the package loads nothing else, so that the command line answers quickly; its names are
loaded when they are first used. fsspec finds ``luma://`` by the package's entry point.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luma_client.client import AsyncClient, Client
    from luma_client.exchange import Retries
    from luma_client.filesystem import LumaFileSystem
    from luma_client.store import LumaStore
    from luma_core.wire import CheckpointInfo, Health

__all__ = [
    "AsyncClient",
    "CheckpointInfo",
    "Client",
    "Health",
    "LumaFileSystem",
    "LumaStore",
    "Retries",
]

_HOMES = {
    "AsyncClient": "luma_client.client",
    "CheckpointInfo": "luma_core.wire",
    "Client": "luma_client.client",
    "Health": "luma_core.wire",
    "LumaFileSystem": "luma_client.filesystem",
    "LumaStore": "luma_client.store",
    "Retries": "luma_client.exchange",
}

# fsspec reads entry points once; one that was loaded before this package was installed has not.
if (_fsspec := sys.modules.get("fsspec")) is not None:
    for _protocol in ("luma", "luma+http"):
        _home = "luma_client.filesystem.LumaFileSystem"
        _fsspec.register_implementation(_protocol, _home, clobber=True)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
