"""Codes of a few bits each, packed into bytes: what the n-bit codecs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luma_core.codecs.base import Codec, FieldSpec
from luma_core.codecs.blocks import BlockGrid
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

BITS = (2, 3, 4, 5, 6, 8)
"""Sizes of a code for which there are codecs."""

LARGEST_BFLOAT16 = 3.3895313892515355e38
"""The largest finite bfloat16."""

MAX_PACKED_BLOCK = 1 << 16
"""Every row of a tensor takes at least a block."""

_ALIGNMENT = 8
"""This many codes fill a whole number of bytes, whatever their size."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes: one stream of bits, the lowest first.

    Args:
        codes: integers ``[..., n]`` in ``[0, 2**bits)``, ``n`` a multiple of 8.
        bits: 1 to 8.

    Returns:
        uint8 ``[..., n * bits / 8]``.
    """
    count, size, dtype = _group(bits)
    groups = codes.reshape(*codes.shape[:-1], -1, count)
    words = groups[..., 0].to(dtype)
    for place in range(1, count):
        words = words | groups[..., place].to(dtype) << place * bits
    packed = [(words >> 8 * byte & 0xFF).to(torch.uint8) for byte in range(size)]
    return torch.stack(packed, dim=-1).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack`.

    Args:
        packed: uint8 ``[..., n * bits / 8]``.
        bits: 1 to 8.

    Returns:
        int32 ``[..., n]``.
    """
    count, size, dtype = _group(bits)
    groups = packed.reshape(*packed.shape[:-1], -1, size)
    words = groups[..., 0].to(dtype)
    for byte in range(1, size):
        words = words | groups[..., byte].to(dtype) << 8 * byte
    places = torch.arange(count, dtype=dtype, device=packed.device) * bits
    codes = words.unsqueeze(-1) >> places & ((1 << bits) - 1)
    return codes.to(torch.int32).flatten(-2)


def _group(bits: int) -> tuple[int, int, torch.dtype]:
    """Return how many codes fill whole bytes, how many bytes, and an integer that holds them."""
    count = _ALIGNMENT // math.gcd(_ALIGNMENT, bits)
    size = count * bits // 8
    return count, size, torch.int32 if size < 4 else torch.int64


def check_choice(codec: str, option: str, value: object, choices: Sequence[int]) -> None:
    """Check that a codec's integer option is one of a few.

    Raises:
        ConfigurationError: naming the option, its value and the choices.
    """
    if type(value) is not int or value not in choices:
        raise ConfigurationError(
            f"{option}={value!r} of codec {codec} must be one of {', '.join(map(str, choices))}."
        )


@dataclass(frozen=True, kw_only=True)
class PackedCodec(Codec):
    """Stores ``codes``, ``bits`` for each element, packed into the bytes of whole blocks.

    The last block of a row takes as many bytes as the others, so rows of whole blocks are
    smallest. A byte's lowest bits hold the element that comes first.

    Attributes:
        bits: size of a code.
        min_elements: tensors with fewer elements keep this moment in float32.
    """

    bit_choices: ClassVar[tuple[int, ...]] = BITS

    coarse: ClassVar[bool] = True

    bits: int = 4
    min_elements: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.block_size
        if size is None or size % _ALIGNMENT or size > MAX_PACKED_BLOCK:
            raise ConfigurationError(
                f"block_size={size!r} of codec {self.name} must be a multiple of {_ALIGNMENT} up "
                f"to {MAX_PACKED_BLOCK}.",
                hint="Use 128: packed codes have no form with one scale per tensor.",
            )
        check_choice(self.name, "bits", self.bits, self.bit_choices)
        if (
            not isinstance(self.min_elements, int)
            or isinstance(self.min_elements, bool)
            or self.min_elements < 0
        ):
            raise ConfigurationError(
                f"min_elements={self.min_elements!r} of codec {self.name} must be an integer of 0 "
                "or more."
            )

    def grid(self, shape: tuple[int, ...] | torch.Size) -> BlockGrid:
        """Return the blocks of a tensor of ``shape``; short ones are stored at full length."""
        return BlockGrid.of(tuple(shape), self.block_size)

    def takes(self, shape: tuple[int, ...] | torch.Size) -> bool:
        """Return whether ``shape`` has as many elements as ``min_elements``."""
        return math.prod(shape) >= self.min_elements

    def block_field(
        self, shape: tuple[int, ...] | torch.Size, dtype: str, entries: int = 1
    ) -> FieldSpec:
        """Return a field of ``entries`` values per block, ``dtype`` named without ``torch.``."""
        return FieldSpec(dtype, self.grid(shape).block_shape(entries), entries)

    def code_field(self, shape: tuple[int, ...] | torch.Size) -> FieldSpec:
        """Return the field of the packed codes."""
        return self.block_field(shape, "uint8", (self.block_size or 0) * self.bits // 8)
