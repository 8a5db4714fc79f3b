"""A second moment kept as one float32 for each Hessian block: Adam-mini's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luma_core.codecs.base import Codec, Fields, FieldSpec
from luma_core.codecs.blocks import Tile
from luma_core.codecs.segments import Partition
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


@dataclass(frozen=True, kw_only=True)
class SegmentMean(Codec):
    """Field ``value``: float32 ``[segments]``, the mean of the moment over each segment.

    It stores whole tensors only, since a tile may hold part of a segment. Reading a tile gives
    every element its segment's value.

    Attributes:
        partition: the tensor's segments.
    """

    name: ClassVar[str] = "segment_mean"
    positive: ClassVar[bool] = True
    relative: ClassVar[bool] = True
    signed: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    tiled: ClassVar[bool] = False

    block_size: int | None = None
    partition: Partition

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return the one field, ``value``.

        Raises:
            ConfigurationError: the partition is of a tensor of another size.
        """
        elements = math.prod(shape)
        if elements != self.partition.numel:
            raise ConfigurationError(
                f"{self.partition!r} is of {self.partition.numel} elements; "
                f"a tensor of shape {list(shape)} has {elements}."
            )
        return {"value": FieldSpec("float32", (self.partition.segments,))}

    def fit(self, x: Tensor) -> Fields:
        """Return nothing: there is no scale."""
        return {}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Refuse: a tile does not have the means of its segments."""
        raise NotImplementedError(f"{self.name} stores whole tensors: use encode_tensor")

    def decode(self, fields: Fields) -> Tensor:
        """Return the values of a tile's elements, as `read_tile` spread them."""
        return fields["value"]

    def read_tile(self, fields: Mapping[str, Tensor], tile: Tile) -> Fields:
        """Return the value of each element's segment, blocked."""
        spread = self.partition.spread(fields["value"], tile.start, tile.start + tile.numel)
        return {"value": tile.blocked(spread)}

    def write_tile(self, fields: Mapping[str, Tensor], tile: Tile, values: Fields) -> None:
        """Refuse: a tile does not have the means of its segments."""
        raise NotImplementedError(f"{self.name} stores whole tensors: use encode_tensor")

    def encode_tensor(self, x: Tensor, draws: Tensor | None = None) -> Fields:
        """Return the mean of each segment; nothing is rounded but the float32 result."""
        self.layout(x.shape)
        return {"value": self.partition.means(x, of=lambda part: part)}

    def decode_tensor(self, fields: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Return the value of each element's segment, float32 of ``shape``."""
        self.layout(shape)
        return self.partition.spread(fields["value"], 0, self.partition.numel).reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Return name and partition as plain JSON values."""
        return {"name": self.name, "partition": self.partition.to_dict()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SegmentMean:
        """Build the codec from what `to_dict` returned.

        Raises:
            ConfigurationError: a key is unknown or the partition cannot work.
        """
        unknown = sorted(set(config) - {"name", "partition"})
        if unknown:
            raise ConfigurationError(
                f"codec {cls.name!r} has no option {unknown[0]!r}.", hint="Its option is partition."
            )
        return cls(partition=Partition.from_dict(config.get("partition")))
