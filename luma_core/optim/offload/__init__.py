"""Optimizer state that lives in the host's memory or in files, and comes to the step in pieces."""

from luma_core.optim.offload.choice import chosen_offload
from luma_core.optim.offload.offloader import OffloadedBatch, Offloader
from luma_core.optim.offload.options import DEFAULT_BUFFER_BYTES, OffloadOptions, offload_options

__all__ = [
    "DEFAULT_BUFFER_BYTES",
    "OffloadOptions",
    "OffloadedBatch",
    "Offloader",
    "chosen_offload",
    "offload_options",
]
