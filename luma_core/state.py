"""The state of one parameter as plain data: what optimizers give, checkpoints keep, tools read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luma_core import backends
from luma_core.codecs import Codec, Fields

if TYPE_CHECKING:
    from torch import Tensor

GroupOptions = dict[str, Any]
"""A parameter group's options as plain JSON values (``lr``, ``betas``, ``eps``, ...)."""

SCALAR_STATE_BYTES = 3 * 8
"""``step``, ``noise_key`` and ``nonfinite``: int64 tensors of each parameter that has state."""


def field_key(moment: str, name: str) -> str:
    """Return the key of a moment's field in ``optimizer.state[p]``: ``exp_avg.codes``."""
    return f"{moment}.{name}"


@dataclass(frozen=True)
class ParameterState:
    """Everything an optimizer keeps for one parameter.

    Attributes:
        name: the parameter's fully qualified name, or ``param.<i>`` where it has none.
        shape: the parameter's shape.
        dtype: the parameter's dtype without ``torch.``: ``float32``, ``bfloat16`` or ``float16``.
        group: index of its parameter group.
        step: completed steps; 0 where the parameter has no state yet.
        noise_key: signed 64-bit key of its rounding noise (`luma_core.rounding`).
        nonfinite: blocks left out so far because their update was not finite.
        codecs: codec of each moment, by moment name; empty where there is no state yet.
        fields: stored tensors by ``<moment>.<field>``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    step: int = 0
    noise_key: int = 0
    nonfinite: int = 0
    codecs: Mapping[str, Codec] = field(default_factory=dict)
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def moments(self) -> dict[str, Codec]:
        """The codecs of what has a value for each element of the parameter."""
        return {name: codec for name, codec in self.codecs.items() if codec.per_element}

    @property
    def counter_bytes(self) -> int:
        """Size of the counters, which state that no rule describes has none of."""
        counted = self.codecs and not any(codec.generic for codec in self.codecs.values())
        return SCALAR_STATE_BYTES if counted else 0

    def moment_fields(self, moment: str) -> Fields:
        """Return the stored tensors of one moment, by field name."""
        prefix = field_key(moment, "")
        keys = [key for key in self.fields if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.fields[key] for key in keys}

    def decode(self, moment: str) -> Tensor:
        """Return one moment as float32 of the parameter's shape."""
        return backends.decode(self.codecs[moment], self.moment_fields(moment), self.shape)


@dataclass(frozen=True)
class MatchedState:
    """A saved state, and the parameter that takes it.

    Attributes:
        name: the parameter's name here.
        state: as it was saved.
        codecs: the codec of each moment, as the parameter will keep it.
    """

    name: str
    state: ParameterState
    codecs: Mapping[str, Codec]

    @property
    def kept(self) -> bool:
        """Whether stored tensors are taken as they are, and not coded anew."""
        return dict(self.state.codecs) == dict(self.codecs)


@dataclass(frozen=True)
class LoadReport:
    """What did not find its counterpart when state, or weights, were loaded.

    Attributes:
        new: names here that nothing was saved for; their state starts fresh, weights stay.
        missing: names that were saved without state, so that theirs starts fresh as well.
        left_out: names of what was saved and is not used.

    A name whose shape differs is new and left out.
    """

    new: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


ALL_FOUND = LoadReport()
"""Nothing was without counterpart."""


class StateSource(Protocol):
    """Anything whose parameters' states can be read one at a time: an optimizer, a checkpoint."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm: one of `luma_core.catalog`, or of another program."""
        ...

    def parameter_names(self) -> Sequence[str]:
        """Return the names of all parameters, group by group."""
        ...

    def parameter_state(self, name: str) -> ParameterState:
        """Return the state of one parameter."""
        ...

    def group_options(self) -> Sequence[GroupOptions]:
        """Return the options of each parameter group."""
        ...
