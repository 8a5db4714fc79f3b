"""State of optimizers that no rule here describes: tensors as they are, and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from luma_core.codecs.base import Codec, Fields, FieldSpec, is_number_in
from luma_core.dtypes import STORED_NAMES
from luma_core.errors import ConfigurationError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


@dataclass(frozen=True, kw_only=True)
class Raw(Codec):
    """Field ``value``: a tensor of the parameter's shape, in its own dtype.

    Attributes:
        dtype: PyTorch's name of it without ``torch.``.
    """

    name: ClassVar[str] = "raw"
    signed: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    generic: ClassVar[bool] = True

    block_size: int | None = None
    dtype: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in STORED_NAMES:
            raise ConfigurationError(
                f"dtype={self.dtype!r} must be one of {', '.join(STORED_NAMES)}."
            )

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return the one field, ``value``."""
        return {"value": FieldSpec(self.dtype, tuple(shape))}

    def fit(self, x: Tensor) -> Fields:
        """Return nothing: there is no scale."""
        return {}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return ``x`` in the dtype."""
        return {"value": x.to(FieldSpec(self.dtype, ()).dtype)}

    def decode(self, fields: Fields) -> Tensor:
        """Return the stored values as float32."""
        return fields["value"].float()

    def to_dict(self) -> dict[str, Any]:
        """Return name and configuration; there are no blocks."""
        return {key: value for key, value in super().to_dict().items() if key != "block_size"}


@dataclass(frozen=True, kw_only=True)
class RawShaped(Raw):
    """Field ``value``: a tensor of any shape, in its own dtype; no moment of the parameter.

    Attributes:
        shape: of the tensor.
    """

    name: ClassVar[str] = "raw_shaped"
    tiled: ClassVar[bool] = False
    per_element: ClassVar[bool] = False

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.shape
        if type(sizes) is not tuple or not all(is_number_in(size, 0, kind=int) for size in sizes):
            raise ConfigurationError(f"shape={sizes!r} must be a tuple of integers of 0 or more.")

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return the one field, ``value``, of a shape of its own."""
        return {"value": FieldSpec(self.dtype, self.shape)}

    def to_dict(self) -> dict[str, Any]:
        """Return name and configuration as plain JSON values."""
        return {**super().to_dict(), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Build the codec from what `to_dict` returned."""
        shape = config.get("shape")
        return super().from_dict(
            {**config, "shape": tuple(shape) if isinstance(shape, list) else shape}
        )


@dataclass(frozen=True, kw_only=True)
class PlainValue(Codec):
    """No field: a value that is no tensor, in the configuration.

    Attributes:
        value: the JSON form of it, in which ``{"$tensor": pointer}`` stands for tensors.
    """

    name: ClassVar[str] = "plain"
    signed: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    tiled: ClassVar[bool] = False
    per_element: ClassVar[bool] = False
    generic: ClassVar[bool] = True

    block_size: int | None = None
    value: Any

    def __hash__(self) -> int:
        return hash(json.dumps(self.value, sort_keys=True))

    def layout(self, shape: tuple[int, ...] | torch.Size) -> dict[str, FieldSpec]:
        """Return no field."""
        return {}

    def fit(self, x: Tensor) -> Fields:
        """Return nothing."""
        return {}

    def encode(self, x: Tensor, fitted: Fields, draw: Tensor | None) -> Fields:
        """Return nothing."""
        return {}

    def decode(self, fields: Fields) -> Tensor:
        """Refuse: there is no tensor."""
        raise ConfigurationError("a plain value is no moment, and cannot be decoded.")

    def to_dict(self) -> dict[str, Any]:
        """Return name and value."""
        return {"name": self.name, "value": self.value}
