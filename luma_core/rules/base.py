"""What an update rule is: how one parameter's step changes it and its moments."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec, Fields

Values = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

MomentKind = Literal["signed", "square"]
"""What a moment's values are: of both signs, or squares that an update is divided by."""


@dataclass(frozen=True)
class MomentSpec:
    """One moment that a rule keeps.

    Attributes:
        name: key of its fields in the state: ``exp_avg`` of ``exp_avg.codes``.
        kind: which codecs may store it.
        stream: number of the noise that rounds it (`luma_core.rounding.draw_stream`); moments of
            one rule have different ones.
        divided_by: name of the moment whose root updates divide this one by, if they do.
    """

    name: str
    kind: MomentKind
    stream: int
    divided_by: str | None = None


class UpdateFormula(Protocol):
    """What statistics call the update of stored moments: in units of the learning rate.

    Attributes:
        moments: names of the moments that it takes, in the order of `apply`.
    """

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments that it takes."""
        ...

    def apply(self, *moments: Values) -> Wide:
        """Return the update of float32 moments ``[elements]``, float64 of the same shape.

        NaN and infinity pass through.
        """
        ...


@dataclass(frozen=True)
class StoredMoment:
    """One moment as it is stored.

    Attributes:
        codec: its codec.
        fields: its tensors, which a step updates in place.
    """

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
        first_index: index of the first element in the whole parameter, of which ``param`` may be a
            part: it selects the noise.
        whole_row: elements behind one index of dimension 0 of the whole parameter, where ``param``
            has only some of them; else ``None``.
        whole_shape: of the whole parameter; ``None`` where that is ``param``.
    """

    param: Tensor
    grad: Tensor
    moments: Mapping[str, StoredMoment]
    hyper: Any
    keys: rounding.StepKeys
    skip_nonfinite: bool
    stochastic_rounding: bool
    grad_factor: Tensor | None = None
    first_index: int = 0
    whole_row: int | None = None
    whole_shape: tuple[int, ...] | None = None

    @property
    def row(self) -> int:
        """Elements behind one index of dimension 0 of ``param``."""
        return math.prod(self.param.shape[1:])

    def random_bits(self, start: int, count: int, word: int = 0) -> Tensor:
        """Return 32 random bits for each element of a range of the flattened ``param``, int32.

        Args:
            start: index of the first element in ``param``.
            count: number of elements.
            word: which bits of each element: `rounding.word_of` a stream.
        """
        device, keys = self.param.device, rounding.word_keys(self.keys, word)
        if self.whole_row is None:
            return rounding.random_bits(keys, self.first_index + start, count, device=device)
        here = torch.arange(start, start + count, dtype=torch.int64, device=device)
        rows = here.div(self.row, rounding_mode="floor")
        indices = here.sub_(rows * self.row).add_(rows.mul_(self.whole_row)).add_(self.first_index)
        return rounding.random_bits_at(keys, indices)


class Reduction(NamedTuple):
    """Values that a step needs of the whole parameter and has of its part.

    Attributes:
        values: float64 or int64, 1-D.
        kind: how the values of parts become those of the whole.
    """

    values: Tensor
    kind: Literal["sum", "max"]


class WholeFunction(Protocol):
    """Makes a tensor of a whole parameter's shape of another.

    It is hashable, and equal where it does the same: such tensors of one shape are one batch.
    """

    def cost(self, shape: tuple[int, ...]) -> int:
        """Return how much work a tensor of a shape is, in multiplications."""
        ...

    def apply(self, values: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the results, whose bits do not depend on what else is in the batch.

        Args:
            values: ``[batch, *shape]``.
            beside: what `Gather.beside` was, ``[batch, ...]``.

        Returns:
            tensors of the same shapes and dtypes.
        """
        ...


class Gather(NamedTuple):
    """A tensor that a step needs whole and has its part of, and what is to be made of it.

    Attributes:
        values: of the part's shape, in the dtype in which it is moved and the result comes back.
        function: of the whole tensor.
        beside: state that every process has whole and the function renews, if it has any.
    """

    values: Tensor
    function: WholeFunction
    beside: Tensor | None = None


class Applied(NamedTuple):
    """What a function made of a whole tensor.

    Attributes:
        values: this process's part of the result.
        beside: the new state, whole.
    """

    values: Tensor
    beside: Tensor | None


Wanted = Reduction | Gather
"""What a step stops for."""

Stages = Generator[Wanted, Any, Tensor]
"""A step that stops where it needs values of the whole parameter, and is sent them: the values of
a `Reduction`, what was `Applied` for a `Gather`."""


def alone(stages: Stages) -> Tensor:
    """Run a step whose parameter is whole, and return its result."""
    try:
        wanted = next(stages)
        while True:
            wanted = stages.send(_of_whole(wanted))
    except StopIteration as end:
        result: Tensor = end.value
        return result


def _of_whole(wanted: Wanted) -> Tensor | Applied:
    if isinstance(wanted, Reduction):
        return wanted.values
    beside = None if wanted.beside is None else wanted.beside[None]
    values, beside = wanted.function.apply(wanted.values[None], beside)
    return Applied(values[0], None if beside is None else beside[0])


class Rule(ABC):
    """Updates a parameter from its gradient and its moments; knows nothing of how codecs work."""

    moments: ClassVar[tuple[MomentSpec, ...]]
    """The moments that it keeps, in their order in the state."""

    reduces: ClassVar[bool] = False
    """Whether an element's step needs other elements, beyond those that share its scale."""

    torch_options: ClassVar[frozenset[str]] = frozenset()
    """Options of PyTorch's optimizers that others refuse or ignore, and that groups of this one
    have."""
    gathers: ClassVar[bool] = False
    """Whether its steps yield a `Gather`: parameters are then stepped together, for batches."""

    def for_group(self, group: Mapping[str, Any]) -> Rule:
        """Return the rule of a group's parameters, which may be another than other groups'."""
        return self

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Names of the moments, in order."""
        return tuple(spec.name for spec in self.moments)

    def update_formula(self, group: Mapping[str, Any], step: int) -> UpdateFormula | None:
        """Return the update that moments make after ``step`` steps; ``None`` where none is defined.

        Args:
            group: the group's options, those of a checkpoint or of another program; what is missing
                makes it ``None``.
            step: completed steps; 0 before the first.
        """
        return None

    @abstractmethod
    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> Any:
        """Return the numbers of step ``step`` (1 for the first) under a group's options.

        ``coarse`` says whether a moment is stored by a codec that is `Codec.coarse`.
        """

    @abstractmethod
    def stages(self, item: ParameterStep) -> Stages:
        """Take one parameter's step in PyTorch operations: the definition of its result.

        Memory: temporaries of bounded size, whatever the tensor's.

        Yields:
            what it needs of the whole parameter, where ``item`` may be a part of it; all parts of
            a parameter yield the same kinds and numbers of values.

        Returns:
            int64 0-d tensor on the parameter's device: blocks whose new moments were not finite.
        """

    def step_parameter(self, item: ParameterStep) -> Tensor:
        """Take the step of a parameter that is whole; see `stages`."""
        return alone(self.stages(item))
