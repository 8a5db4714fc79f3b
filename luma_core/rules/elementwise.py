"""Rules that work element by element, in PyTorch operations on tiles of bounded size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from luma_core.rules.base import ParameterStep, Rule, Stages
from luma_core.rules.moments import MomentPass, write_parameter


class Hyper(Protocol):
    """The numbers that every element-wise rule has for a step.

    Attributes:
        decay: factor on the parameter: decoupled weight decay, ``1 - lr * weight_decay``.
        rate: factor on the update.
    """

    @property
    def decay(self) -> float | Tensor:
        """Factor on the parameter."""
        ...

    @property
    def rate(self) -> float | Tensor:
        """Factor on the update."""
        ...


def apply_update(param: Tensor, update: Tensor, hyper: Hyper) -> Tensor:
    """Return ``param * decay - update * rate``, float32; ``update`` is overwritten."""
    return (param * hyper.decay).sub_(update.mul_(hyper.rate))


class ElementwiseRule(Rule):
    """A rule whose update of an element depends on nothing but that element.

    Its moments' codecs share one block size.
    """

    def gradient(self, grad: Tensor, read_param: Callable[[], Tensor], hyper: Any) -> Tensor:
        """Return what `update` takes for the gradient, float32 of the same shape.

        Args:
            grad: float32 of any shape.
            read_param: returns the parameter's values there, float32 of the same shape.
            hyper: the numbers of the step.
        """
        return grad

    @abstractmethod
    def update(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the new moments and what is taken off the parameter, in units of `Hyper.rate`.

        Args:
            grad: float32 of any shape.
            moments: the old moments by name, float32 of the same shape.
            hyper: the numbers of the step.

        Returns:
            new tensors of the gradient's shape; the inputs stay unchanged.
        """

    def stages(self, item: ParameterStep) -> Stages:
        """Take one parameter's step, tile by tile.

        Memory: about 20 float32 temporaries of one tile (`TILE_ELEMENTS`).
        """
        moments = MomentPass(self.moments, self.update, item, gradient=self.gradient)
        yield from moments.measured()
        for part in moments:
            assert part.update is not None
            old = part.tile.read(item.param).float()
            param = apply_update(old, part.update, item.hyper)
            write_parameter(item, part.tile, param, part.keep, part.param_draw)
        return moments.bad
