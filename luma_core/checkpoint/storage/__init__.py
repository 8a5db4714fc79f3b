"""Where checkpoints are kept: the contract of a store, and the stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.lazy import export_lazily

if TYPE_CHECKING:
    from luma_core.checkpoint.storage.names import check_name
    from luma_core.checkpoint.storage.open import open_store
    from luma_core.checkpoint.storage.store import Store
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "luma_core.checkpoint.storage.names": ["check_name"],
            "luma_core.checkpoint.storage.open": ["open_store"],
            "luma_core.checkpoint.storage.store": ["Store"],
        },
    )

__all__ = ["Store", "check_name", "open_store"]
