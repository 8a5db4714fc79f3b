"""The native CPU path: a step in one pass, and fast encoding and decoding of one moment."""

from luma_kernels.cpu.coding import decode, encode
from luma_kernels.cpu.library import NativeStatus, native_status, use_instruction_set
from luma_kernels.cpu.norms import square_digits
from luma_kernels.cpu.plan import plan_steps
from luma_kernels.cpu.step import step_parameter, unsupported_codecs, unsupported_step
from luma_kernels.cpu.summary import count_codes, summarize

__all__ = [
    "NativeStatus",
    "count_codes",
    "decode",
    "encode",
    "native_status",
    "plan_steps",
    "square_digits",
    "step_parameter",
    "summarize",
    "unsupported_codecs",
    "unsupported_step",
    "use_instruction_set",
]
