"""Codecs as kernels take them: the compile-time tuples that `moments.py` describes."""

from __future__ import annotations

from luma_core.codecs import BF16, FP32, Codec, LogV, Luma16M, Luma16V, RootV, TableM
from luma_core.codecs.loggrid import LogGridCodec

Configuration = tuple[str | int | float, ...]

_LARGEST_SUM = 512
"""Elements whose logarithms, in units of `LogV`'s sums, cannot exceed 32 bits."""


_SLACKS = 1.0, 1.1, 0.9
"""Of `LogV`: none, for staying as fine, for staying as coarse."""


def first_moment(codec: Codec) -> Configuration | None:
    """Return the tuple of a first moment's codec, or ``None`` where kernels have none."""
    if isinstance(codec, TableM):
        return (codec.name, codec.bits, *codec.thresholds, *(codec.levels or ()))
    if isinstance(codec, Luma16M):
        return _log_grid(codec)
    return (codec.name,) if isinstance(codec, FP32 | BF16) else None


def second_moment(codec: Codec) -> Configuration | None:
    """Return the tuple of a second moment's codec, or ``None`` where kernels have none."""
    if isinstance(codec, RootV):
        return codec.name, codec.bits, float(codec.floor)
    if isinstance(codec, LogV) and (codec.block_size or 0) <= _LARGEST_SUM:
        return (codec.name, codec.bits, *_windows(codec))
    if isinstance(codec, Luma16V):
        return _log_grid(codec)
    return (codec.name,) if isinstance(codec, FP32) else None


def _windows(codec: LogV) -> tuple[int, ...]:
    """Return how much each number of mantissa bits holds, as it is and with each slack."""
    whole = codec.top << 23
    return tuple(int((whole >> bits) * slack) for slack in _SLACKS for bits in range(1, codec.bits))


def is_equal_pair(first: Codec, second: Codec) -> bool:
    """Return whether both codecs are 16-bit grids of as many octaves, or both float32."""
    if isinstance(first, LogGridCodec) and isinstance(second, LogGridCodec):
        return first.octaves == second.octaves
    return isinstance(first, FP32) and isinstance(second, FP32)


def _log_grid(codec: LogGridCodec) -> Configuration:
    return codec.name, codec.log_grid.mantissa_bits, codec.log_grid.octaves
