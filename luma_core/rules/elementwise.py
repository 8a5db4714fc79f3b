"""Rules that work element by element, in PyTorch operations on tiles of bounded size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from luma_core.rules.base import ParameterStep, Rule, Stages
from luma_core.rules.moments import MomentPass, write_parameter


class ElementwiseRule(Rule):
    """A rule whose update of an element depends on nothing but that element.

    Its moments' codecs share one block size.
    """

    @abstractmethod
    def update_moments(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: Any
    ) -> dict[str, Tensor]:
        """Return the new moments, float32 of the gradient's shape; the inputs stay unchanged."""

    @abstractmethod
    def update_parameter(self, param: Tensor, moments: Mapping[str, Tensor], hyper: Any) -> Tensor:
        """Return the new parameter, float32; the inputs stay unchanged."""

    def stages(self, item: ParameterStep) -> Stages:
        """Take one parameter's step, tile by tile.

        Memory: about 20 float32 temporaries of one tile (`TILE_ELEMENTS`).
        """
        moments = MomentPass(self.update_moments, item)
        yield from moments.measured()
        for part in moments:
            old = part.tile.read(item.param).float()
            param = self.update_parameter(old, part.new, item.hyper)
            write_parameter(item, part.tile, param, part.keep, part.param_draw)
        return moments.bad
