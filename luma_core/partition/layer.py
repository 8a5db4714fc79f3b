"""One parameter as the partition's rules see it: its name, its shape, and its module if known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from luma_core.naming import WRAPPERS

Shape = tuple[int, ...]

_WRAPPERS = WRAPPERS | {"base_layer"}
"""Parts of names that compiling, sharding and adapters add."""


@dataclass(frozen=True)
class Layer:
    """A parameter and where it stands.

    Attributes:
        name: its fully qualified name.
        shape: its shape.
        module: the module that owns it; ``None`` where only names are known.
        ancestors: that module and those around it, nearest first; empty where not known.
        transposed: whether a matrix is ``[in, out]`` and not ``[out, in]``.
    """

    name: str
    shape: Shape
    module: nn.Module | None = None
    ancestors: Sequence[nn.Module] = field(default=(), repr=False)
    transposed: bool = False

    @property
    def parts(self) -> list[str]:
        """The parts of the name in lower case, without those of wrappers."""
        return [part.lower() for part in self.name.split(".") if part not in _WRAPPERS]

    @property
    def role(self) -> str:
        """What the parameter is called: its module, or itself where it is not just ``weight``."""
        parts = self.parts
        return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]

    @property
    def container(self) -> str:
        """The name of what holds the parameter's role and its siblings."""
        parts = self.parts
        return ".".join(parts[: -2 if parts[-1] == "weight" else -1])

    @property
    def module_type(self) -> str:
        """Name of the module's class; empty where it is not known."""
        return type(self.module).__name__ if self.module is not None else ""

    @property
    def fan_out(self) -> int:
        """Outputs of a matrix."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def fan_in(self) -> int:
        """Inputs of a matrix."""
        return self.shape[0] if self.transposed else self.shape[1]


class Siblings:
    """The layers of a model by container and role."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers: Mapping[tuple[str, str], Layer] = {
            (layer.container, layer.role): layer for layer in layers
        }

    def of(self, layer: Layer, roles: frozenset[str]) -> Layer | None:
        """Return a layer beside ``layer`` that has one of ``roles``."""
        found = (self._layers.get((layer.container, role)) for role in sorted(roles))
        return next((item for item in found if item is not None), None)
