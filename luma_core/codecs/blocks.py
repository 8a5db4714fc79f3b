"""How a tensor is cut into scale blocks and into tiles of bounded size.

A *row* is everything behind one index of dimension 0. Blocks of ``block_size`` consecutive
elements restart at each row, so slicing codes and scales along dimension 0 is exact resharding.
Tensors of fewer than two dimensions, and those whose rows are shorter than ``MIN_ROW_ELEMENTS``,
are *flat*: one row that holds all elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


MIN_ROW_ELEMENTS = 32
"""Rows shorter than this would carry more scales than codes, so such tensors count as flat."""

TILE_ELEMENTS = 1 << 18
"""Default bound on the elements of one tile: 1 MiB for each float32 temporary."""


@dataclass(frozen=True)
class BlockGrid:
    """The rows and blocks of a tensor of one shape.

    Attributes:
        shape: shape of the tensor.
        block_size: elements per block, or ``None`` for one block that holds the whole tensor.
        flat: whether the tensor counts as one row.
        rows: number of rows.
        cols: elements per row.
    """

    shape: tuple[int, ...]
    block_size: int | None
    flat: bool
    rows: int
    cols: int

    @classmethod
    def of(cls, shape: tuple[int, ...] | torch.Size, block_size: int | None) -> BlockGrid:
        """Return the grid of a tensor of ``shape``."""
        shape = tuple(shape)
        numel = math.prod(shape)
        row = math.prod(shape[1:])
        if len(shape) < 2 or row < MIN_ROW_ELEMENTS:
            return cls(shape, block_size, True, 1, numel)
        return cls(shape, block_size, False, shape[0], row)

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return self.rows * self.cols

    @property
    def blocks_per_row(self) -> int:
        """Blocks of one row; the last may be short."""
        if self.block_size is None:
            return 1
        return -(-self.cols // self.block_size)

    def block_shape(self, entries: int = 1) -> tuple[int, ...]:
        """Return the shape of a field with ``entries`` values per block.

        ``[rows, blocks_per_row * entries]``; without the rows for flat tensors; 0-d or
        ``[entries]`` where one block holds the whole tensor.
        """
        if self.block_size is None:
            return () if entries == 1 else (entries,)
        width = self.blocks_per_row * entries
        return (width,) if self.flat else (self.rows, width)

    def tiles(self, max_elements: int = TILE_ELEMENTS) -> Iterator[Tile]:
        """Cut the tensor into tiles: runs of whole rows, or runs of whole blocks of one row.

        Args:
            max_elements: bound on a tile's elements; one block at least is always taken.
        """
        if self.numel == 0:
            return
        if self.cols <= max_elements:
            step = max(1, max_elements // self.cols)
            for row in range(0, self.rows, step):
                yield Tile(self, row, min(row + step, self.rows), 0, self.cols)
            return
        block = self.block_size or 1
        width = max(block, max_elements // block * block)
        for row in range(self.rows):
            for col in range(0, self.cols, width):
                yield Tile(self, row, row + 1, col, min(col + width, self.cols))


@dataclass(frozen=True)
class Tile:
    """A contiguous run of elements: rows ``row0:row1`` whole, or columns ``col0:col1`` of one row.

    In memory a tile is float32 ``[rows, blocks, block_size]``; the last block of a row is padded
    with zeros. With ``block_size=None`` it is ``[rows, 1, cols]``, part of the one block.
    """

    grid: BlockGrid
    row0: int
    row1: int
    col0: int
    col1: int

    @property
    def start(self) -> int:
        """Index of the first element in the flattened tensor."""
        return self.row0 * self.grid.cols + self.col0

    @property
    def rows(self) -> int:
        """Number of rows the tile covers, whole or in part."""
        return self.row1 - self.row0

    @property
    def cols(self) -> int:
        """Elements of each of the tile's rows."""
        return self.col1 - self.col0

    @property
    def numel(self) -> int:
        """Elements of the tile."""
        return self.rows * self.cols

    def blocked(self, flat: Tensor) -> Tensor:
        """Shape ``[numel]`` elements as ``[rows, blocks, block_size]``, padded with zeros."""
        block = self.grid.block_size
        x = flat.reshape(self.rows, self.cols)
        if block is None:
            return x.unsqueeze(1)
        missing = -self.cols % block
        if missing:
            x = torch.nn.functional.pad(x, (0, missing))
        return x.view(self.rows, -1, block)

    def unblocked(self, x: Tensor) -> Tensor:
        """Undo `blocked`: return the ``[numel]`` elements without padding."""
        return x.reshape(self.rows, -1)[:, : self.cols].reshape(-1)

    def read(self, tensor: Tensor) -> Tensor:
        """Return the tile of a tensor that has one entry per element, blocked."""
        return self.blocked(self._flat(tensor))

    def write(self, tensor: Tensor, x: Tensor) -> None:
        """Write blocked values ``x`` into a tensor that has one entry per element."""
        values = self.unblocked(x)
        if tensor.is_contiguous():
            tensor.view(-1)[self.start : self.start + self.numel] = values
            return
        done = 0
        for piece in _pieces(tensor, self.start, self.start + self.numel):
            piece.copy_(values[done : done + piece.numel()].view(piece.shape))
            done += piece.numel()

    def read_blocks(self, field: Tensor) -> Tensor:
        """Return the tile's part of a per-block field, ``[rows, blocks, entries]``.

        With one block for the whole tensor: ``[1, 1, entries]``.
        """
        if self.grid.block_size is None:
            return field.reshape(1, 1, -1)
        return self._block_view(field)

    def write_blocks(self, field: Tensor, values: Tensor) -> None:
        """Write the tile's part of a field that has entries per block."""
        if self.grid.block_size is None:
            field.copy_(values.reshape(field.shape))
            return
        self._block_view(field).copy_(values)

    def _block_view(self, field: Tensor) -> Tensor:
        block = self.grid.block_size
        assert block is not None
        per_row = self.grid.blocks_per_row
        view = field.view(self.grid.rows, per_row, -1) if field.numel() else field
        return view[self.row0 : self.row1, self.col0 // block : -(-self.col1 // block)]

    def _flat(self, tensor: Tensor) -> Tensor:
        if tensor.is_contiguous():
            return tensor.view(-1)[self.start : self.start + self.numel]
        pieces = _pieces(tensor, self.start, self.start + self.numel)
        return torch.cat([piece.reshape(-1) for piece in pieces])


def _pieces(tensor: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Cut elements ``start:stop`` of the flattened ``tensor`` into views of it, in order.

    There are at most two for each dimension, whatever the strides are.
    """
    row = math.prod(tensor.shape[1:])
    first, begin = divmod(start, row)
    last, end = divmod(stop, row)
    if first == last:
        if begin < end:
            yield from _pieces(tensor[first], begin, end)
        return
    if begin:
        yield from _pieces(tensor[first], begin, row)
        first += 1
    if first < last:
        yield tensor[first:last]
    if end:
        yield from _pieces(tensor[last], 0, end)
