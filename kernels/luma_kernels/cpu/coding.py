"""Launchers of the native encode and decode of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    Codec,
    Fields,
    LogV,
    Luma16M,
    Luma16V,
    RootV,
    TableM,
)
from luma_core.codecs.loggrid import LogGridCodec
from luma_core.codecs.packed import PackedCodec
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.structs import (
    BFLOAT,
    FP8,
    LOG,
    LOG_ROOT,
    LOG_SIGNED,
    PLAIN,
    ROOT,
    TABLE,
    Coding,
    Layout,
    Moment,
)

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes of parameters, gradients and encoded tensors, with their numbers in ``native.h``."""

_KINDS: dict[type[Codec], int] = {
    FP32: PLAIN,
    BF16: BFLOAT,
    Luma16M: LOG_SIGNED,
    Luma16V: LOG_ROOT,
    TableM: TABLE,
    RootV: ROOT,
    LogV: LOG,
    FP8E4M3: FP8,
}

_THREAD_ELEMENTS = 1 << 15
"""Fewer elements than this are not worth waking another thread for: some 20 microseconds."""


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is on the CPU and what its memory holds: no subclass, not negated."""
    return tensor.is_cpu and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()


def moment_kind(codec: Codec) -> int | None:
    """Return how the library stores moments of ``codec``; ``None`` if it cannot."""
    return _KINDS.get(type(codec))


def describe_layout(codec: Codec, shape: tuple[int, ...]) -> Layout:
    """Return how a tensor of ``shape`` is cut into the codec's blocks."""
    grid = codec.grid(shape)
    return Layout(grid.rows, grid.cols, codec.block_size or 0)


def describe_moment(codec: Codec, fields: Mapping[str, Tensor]) -> Moment:
    """Return a stored moment; its tensors must be contiguous and outlive it."""
    moment = Moment(kind=moment_kind(codec))
    for field, tensor in fields.items():
        member = "values" if field in ("codes", "value") else field
        setattr(moment, member, address(tensor))
    if isinstance(codec, LogGridCodec | FP8E4M3):
        grid = codec.log_grid
        moment.octaves, moment.mantissa_bits = grid.octaves, grid.mantissa_bits
    if isinstance(codec, PackedCodec):
        moment.bits = codec.bits
    if isinstance(codec, RootV):
        moment.floor, moment.step, moment.per_step = codec.floor, codec.step, 1.0 / codec.step
        moment.rise = codec.rise or 0
    if isinstance(codec, TableM):
        levels, thresholds = _tables(codec)
        moment.levels, moment.thresholds = address(levels), address(thresholds)
    return moment


@cache
def _tables(codec: TableM) -> tuple[Tensor, Tensor]:
    """Return levels and thresholds as float32; kept, so that their memory outlives every call."""
    return (
        torch.tensor(codec.levels, dtype=torch.float32, device="cpu"),
        torch.tensor(codec.thresholds, dtype=torch.float32, device="cpu"),
    )


def thread_count(elements: int, threads: int | None = None) -> int:
    """Return how many threads share ``elements``: torch's own number, fewer for small tensors."""
    available = torch.get_num_threads() if threads is None else threads
    return max(1, min(available, elements // _THREAD_ELEMENTS))


def _is_coded(codec: Codec) -> bool:
    """Return whether the library encodes and decodes tensors with a codec."""
    kind = moment_kind(codec)
    # One scale for a whole tensor is fitted for 16-bit codes only.
    whole = codec.block_size is None and kind not in (LOG_SIGNED, LOG_ROOT)
    return kind not in (None, PLAIN, BFLOAT) and not whole


def stored_as_specified(codec: Codec, fields: Mapping[str, Tensor], shape: torch.Size) -> bool:
    """Return whether ``fields`` are just what the codec lays out, contiguous and on the CPU."""
    return all(
        (tensor := fields[name]).dtype == spec.dtype
        and tensor.shape == spec.shape
        and is_plain(tensor)
        and tensor.is_contiguous()
        for name, spec in codec.layout(shape).items()
    )


def encode(
    codec: Codec,
    x: Tensor,
    draws: Tensor | None = None,
    *,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> Fields | None:
    """Store a whole moment, bit-identical to `Codec.encode_tensor` in PyTorch.

    Args:
        codec: any codec.
        x: the moment, any shape.
        draws: int32 of the same shape, in ``[0, 65535]``, or ``None``.
        threads: number of threads; torch's by default.
        instruction_set: one of the library's; the fastest by default.

    Returns:
        The fields, or ``None`` where the library does not support the codec or the tensors.

    Raises:
        BackendUnavailableError: there is no library.
    """
    if not _is_coded(codec) or x.dtype not in DTYPES or not x.numel():
        return None
    if not is_plain(x) or not x.is_contiguous():
        return None
    if draws is not None and not (
        draws.dtype == torch.int32
        and draws.shape == x.shape
        and is_plain(draws)
        and draws.is_contiguous()
    ):
        return None
    fields = {
        name: torch.empty(spec.shape, dtype=spec.dtype, device="cpu")
        for name, spec in codec.layout(x.shape).items()
    }
    coding = Coding(
        address(x),
        None if draws is None else address(draws),
        describe_moment(codec, fields),
        describe_layout(codec, x.shape),
        DTYPES[x.dtype],
    )
    native_library().encode(coding, thread_count(x.numel(), threads), instruction_set)
    return fields


def decode(
    codec: Codec,
    fields: Mapping[str, Tensor],
    shape: tuple[int, ...],
    *,
    out: Tensor | None = None,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> Tensor | None:
    """Return a whole moment as float32, bit-identical to `Codec.decode_tensor` in PyTorch.

    Args:
        codec: any codec.
        fields: its stored tensors.
        shape: shape of the moment.
        out: float32 of that shape, contiguous, that is written to and returned; new by default.
        threads: number of threads; torch's by default.
        instruction_set: one of the library's; the fastest by default.

    Returns:
        The moment, or ``None`` where the library does not support the codec or the tensors.

    Raises:
        BackendUnavailableError: there is no library.
    """
    if not _is_coded(codec):
        return None
    if not stored_as_specified(codec, fields, torch.Size(shape)):
        return None
    x = torch.empty(shape, dtype=torch.float32, device="cpu") if out is None else out
    coding = Coding(
        address(x), None, describe_moment(codec, fields), describe_layout(codec, shape), 0
    )
    native_library().decode(coding, thread_count(x.numel(), threads), instruction_set)
    return x
