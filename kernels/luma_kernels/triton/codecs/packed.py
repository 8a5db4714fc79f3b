"""The n-bit codecs as device functions: packed words, and values on their grids.

A lane holds the 8 codes of 8 neighbouring elements in one word, which is as many bytes as a code
has bits. Words are ``[blocks, lanes]``, elements ``[blocks, lanes, 8]`` and what belongs to a block
``[blocks, lanes, 1]`` or ``[blocks, 1]``. ``C`` is the codec: its name, the size of its codes, then
numbers of its own, which `interface.py` lists.
"""

import triton
import triton.language as tl

from luma_kernels.triton.runtime.fastmath import correct_sqrt, reciprocal, saturated

GROUP = tl.constexpr(8)
"""Codes to a word."""

INFINITY = tl.constexpr(0x7F800000)
LARGEST_BFLOAT16 = tl.constexpr(0x7F7F0000)
SMALLEST_SCALE = tl.constexpr((127 - 64) << 23)
LARGEST_FLOAT = tl.constexpr(0x7F7FFFFF)

LOG_BIAS = tl.constexpr(80)
LOG_SMALLEST = tl.constexpr(-74)
LOG_NONFINITE = tl.constexpr(255)
LOG_CUT = tl.constexpr(19)
LOG_UNITS = tl.constexpr(16)
LOG_TOP_SLACK = tl.constexpr(40)
LOG_REACH_QUARTERS = tl.constexpr(7)
LOG_SUM_BITS = tl.constexpr(21)
LOG_COUNT = tl.constexpr(1 << 21)
LOG_SUM = tl.constexpr((1 << 21) - 1)


@triton.constexpr_function
def _unit(BITS):
    """Return the type of the widest pieces that words of ``BITS`` bytes are aligned to."""
    return {1: tl.uint8, 2: tl.uint16, 4: tl.uint32, 8: tl.uint64}[BITS & -BITS]


@triton.jit
def load_words(codes, group, BITS: tl.constexpr):
    """Return the words number ``group`` of ``codes``, uint32 or, above 4 bits, uint64."""
    UNIT: tl.constexpr = _unit(BITS)
    PIECES: tl.constexpr = BITS * 8 // UNIT.primitive_bitwidth
    at = codes.to(tl.pointer_type(UNIT)) + group * PIECES
    WORD: tl.constexpr = tl.uint32 if BITS <= 4 else tl.uint64
    word = tl.load(at).to(WORD)
    for piece in tl.static_range(1, PIECES):
        word |= tl.load(at + piece).to(WORD) << (piece * UNIT.primitive_bitwidth)
    return word


@triton.jit
def store_words(codes, group, word, mask, BITS: tl.constexpr):
    """Write what `load_words` reads."""
    UNIT: tl.constexpr = _unit(BITS)
    PIECES: tl.constexpr = BITS * 8 // UNIT.primitive_bitwidth
    at = codes.to(tl.pointer_type(UNIT)) + group * PIECES
    for piece in tl.static_range(PIECES):
        tl.store(at + piece, (word >> (piece * UNIT.primitive_bitwidth)).to(UNIT), mask=mask)


@triton.jit
def unpack(word, BITS: tl.constexpr):
    """Return the codes of words, uint32 ``[blocks, lanes, 8]``."""
    places = (tl.arange(0, GROUP) * BITS).to(word.dtype)[None, None, :]
    return ((word[:, :, None] >> places) & (2**BITS - 1)).to(tl.uint32)


@triton.jit
def pack(code, BITS: tl.constexpr):
    """Undo `unpack`."""
    WORD: tl.constexpr = tl.uint32 if BITS <= 4 else tl.uint64
    places = (tl.arange(0, GROUP) * BITS).to(WORD)[None, None, :]
    return tl.xor_sum(code.to(WORD) << places, axis=2)


@triton.jit
def _pick(code, C: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr, BIT: tl.constexpr):
    """Return ``C[FIRST + STRIDE * code]`` for codes below ``2**(BIT + 1)``."""
    value = tl.full((), C[FIRST], tl.float32)
    if BIT >= 0:
        upper = _pick(code, C, FIRST + STRIDE * 2**BIT, STRIDE, BIT - 1)
        lower = _pick(code, C, FIRST, STRIDE, BIT - 1)
        value = tl.where(((code >> BIT) & 1) != 0, upper, lower)
    return value


