"""Some rows of a stored moment: which stored elements they need, and what these decode to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from luma_core import backends
from luma_core.checkpoint.format.manifest import Box
from luma_core.codecs import Codec
from luma_core.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

ReadElements = Callable[[str, int, int], "Tensor"]
"""Returns the elements ``[start, stop)`` of a field in C order, 1-D."""


def row_range(shape: tuple[int, ...], rows: slice | None) -> range:
    """Return the indices of dimension 0 that ``rows`` selects.

    Raises:
        ConfigurationError: it has steps, or there is no dimension 0.
    """
    if not shape:
        raise ConfigurationError(f"rows={rows!r}, but the tensor has no dimensions.")
    found = range(*(rows or slice(None)).indices(shape[0]))
    if found.step != 1:
        raise ConfigurationError(f"rows={rows!r} must have a step of 1.")
    return range(found.start, max(found.start, found.stop))


def boxes_of_rows(
    boxes: Iterable[Box], rows: range
) -> Iterator[tuple[Box, slice, tuple[slice, ...]]]:
    """Yield the parts that hold some rows, the rows of the part, and their place among those."""
    for box in boxes:
        first, last = box[0]
        start, stop = max(first, rows.start), min(last, rows.stop)
        if start < stop:
            place = slice(start - rows.start, stop - rows.start)
            others = tuple(slice(*bounds) for bounds in box[1:])
            yield box, slice(start - first, stop - first), (place, *others)


def field_rows(
    shape: tuple[int, ...], rows: slice | None, read: Callable[[int, int], Tensor]
) -> Tensor:
    """Return some rows of a stored tensor of ``shape``; all where ``rows`` is ``None``."""
    if rows is None:
        return read(0, math.prod(shape)).view(shape)
    chosen = row_range(shape, rows)
    row = math.prod(shape[1:])
    return read(chosen.start * row, chosen.stop * row).view(len(chosen), *shape[1:])


def moment_rows(
    codec: Codec, shape: tuple[int, ...], rows: slice | None, read: ReadElements
) -> Tensor:
    """Return some rows of a moment as float32.

    Args:
        codec: stores it.
        shape: of the whole moment.
        rows: of dimension 0; all where ``None``.
        read: reads elements of its fields.
    """
    layout = codec.layout(shape)
    grid = codec.grid(shape)
    chosen = row_range(shape, rows) if rows is not None else None
    if chosen is None or not _is_sliceable(codec, shape) or grid.numel == 0:
        fields = {
            name: read(name, 0, math.prod(s.shape)).view(s.shape) for name, s in layout.items()
        }
        whole = backends.decode(codec, fields, shape)
        return whole if chosen is None else whole[chosen.start : chosen.stop].clone()
    row = math.prod(shape[1:])
    if grid.flat:
        values = _flat_elements(codec, shape, chosen.start * row, chosen.stop * row, read)
        return values.view(len(chosen), *shape[1:])
    fields = {}
    for name, spec in layout.items():
        if spec.entries_per_block is not None and codec.block_size is None:
            fields[name] = read(name, 0, math.prod(spec.shape)).view(spec.shape)
        else:
            fields[name] = field_rows(
                spec.shape,
                slice(chosen.start, chosen.stop),
                lambda start, stop, name=name: read(name, start, stop),  # type: ignore[misc]
            )
    return backends.decode(codec, fields, (len(chosen), *shape[1:]))


def _is_sliceable(codec: Codec, shape: tuple[int, ...]) -> bool:
    """Return whether rows of the moment are stored in rows of its fields."""
    try:
        codec.layout((shape[0] + 1, *shape[1:]))
    except ConfigurationError:
        # Such a codec is of this shape only.
        return False
    specs = codec.layout(shape).values()
    return all(spec.entries_per_block is not None or spec.shape == shape for spec in specs)


def _flat_elements(
    codec: Codec, shape: tuple[int, ...], start: int, stop: int, read: ReadElements
) -> Tensor:
    """Return the elements ``[start, stop)`` of a flat moment; blocks are decoded whole."""
    numel = math.prod(shape)
    block = codec.block_size or numel
    first, last = start // block, -(-stop // block)
    low, high = first * block, max(min(last * block, numel), first * block)
    fields = {}
    for name, spec in codec.layout(shape).items():
        entries = spec.entries_per_block
        if entries is None:
            fields[name] = read(name, low, high)
        elif codec.block_size is None:
            fields[name] = read(name, 0, math.prod(spec.shape)).view(spec.shape)
        else:
            fields[name] = read(name, first * entries, max(first, last) * entries)
    return backends.decode(codec, fields, (high - low,))[start - low : stop - low]
