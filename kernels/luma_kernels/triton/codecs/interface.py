"""The one interface of codecs to kernels: a tile of a moment in any codec.

Kernels `load_codes` and `load_scales`, `decode`, `fit`, `encode`, `store_codes` and `store_scales`;
first moments that are divided by a root they `round_down_below` before.

The codec ``C`` is a compile-time tuple that begins with the codec's name:

- ``("fp32",)`` and ``("bf16",)``;
- ``("fp8_e4m3", mantissa bits, octaves)``;
- ``("luma16_m", mantissa bits, octaves)`` and ``("luma16_v", mantissa bits, octaves)``;
- ``("table_m", bits, thresholds..., levels...)``;
- ``("root_v", bits, floor, rise or 0)``;
- ``("log_v", bits, limit, wider limit, narrower limit)``.

Stored values are ``[blocks, lanes, LANE]``, or ``[blocks, lanes]`` words where ``packed``. Two
numbers for each block go with them, ``scale`` and ``window``: exponents, scales as float32 bits, or
zeros where the codec has none.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from luma_kernels.triton.codecs.fp8 import fp8_e4m3_decode, fp8_e4m3_encode
from luma_kernels.triton.codecs.log_grid import (
    fit_exponent,
    grid_round_down_below,
    luma16_m_decode,
    luma16_m_encode,
    luma16_v_decode,
    luma16_v_encode,
)
from luma_kernels.triton.codecs.packed import (
    load_words,
    log_v_decode,
    log_v_encode,
    log_v_fit,
    root_v_decode,
    root_v_encode,
    root_v_fit,
    store_words,
    table_m_decode,
    table_m_encode,
    table_m_fit,
)
from luma_kernels.triton.runtime.noise import to_bfloat16
from luma_kernels.triton.runtime.tables import (
    FIRST,
    FIRST_EXPONENT,
    GRAD,
    NONFINITE,
    PARAM,
    SECOND,
    SECOND_EXPONENT,
    SECOND_WINDOW,
    pointer_of,
)

ANY_CACHE = tl.constexpr("")
"""The modifier of loads that use all caches."""

WITHOUT_MASK = tl.constexpr(False)


@triton.jit
def load(pointer, mask, MASKED: tl.constexpr, CACHE: tl.constexpr = ANY_CACHE):
    """Load, with the mask where there is one; ``CACHE`` is a modifier of Triton's."""
    if MASKED:
        return tl.load(pointer, mask=mask, other=0, cache_modifier=CACHE)
    return tl.load(pointer, cache_modifier=CACHE)


@triton.jit
def store(pointer, value, mask, MASKED: tl.constexpr):
    """Store, with the mask where there is one."""
    if MASKED:
        tl.store(pointer, value, mask=mask)
    else:
        tl.store(pointer, value)


@triton.constexpr_function
def packed(C):
    """Return whether codes are packed into words; ``None`` is no moment."""
    return C is not None and C[0] in ("table_m", "root_v", "log_v")


@triton.constexpr_function
def coarse(C):
    """Return whether quotients of moments are bounded: `luma_core.codecs.Codec.coarse`."""
    return C is not None and C[0] in ("table_m", "root_v", "log_v", "fp8_e4m3")


@triton.constexpr_function
def relative(C):
    """Return whether small values keep their precision: `luma_core.codecs.Codec.relative`."""
    return C is not None and C[0] in ("fp32", "bf16")


@triton.constexpr_function
def scaled(C):
    """Return whether the codec keeps anything for a block."""
    return C is not None and C[0] not in ("fp32", "bf16")


@triton.jit
def codes_pointer(entry, FIELD: tl.constexpr, ALIGNED: tl.constexpr, C: tl.constexpr):
    """Return a tensor's codes, or values."""
    if C[0] == "fp32":
        pointer = pointer_of(entry, FIELD, tl.float32, ALIGNED)
    elif C[0] == "bf16":
        pointer = pointer_of(entry, FIELD, tl.bfloat16, ALIGNED)
    elif packed(C) or C[0] == "fp8_e4m3":
        pointer = pointer_of(entry, FIELD, tl.uint8, ALIGNED)
    else:
        pointer = pointer_of(entry, FIELD, tl.int16, ALIGNED)
    return pointer


class Pointers(NamedTuple):
    """A tensor's base pointers.

    Attributes:
        first: codes or values of the first moment, with `first_scale`.
        second: those of the second, with `second_scale` and `second_window`.
        nonfinite: the counter of non-finite blocks.
    """

    param: Any
    grad: Any
    first: Any
    second: Any
    first_scale: Any
    second_scale: Any
    nonfinite: Any
    second_window: Any


@triton.jit
def tensor_pointers(
    entry, P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, M: tl.constexpr, V: tl.constexpr
):
    """Return a tensor's base pointers; ``V`` is ``None`` where there is one moment."""
    return Pointers(
        pointer_of(entry, PARAM, P, ALIGNED),
        pointer_of(entry, GRAD, G, ALIGNED),
        codes_pointer(entry, FIRST, ALIGNED, M),
        codes_pointer(entry, SECOND, ALIGNED, M if V is None else V),
        pointer_of(entry, FIRST_EXPONENT, tl.uint8, False),
        pointer_of(entry, SECOND_EXPONENT, tl.uint8, False),
        pointer_of(entry, NONFINITE, tl.int64, False),
        pointer_of(entry, SECOND_WINDOW, tl.uint8, False),
    )


