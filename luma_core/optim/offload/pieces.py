"""How parameters are cut into pieces whose state fits a slot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from luma_core.codecs import BlockGrid, Codec, CoStateM
from luma_core.optim.step.stepped_parameter import SteppedParameter
from luma_core.state import field_key

_ALIGNED_ROWS = 16
"""Rows in whose multiples parameters are cut: so all that starts there is a multiple of 16 bytes.
Blocks likewise, within a row."""

_INDICES = 1 << 32
"""Kernels take one upper half of indices for a whole piece."""


@dataclass(frozen=True)
class Stored:
    """A piece's part of one stored tensor, a run of its flattened entries.

    Attributes:
        key: the tensor's key in the parameter's state.
        first: index of its first entry.
        shape: of the part.
    """

    key: str
    first: int
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """Return the part as a view of the whole tensor."""
        return whole.view(-1)[self.first : self.first + math.prod(self.shape)].view(self.shape)


@dataclass(frozen=True)
class Piece:
    """A run of rows of a parameter, or of elements of one row, which is stepped by itself.

    Attributes:
        stepped: the parameter.
        first: index of the piece's first element in it, flattened.
        shape: of the piece.
        stored: its part of each stored tensor.
    """

    stepped: SteppedParameter
    first: int
    shape: tuple[int, ...]
    stored: tuple[Stored, ...]

    def of(self, whole: Tensor) -> Tensor:
        """Return the piece of a tensor of the parameter's shape, as a view.

        Of a tensor that is not contiguous, as gradients may be, a copy.
        """
        if self.whole:
            return whole.view(whole.shape)
        first, stop = self.first, self.first + math.prod(self.shape)
        if not whole.is_contiguous():
            stride = whole.numel() // whole.shape[0]
            start = first // stride
            whole = whole[start : -(-stop // stride)].contiguous()
            first, stop = first - start * stride, stop - start * stride
        return whole.view(-1)[first:stop].view(self.shape)

    @property
    def whole(self) -> bool:
        """Whether this is all of the parameter."""
        return math.prod(self.shape) == self.stepped.param.numel()

    @property
    def state_bytes(self) -> int:
        """Bytes of its stored tensors."""
        state = self.stepped.state
        return sum(math.prod(part.shape) * state[part.key].element_size() for part in self.stored)


def cut(stepped: SteppedParameter, most_bytes: int) -> list[Piece]:
    """Cut a parameter into pieces whose state takes about ``most_bytes`` at most.

    What cannot be cut is one piece, however large: steps that need all of a parameter (one scale
    per tensor, segments, norms), and tensors that are not contiguous. Other pieces have 16 rows, or
    16 blocks, at least.
    """
    shape = tuple(stepped.param.shape)
    whole = _piece(stepped, 0, shape)
    if whole.state_bytes <= most_bytes or not _can_be_cut(stepped):
        return [whole]
    grid = BlockGrid.of(shape, 1)
    most_elements = most_bytes * grid.numel // whole.state_bytes
    rows = most_elements // grid.cols // _ALIGNED_ROWS * _ALIGNED_ROWS
    if rows or (grid.rows > 1 and not _rows_can_be_cut(stepped)):
        step = max(rows, _ALIGNED_ROWS)
        return [
            _piece(stepped, row * grid.cols, (min(step, grid.rows - row), *shape[1:]))
            for row in range(0, grid.rows, step)
        ]
    if not _rows_can_be_cut(stepped):
        return [whole]
    unit = _ALIGNED_ROWS * math.lcm(*(codec.block_size or 1 for codec in stepped.codecs.values()))
    width = max(most_elements // unit * unit, unit)
    return [
        _piece(stepped, row * grid.cols + col, (min(width, grid.cols - col),))
        for row in range(grid.rows)
        for col in range(0, grid.cols, width)
    ]


def _can_be_cut(stepped: SteppedParameter) -> bool:
    grad = stepped.param.grad
    # A copy of a gradient would be left behind where the next gradient has the same address.
    contiguous = stepped.param.is_contiguous() and (grad is None or grad.is_contiguous())
    small = stepped.param.numel() + stepped.first_index <= _INDICES
    plain = contiguous and small and stepped.row_stride is None
    return stepped.blocked and not stepped.rule.reduces and plain


def _rows_can_be_cut(stepped: SteppedParameter) -> bool:
    # The tiers of CoState are those of groups of blocks.
    return not any(isinstance(codec, CoStateM) for codec in stepped.codecs.values())


def _piece(stepped: SteppedParameter, first: int, shape: tuple[int, ...]) -> Piece:
    stored = []
    for moment, codec in stepped.codecs.items():
        layout = codec.layout(shape if codec.tiled else stepped.whole_shape)
        for name, spec in layout.items():
            at = first
            if spec.entries_per_block is not None:
                at = _blocks_before(stepped, codec, first) * spec.entries_per_block
            stored.append(Stored(field_key(moment, name), at, spec.shape))
    return Piece(stepped, first, shape, tuple(stored))


def _blocks_before(stepped: SteppedParameter, codec: Codec, first: int) -> int:
    if not first:
        return 0
    grid = codec.grid(stepped.param.shape)
    row, col = divmod(first, grid.cols)
    assert grid.block_size is not None
    return row * grid.blocks_per_row + col // grid.block_size
