"""What takes steps and codes moments: eager PyTorch, the native CPU library, Triton kernels.

`registry` chooses among them. Codecs and rules know none of them; kernels are imported when they
are first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.lazy import export_lazily

if TYPE_CHECKING:
    from luma_core.backends.coding import decode, encode
else:
    __getattr__, __dir__ = export_lazily(
        __name__, {"luma_core.backends.coding": ["decode", "encode"]}
    )

__all__ = ["decode", "encode"]
