"""The state of sharded parameters, put together one parameter at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luma_core.carried import whole_fields
from luma_core.optim.state_io.owner import StateOwner
from luma_core.rules.base import Reduction
from luma_core.rules.collective import reduce_parts
from luma_core.sharding import Part, part_of
from luma_core.state import GroupOptions, ParameterState, field_key


class GatheredState:
    """An optimizer's state as if no parameter were sharded, for statistics and other readers.

    All processes ask for the same parameters in the same order, and each gets the whole. A moment
    whose blocks the sharding cuts is coded anew, by rounding to nearest, as `save_sharded` does.

    Args:
        optimizer: of sharded parameters.
    """

    def __init__(self, optimizer: StateOwner) -> None:
        self._optimizer = optimizer
        self._params = {name: param for name, param, _ in optimizer.parameters_by_name()}
        self.algorithm: str = optimizer.algorithm
        self.named: bool = optimizer.named

    def parameter_names(self) -> Sequence[str]:
        """Return the names of all parameters, group by group."""
        return list(self._params)

    def group_options(self) -> Sequence[GroupOptions]:
        """Return each group's options as plain JSON values."""
        return self._optimizer.group_options()

    def parameter_state(self, name: str) -> ParameterState:
        """Return the whole state of one parameter; all processes call it together."""
        state = self._optimizer.parameter_state(name)
        part = part_of(self._params[name])
        if part is None or not part.cut or not state.codecs:
            return state
        fields: dict[str, Tensor] = {}
        for moment, codec in state.codecs.items():
            found = whole_fields(part, codec, state.moment_fields(moment))
            fields |= {field_key(moment, key): value for key, value in found.items()}
        return replace(state, fields=fields, nonfinite=_nonfinite(part, state))


def _nonfinite(part: Part, state: ParameterState) -> int:
    counts = all(codec.tiled and codec.block_size is not None for codec in state.codecs.values())
    own = state.nonfinite if counts or not any(part.offset) else 0
    (count,) = reduce_parts([(Reduction(torch.tensor([own], device="cpu"), "sum"), part)])
    return int(count)