@triton.jit
def table_m_fit(x):
    """Return the bits of the scales, uint32 with the lower half 0: `TableM.fit`."""
    bits = x.to(tl.uint32, bitcast=True)
    # Ordered by magnitude; a positive value comes after a negative one of its size.
    keys = ((bits << 1) | (bits >> 31)) ^ 1
    key = tl.max(tl.max(keys, axis=2), axis=1)[:, None]
    size = key >> 1
    rounded = (size + (0x7FFF + ((size >> 16) & 1))) & 0xFFFF0000
    rounded = tl.minimum(rounded, LARGEST_BFLOAT16) | (((key & 1) ^ 1) << 31)
    return tl.where(size >= INFINITY, INFINITY, rounded)


@triton.jit
def table_m_decode(word, scale, C: tl.constexpr):
    """Return the first moment of words: `TableM.decode`."""
    BITS: tl.constexpr = C[1]
    code = unpack(word, BITS)
    return _pick(code, C, 1 + 2**BITS, 1, BITS - 1) * scale.to(tl.float32, bitcast=True)


@triton.jit
def table_m_encode(x, scale, FAST: tl.constexpr, C: tl.constexpr):
    """Return the words of the first moment: `TableM.encode`, by bisection of the thresholds."""
    BITS: tl.constexpr = C[1]
    # Blocks of zeros make NaN here, which is above no threshold.
    place = x * reciprocal(scale.to(tl.float32, bitcast=True), FAST)
    code = (place > _pick(place, C, 1 + 2 ** (BITS - 1), 1, -1)).to(tl.uint32)
    for level in tl.static_range(1, BITS):
        threshold = _pick(code, C, 1 + 2 ** (BITS - 1 - level), 2 ** (BITS - level), level - 1)
        code = code * 2 + (place > threshold).to(tl.uint32)
    return pack(code, BITS)


@triton.jit
def root_v_fit(largest, old, FAST: tl.constexpr, C: tl.constexpr):
    """Return the bits of the scales, uint32 with the lower half 0: `RootV.refit`.

    ``largest`` are the bits of the blocks' largest second moments, ``old`` those of their scales.
    """
    root = correct_sqrt(largest.to(tl.float32, bitcast=True), FAST).to(tl.uint32, bitcast=True)
    root = tl.where(largest > 0, tl.maximum(root, SMALLEST_SCALE), root)
    scale = (root + 0xFFFF) & 0xFFFF0000
    if C[3] > 0:
        scale = tl.where(old > 0, tl.minimum(scale, old + (C[3] << 16)), scale)
    return tl.where(largest > LARGEST_FLOAT, INFINITY, scale)


@triton.jit
def root_v_decode(word, scale, C: tl.constexpr):
    """Return the second moment of words: `RootV.decode`."""
    BITS: tl.constexpr = C[1]
    # Codes become the leading mantissa bits of numbers from 1 to 2.
    share = (unpack(word, BITS) << (23 - BITS)) | 0x3F800000
    scale = scale.to(tl.float32, bitcast=True)
    STEP: tl.constexpr = (1.0 - C[2]) / (2**BITS - 1)
    offset = tl.where(scale < float("inf"), scale * (C[2] - STEP * 2**BITS), 0.0)
    root = tl.fma(share.to(tl.float32, bitcast=True), scale * (STEP * 2**BITS), offset)
    return root * root


@triton.jit
def root_v_encode(root, scale, bits, FAST: tl.constexpr, C: tl.constexpr):
    """Return the words of the second moment's root: `RootV.encode`."""
    BITS: tl.constexpr = C[1]
    scale = scale.to(tl.float32, bitcast=True)
    SHARE: tl.constexpr = 1.0 / (1.0 - C[2])
    per_scale = tl.where(scale > 0, reciprocal(scale, FAST) * SHARE, 0.0)
    # Places in a fixed-point format, in the mantissa of a number above 2**23.
    FRACTION: tl.constexpr = 16 if BITS <= 6 else 15
    place = saturated(root, per_scale, -C[2] * SHARE, FAST)
    place = tl.fma(place, (2**BITS - 1) * 2.0**FRACTION, 8388608.0)
    code = (place.to(tl.uint32, bitcast=True) + (bits >> (32 - FRACTION))) >> FRACTION
    return pack(code & (2**BITS - 1), BITS)


