"""What a codec is: the storage of one moment tensor, and nothing about update rules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from luma_core.codecs.blocks import TILE_ELEMENTS, BlockGrid, Tile
from luma_core.dtypes import ITEM_BYTES, named_dtype
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

MAX_BLOCK_SIZE = (1 << 31) - 1
"""Blocks are counted in 32 bits by what steps them."""

Fields = dict[str, "Tensor"]
"""The tensors that store a moment, or a tile's part of them, by field name."""


def is_number_in(
    value: object,
    low: float,
    high: float = math.inf,
    *,
    kind: type | tuple[type, ...] = (int, float),
) -> bool:
    """Return whether ``value`` is a number of ``kind`` (never a bool) from ``low`` to ``high``."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    # Integers are compared as they are: a huge one is no float.
    return bool(low <= value <= high)  # type: ignore[operator]


@dataclass(frozen=True, init=False)
class FieldSpec:
    """One stored tensor of a codec.

    Args:
        dtype: its dtype, or PyTorch's name of it without ``torch.``, which loads no PyTorch.
        shape: its shape.
        entries_per_block: values per scale block, or ``None`` for one value per element.

    Attributes:
        dtype_name: its dtype without ``torch.``.
        shape: its shape.
        entries_per_block: as given.
    """

    dtype_name: str
    shape: tuple[int, ...]
    entries_per_block: int | None

    def __init__(
        self,
        dtype: torch.dtype | str,
        shape: tuple[int, ...],
        entries_per_block: int | None = None,
    ) -> None:
        object.__setattr__(self, "dtype_name", str(dtype).removeprefix("torch."))
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "entries_per_block", entries_per_block)

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return named_dtype(self.dtype_name)

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        size = ITEM_BYTES.get(self.dtype_name)
        return math.prod(self.shape) * (self.dtype.itemsize if size is None else size)


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """Stores one non-negative or signed moment; subclasses are frozen configurations.

    Fields filled with zeros decode to zero, so a fresh state is made of zeros. A codec works on
    blocked tiles, float32 ``[rows, blocks, block_size]`` (see `luma_core.codecs.blocks.Tile`):
    `fit` measures the blocks, `encode` codes them on the grid that was fitted, `decode` returns
    float32. `encode_tensor` and `decode_tensor` do that for whole tensors in bounded memory.

    Attributes:
        block_size: elements per scale block, or ``None`` for one scale per tensor.
    """

    name: ClassVar[str]
    signed: ClassVar[bool] = True
    top_code: ClassVar[int | None] = None
    """Largest code magnitude, for codecs whose ``codes`` field is a grid; else ``None``."""

    rounds: ClassVar[bool] = True
    """Whether `encode` uses its random bits."""

    coarse: ClassVar[bool] = False
    """Whether rounding may change a value by an eighth or more, so that updates are bounded."""

    positive: ClassVar[bool] = False
    """Whether a value above 0 never decodes to 0, so that second moments may be stored."""

    relative: ClassVar[bool] = False
    """Whether a value keeps its relative precision beside values of any size."""

    tiled: ClassVar[bool] = True
    """Whether tiles are coded on their own. Others take whole tensors, in `encode_tensor` and
    `decode_tensor`, and have fields of any shape; `read_tile` with `decode` works for them too."""

    per_element: ClassVar[bool] = True
    """Whether it stores a value for each element of the parameter: only those are moments, of which
    there are statistics."""

    generic: ClassVar[bool] = False
    """Whether it keeps state of optimizers that no rule here describes, which have no counters."""

    block_size: int | None = 128

    def __post_init__(self) -> None:
        if self.block_size is not None and not is_number_in(
            self.block_size, 1, MAX_BLOCK_SIZE, kind=int
        ):
            raise ConfigurationError(
                f"block_size={self.block_size!r} must be a positive integer below 2**31, or None.",
                hint="Use 128, or None for one scale per tensor.",
            )

    @abstractmethod
    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return the fields that store a moment of ``shape``, by name."""

    @abstractmethod
    def fit(self, x: Tensor) -> Fields:
        """Measure blocked float32 ``x``: the per-block fields, each ``[rows, blocks, entries]``."""

    def refit(self, x: Tensor, previous: Fields) -> Fields:
        """Measure blocks like `fit`, where ``previous`` holds the fields that store them now.

        Codecs whose grid should stand still while a moment changes slowly look at them.
        """
        return self.fit(x)

    @abstractmethod
    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Code blocked float32 ``x`` on the fitted grid: the per-element fields.

        Args:
            x: ``[rows, blocks, block_size]``.
            fitted: result of `fit` on these blocks (or on the whole tensor).
            draw: 16 random bits per element for stochastic rounding, int32 in ``[0, 65535]``;
                ``None`` rounds to nearest.
        """

    def round_down_below(self, x: Tensor, fitted: Fields, root: Tensor) -> Tensor:
        """Return values that codes of ``x`` never exceed where an update divides them by less.

        Near zero a grid's steps are absolute: a value far below its block's largest is coded as 0
        or as a whole step. Divided by a root that is smaller than the step, that is an update of
        any size. Codecs without such a region return ``x``.

        Args:
            x: as for `encode`.
            fitted: result of `fit`.
            root: square root of the second moment of each element, float32 ``[rows, blocks,
                block_size]``.
        """
        return x

    @abstractmethod
    def decode(self, fields: Fields) -> Tensor:
        """Return the blocked float32 values of a tile's per-element and per-block fields."""

    def takes(self, shape: tuple[int, ...] | torch.Size) -> bool:
        """Return whether a moment of ``shape`` is worth coding; if not, it stays in float32."""
        return True

    def magnitudes(self, codes: Tensor) -> Tensor:
        """Return the grid index of stored ``codes`` as int32, 0 or more (only with `top_code`)."""
        raise NotImplementedError(f"{self.name} has no code grid")

    def scales(self, fields: Fields) -> Tensor | None:
        """Return the scale of each block as float32, or ``None`` for codecs without scales."""
        return None

    def merge(self, a: Fields, b: Fields) -> Fields:
        """Combine the fits of two parts of one block: by default the elementwise maximum."""
        return {name: torch.maximum(a[name], b[name]) for name in a}

    def init(self, shape: tuple[int, ...] | torch.Size, device: torch.device | str) -> Fields:
        """Return the fields of a moment of zeros."""
        return {
            name: torch.zeros(spec.shape, dtype=spec.dtype, device=device)
            for name, spec in self.layout(shape).items()
        }

    def grid(self, shape: tuple[int, ...] | torch.Size) -> BlockGrid:
        """Return the blocks of a tensor of ``shape``, none of them longer than its rows."""
        grid = BlockGrid.of(tuple(shape), self.block_size)
        if self.block_size is None:
            return grid
        return replace(grid, block_size=min(self.block_size, max(grid.cols, 1)))

    def read_tile(self, fields: Mapping[str, Tensor], tile: Tile) -> Fields:
        """Return the tile's part of every field."""
        specs = self.layout(tile.grid.shape)
        return {
            name: tile.read(fields[name])
            if spec.entries_per_block is None
            else tile.read_blocks(fields[name])
            for name, spec in specs.items()
        }

    def write_tile(self, fields: Mapping[str, Tensor], tile: Tile, values: Fields) -> None:
        """Write the tile's part of the fields named in ``values``."""
        specs = self.layout(tile.grid.shape)
        for name, value in values.items():
            if specs[name].entries_per_block is None:
                tile.write(fields[name], value)
            else:
                tile.write_blocks(fields[name], value)

    def encode_tensor(self, x: Tensor, draws: Tensor | None = None) -> Fields:
        """Store a whole moment, in PyTorch; `luma_core.backends.encode` may be faster.

        Args:
            x: float tensor of any shape.
            draws: 16 random bits per element, int32 of the same shape; ``None`` rounds to nearest.
        """
        fields = self.init(x.shape, x.device)
        tiles = list(self.grid(x.shape).tiles(TILE_ELEMENTS))
        fitted: Fields = {}
        if self.block_size is None:
            for tile in tiles:
                part = self.fit(tile.read(x).float().reshape(1, 1, -1))
                fitted = self.merge(fitted, part) if fitted else part
        for tile in tiles:
            values = tile.read(x).float()
            if self.block_size is not None:
                fitted = self.fit(values)
            draw = None if draws is None else tile.read(draws)
            self.write_tile(fields, tile, {**fitted, **self.encode(values, fitted, draw)})
        return fields

    def decode_tensor(self, fields: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Return a whole moment as float32 of ``shape``; see `luma_core.backends.decode`."""
        some = next(iter(fields.values()))
        x = torch.empty(shape, dtype=torch.float32, device=some.device)
        for tile in self.grid(shape).tiles(TILE_ELEMENTS):
            tile.write(x, self.decode(self.read_tile(fields, tile)))
        return x

    def to_dict(self) -> dict[str, Any]:
        """Return name and configuration as plain JSON values."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Build the codec from what `to_dict` returned.

        Raises:
            ConfigurationError: a key is unknown or a value cannot work.
        """
        values = {key: value for key, value in config.items() if key != "name"}
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigurationError(
                f"codec {cls.name!r} has no option {unknown[0]!r}.",
                hint=f"Its options are {', '.join(sorted(known))}.",
            )
        return cls(**values)