@triton.jit
def load_codes(
    codes,
    offset,
    group,
    mask,
    MASKED: tl.constexpr,
    C: tl.constexpr,
    CACHE: tl.constexpr = ANY_CACHE,
):
    """Load stored values.

    ``offset`` are element offsets, ``[blocks, lanes, LANE]``, and ``group`` numbers of lanes,
    ``[blocks, lanes]``, counted in whole blocks. Packed codes fill whole blocks, so the mask is
    not for them.
    """
    return (
        load_words(codes, group, C[1]) if packed(C) else load(codes + offset, mask, MASKED, CACHE)
    )


@triton.jit
def store_codes(
    codes, offset, group, coded, block_mask, mask, MASKED: tl.constexpr, C: tl.constexpr
):
    """Store what `encode` returned; ``block_mask`` is ``mask`` by lane, for packed codes."""
    if packed(C):
        store_words(codes, group, coded, block_mask, C[1])
    else:
        store(codes + offset, coded, mask, MASKED)


@triton.jit
def load_scales(
    scales, windows, block, C: tl.constexpr, mask=None, MASKED: tl.constexpr = WITHOUT_MASK
):
    """Load ``scale`` and ``window`` of the blocks at the offsets ``block``."""
    window = tl.zeros_like(block).to(tl.int32)
    scale = window
    if C[0] == "table_m" or C[0] == "root_v":
        stored = load(scales.to(tl.pointer_type(tl.uint16)) + block, mask, MASKED)
        scale = stored.to(tl.uint32) << 16
    elif scaled(C):
        scale = load(scales + block, mask, MASKED).to(tl.int32)
        if C[0] == "log_v":
            window = load(windows + block, mask, MASKED).to(tl.int32)
    return scale, window


@triton.jit
def store_scales(scales, windows, block, scale, window, mask, C: tl.constexpr):
    """Store what `fit` returned."""
    if C[0] == "table_m" or C[0] == "root_v":
        at = scales.to(tl.pointer_type(tl.uint16)) + block
        tl.store(at, (scale >> 16).to(tl.uint16), mask=mask)
    elif scaled(C):
        tl.store(scales + block, scale.to(tl.uint8), mask=mask)
        if C[0] == "log_v":
            tl.store(windows + block, window.to(tl.uint8), mask=mask)


@triton.jit
def decode(raw, scale, window, C: tl.constexpr):
    """Return a moment, float32 ``[blocks, lanes, LANE]``; scales must broadcast to that."""
    if C[0] == "luma16_m":
        x = luma16_m_decode(raw, scale, C)
    elif C[0] == "luma16_v":
        x = luma16_v_decode(raw, scale, C)
    elif C[0] == "fp8_e4m3":
        x = fp8_e4m3_decode(raw, scale, C)
    elif C[0] == "table_m":
        x = table_m_decode(raw, scale, C)
    elif C[0] == "root_v":
        x = root_v_decode(raw, scale, C)
    elif C[0] == "log_v":
        x = log_v_decode(raw, scale, window, C)
    else:
        x = raw.to(tl.float32)
    return x


@triton.jit
def fit(
    x,
    root,
    largest,
    scale,
    window,
    finite,
    SKIP: tl.constexpr,
    FAST: tl.constexpr,
    C: tl.constexpr,
):
    """Return the new ``scale`` and ``window`` of blocks from the old ones.

    ``x`` is the new moment and ``root``, of a second moment, its square root; ``largest`` are the
    bits of the blocks' largest magnitudes. ``finite`` says which blocks are finite; with ``SKIP``
    the others are not stored and do not matter.
    """
    if C[0] == "luma16_m" or C[0] == "luma16_v" or C[0] == "fp8_e4m3":
        size = largest.to(tl.float32, bitcast=True)
        if C[0] == "luma16_v":
            size = tl.sqrt(size)
        scale = fit_exponent(size, C[2])
        if not SKIP:
            scale = tl.where(finite, scale, 254)
    elif C[0] == "table_m":
        scale = table_m_fit(x)
    elif C[0] == "root_v":
        scale = root_v_fit(largest, scale, FAST, C)
    elif C[0] == "log_v":
        scale, window = log_v_fit(x, largest, scale, window, C)
    return scale, window


@triton.jit
def round_down_below(x, root, scale, C: tl.constexpr):
    """Return a first moment that codes never exceed: `luma_core.codecs.Codec.round_down_below`."""
    if C[0] == "luma16_m" or C[0] == "fp8_e4m3":
        x = grid_round_down_below(x, root, scale, C[1])
    return x


@triton.jit
def encode(x, root, scale, window, bits, FAST: tl.constexpr, C: tl.constexpr):
    """Return a moment's stored values; ``bits`` are 32 random bits per element, uint32."""
    if C[0] == "luma16_m":
        coded = luma16_m_encode(x, scale, bits, C)
    elif C[0] == "luma16_v":
        coded = luma16_v_encode(root, scale, bits, C)
    elif C[0] == "fp8_e4m3":
        coded = fp8_e4m3_encode(x, scale, bits, C)
    elif C[0] == "table_m":
        coded = table_m_encode(x, scale, FAST, C)
    elif C[0] == "root_v":
        coded = root_v_encode(root, scale, bits, FAST, C)
    elif C[0] == "log_v":
        coded = log_v_encode(root, scale, window, bits, C)
    elif C[0] == "bf16":
        coded = to_bfloat16(x, bits & 0xFFFF)
    else:
        coded = x
    return coded
