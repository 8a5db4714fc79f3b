"""What an update rule is: how one parameter's step changes it and its moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec, Fields


@dataclass(frozen=True)
class StoredMoment:
    """One moment as it is stored: its codec and its tensors, which a step updates in place."""

    codec: Codec
    fields: Fields


@dataclass(frozen=True)
class ParameterStep:
    """One parameter's step: all that a backend needs.

    Attributes:
        param: the parameter, float32, bfloat16 or float16, updated in place.
        grad: its gradient, of the same shape and any floating dtype.
        moments: its stored moments by name.
        hyper: the rule's numbers for this step, as its `Rule.hyper` returned them.
        keys: the words that select this step's noise.
        skip_nonfinite: leave a block untouched where its new moments would not be finite.
        stochastic_rounding: whether a bfloat16 parameter is rounded stochastically.
        grad_factor: float32 0-d on the parameter's device: what the gradient is multiplied by;
            ``None`` for 1.
    """

    param: Tensor
    grad: Tensor
    moments: Mapping[str, StoredMoment]
    hyper: Any
    keys: rounding.StepKeys
    skip_nonfinite: bool
    stochastic_rounding: bool
    grad_factor: Tensor | None = None


class Rule(ABC):
    """Updates a parameter from its gradient and its moments; knows nothing of how codecs work."""

    moments: ClassVar[tuple[str, ...]]
    """Names of the moments it keeps, in the order of their noise."""

    @abstractmethod
    def hyper(self, group: Mapping[str, Any], step: int) -> Any:
        """Return the numbers of step ``step`` (1 for the first) under a group's options."""

    @abstractmethod
    def step_parameter(self, item: ParameterStep) -> Tensor:
        """Take one parameter's step in PyTorch operations: the definition of its result.

        Memory: temporaries of bounded size, whatever the tensor's.

        Returns:
            int64 0-d tensor on the parameter's device: blocks whose new moments were not finite.
        """
