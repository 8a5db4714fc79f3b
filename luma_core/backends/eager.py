"""Eager PyTorch: runs everywhere, and defines the result of every other backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from luma_core.backends.base import Backend

if TYPE_CHECKING:
    from luma_core.codecs import Codec, Fields
    from luma_core.rules import ParameterStep, Rule


class Eager(Backend):
    """PyTorch's own operations, tile by tile."""

    name: ClassVar[str] = "pytorch"
    advantage: ClassVar[str] = "it runs everywhere"

    def check_available(self) -> None:
        """Do nothing: it can be used everywhere."""

    def why_no_kernel(self, rule: Rule, codecs: Mapping[str, Codec]) -> str:
        return ""

    def step(self, rule: Rule, item: ParameterStep) -> Tensor:
        return rule.step_parameter(item)

    def encode(self, codec: Codec, x: Tensor, draws: Tensor | None) -> Fields:
        return codec.encode_tensor(x, draws)

    def decode(self, codec: Codec, fields: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        return codec.decode_tensor(fields, shape)


EAGER = Eager()