@triton.jit
def _log_mantissa(need, window, LIMIT: tl.constexpr):
    """Return the most mantissa bits whose window holds ``need``, unlimited: `LogV._mantissa`."""
    return ((window * LIMIT).to(tl.int32, bitcast=True) - need.to(tl.int32, bitcast=True)) >> 23


@triton.jit
def log_v_fit(x, largest, old_exponent, old_mantissa, C: tl.constexpr):
    """Return exponents and mantissas as they are stored, int32: `LogV.refit`.

    ``largest`` are the bits of the blocks' largest second moments.
    """
    size = x.to(tl.uint32, bitcast=True) >> LOG_CUT
    # Number and sum of the logarithms in one word, to add up both at once.
    both = tl.sum(tl.sum(size + tl.minimum(size, 1) * LOG_COUNT, axis=2), axis=1)[:, None]
    count = (both >> LOG_SUM_BITS).to(tl.int32)
    total = (both & LOG_SUM).to(tl.int32)
    largest_bits = largest.to(tl.int32)
    top = largest_bits >> LOG_CUT
    exponent = (((largest_bits - 1) >> 23) - 125) >> 1
    old = old_exponent - LOG_BIAS
    fits = (exponent <= old) & (top > (2 * old + 127) * LOG_UNITS - LOG_TOP_SLACK)
    exponent = tl.where(fits & (old_exponent > 0), old, exponent)
    gap = (2 * exponent + 127) * LOG_UNITS - top
    need = (gap * count * 4 + (top * count - total) * LOG_REACH_QUARTERS).to(tl.float32)
    window = count.to(tl.float32)
    held = tl.maximum(old_mantissa, _log_mantissa(need, window, C[4]))
    held = tl.minimum(held, _log_mantissa(need, window, C[3]))
    mantissa = tl.where(old_exponent > 0, held, _log_mantissa(need, window, C[2]))
    octaves = (exponent - LOG_SMALLEST).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    mantissa = tl.maximum(mantissa, tl.maximum(C[1] + 127 - octaves, 0))
    mantissa = tl.minimum(mantissa, C[1] - 1)
    exponent = tl.where(largest_bits > 0, exponent + LOG_BIAS, 0)
    exponent = tl.where(largest > LARGEST_FLOAT, LOG_NONFINITE, exponent)
    return exponent, tl.where(largest_bits > 0, mantissa, 0)


@triton.jit
def _log_lowest(exponent, mantissa, C: tl.constexpr):
    """Return the bits of the lowest level, int32."""
    BITS: tl.constexpr = C[1]
    return ((exponent + (127 - LOG_BIAS)) << 23) - ((2**BITS - 1) << (23 - mantissa))


@triton.jit
def log_v_decode(word, exponent, mantissa, C: tl.constexpr):
    """Return the second moment of words: `LogV.decode`."""
    BITS: tl.constexpr = C[1]
    # All levels of blocks of zeros are 0, and those of blocks that are not finite infinity.
    flat = (exponent == 0) | (exponent == LOG_NONFINITE)
    lowest = tl.where(exponent == 0, 0, _log_lowest(exponent, mantissa, C))
    lowest = tl.where(exponent == LOG_NONFINITE, INFINITY, lowest)
    step = tl.where(flat, 0, 1 << (23 - mantissa))
    root = (unpack(word, BITS).to(tl.int32) * step + lowest).to(tl.float32, bitcast=True)
    return root * root


@triton.jit
def log_v_encode(root, exponent, mantissa, bits, C: tl.constexpr):
    """Return the words of the second moment's root: `LogV.encode`."""
    BITS: tl.constexpr = C[1]
    place = root.to(tl.int32, bitcast=True) - _log_lowest(exponent, mantissa, C)
    noise = (bits >> 16).to(tl.int32) * (1 << (7 - mantissa))
    code = (tl.maximum(place, 0) + noise) >> (23 - mantissa)
    if BITS > 6:
        # With fewer bits the noise ends so far below a step that an approximate root at the top,
        # too large by a unit or two, does not carry into the next code.
        code = tl.minimum(code, 2**BITS - 1)
    return pack(code.to(tl.uint32), BITS)
