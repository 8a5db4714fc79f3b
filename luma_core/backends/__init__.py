"""What takes steps and codes moments: eager PyTorch, the native CPU library, Triton kernels.

`registry` chooses among them. Codecs and rules know none of them; kernels are imported when they
are first needed.
"""

from luma_core.backends.coding import decode, encode

__all__ = ["decode", "encode"]
