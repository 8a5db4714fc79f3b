"""The native CPU path: a step in one pass, and fast encoding and decoding of one moment."""

from luma_kernels.cpu.coding import decode, encode
from luma_kernels.cpu.library import NativeStatus, native_status
from luma_kernels.cpu.step import step_parameter, unsupported_codecs, unsupported_step

__all__ = [
    "NativeStatus",
    "decode",
    "encode",
    "native_status",
    "step_parameter",
    "unsupported_codecs",
    "unsupported_step",
]
