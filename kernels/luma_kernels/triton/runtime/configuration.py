"""Codecs as kernels take them: the compile-time tuples that `interface.py` describes."""

from __future__ import annotations

from luma_core.codecs import BF16, FP8E4M3, FP32, Codec, LogV, Luma16M, Luma16V, RootV, TableM
from luma_core.codecs.loggrid import LogGridCodec

Configuration = tuple[str | int | float, ...]

_LARGEST_SUM = 512
"""Elements whose logarithms' sum, in units of `LogV`, fits beside their number in 32 bits."""


_SLACKS = 1.0, 1.1, 0.9
"""Of `LogV`: none, for staying as fine, for staying as coarse."""


def first_moment(codec: Codec) -> Configuration | None:
    """Return the tuple of a first moment's codec, or ``None`` where kernels have none."""
    if isinstance(codec, TableM):
        return (codec.name, codec.bits, *codec.thresholds, *(codec.levels or ()))
    if isinstance(codec, Luma16M):
        return _log_grid(codec)
    if isinstance(codec, FP8E4M3):
        return codec.name, codec.log_grid.mantissa_bits, codec.log_grid.octaves
    return (codec.name,) if isinstance(codec, FP32 | BF16) else None


def second_moment(codec: Codec) -> Configuration | None:
    """Return the tuple of a second moment's codec, or ``None`` where kernels have none."""
    if isinstance(codec, RootV):
        return codec.name, codec.bits, float(codec.floor), codec.rise or 0
    if isinstance(codec, LogV) and (codec.block_size or 0) <= _LARGEST_SUM:
        return (codec.name, codec.bits, *map(codec.limit, _SLACKS))
    if isinstance(codec, Luma16V):
        return _log_grid(codec)
    return (codec.name,) if isinstance(codec, FP32) else None


def fits_whole(first: Codec, second: Codec | None) -> bool:
    """Return whether kernels take one scale for a whole tensor.

    They do where both codecs, or the only one, are 16-bit grids of as many octaves, or float32.
    """
    if second is None:
        return isinstance(first, FP32 | Luma16M)
    if isinstance(first, LogGridCodec) and isinstance(second, LogGridCodec):
        return first.octaves == second.octaves
    return isinstance(first, FP32) and isinstance(second, FP32)


def _log_grid(codec: LogGridCodec) -> Configuration:
    return codec.name, codec.log_grid.mantissa_bits, codec.log_grid.octaves
