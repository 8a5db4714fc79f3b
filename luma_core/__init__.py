"""Compressed optimizer state: optimizers, codecs, checkpoints and converters.

``import luma_core`` loads neither PyTorch nor NumPy, neither Triton nor any web package. What
it exports is imported when it is first used. Checkpoints are in `luma_core.checkpoint`, converters
in `luma_core.convert`, statistics in `luma_core.stats`, names of all there is in
`luma_core.catalog`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core._version import __version__
from luma_core.lazy import export_lazily

if TYPE_CHECKING:
    from luma_core.optim import (
        LAMB,
        LUMA,
        Adam,
        AdamMini,
        AdamW,
        Lion,
        Muon,
        NAdamW,
        QHAdamW,
        RAdam,
        TurboAdam,
    )
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "luma_core.optim": [
                "LAMB",
                "LUMA",
                "Adam",
                "AdamMini",
                "AdamW",
                "Lion",
                "Muon",
                "NAdamW",
                "QHAdamW",
                "RAdam",
                "TurboAdam",
            ],
        },
    )

__all__ = [
    "LAMB",
    "LUMA",
    "Adam",
    "AdamMini",
    "AdamW",
    "Lion",
    "Muon",
    "NAdamW",
    "QHAdamW",
    "RAdam",
    "TurboAdam",
    "__version__",
]
