"""Compressed optimizer state: optimizers, codecs, checkpoints and converters.

``import luma_core`` needs PyTorch only; it loads neither Triton nor any web package and starts no
CUDA context. Checkpoints are in `luma_core.checkpoint`, converters in `luma_core.convert`,
statistics in `luma_core.stats`.
"""

from luma_core._version import __version__
from luma_core.optim import LAMB, LUMA, AdamMini, AdamW, TurboAdam

__all__ = ["LAMB", "LUMA", "AdamMini", "AdamW", "TurboAdam", "__version__"]
