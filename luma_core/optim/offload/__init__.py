"""Optimizer state that lives in the host's memory or in files, and comes to the step in pieces."""

from luma_core.optim.offload.choice import choose_offload
from luma_core.optim.offload.load_arena import AwaitedTensor, LoadArena
from luma_core.optim.offload.offloader import OffloadedPlan, Offloader
from luma_core.optim.offload.options import DEFAULT_BUFFER_BYTES, OffloadOptions, offload_options
from luma_core.optim.offload.snapshot import Snapshot

__all__ = [
    "DEFAULT_BUFFER_BYTES",
    "AwaitedTensor",
    "LoadArena",
    "OffloadOptions",
    "OffloadedPlan",
    "Offloader",
    "Snapshot",
    "choose_offload",
    "offload_options",
]
