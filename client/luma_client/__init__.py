"""The client of a LUMA server, and the ``luma`` command line.

Importing the package loads nothing else, so that the command line answers quickly; its names are
loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luma_client.client import Client
    from luma_core.wire import CheckpointInfo, Health

__all__ = ["CheckpointInfo", "Client", "Health"]

_HOMES = {
    "CheckpointInfo": "luma_core.wire",
    "Client": "luma_client.client",
    "Health": "luma_core.wire",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
