"""Sizes of updates and moments by Hessian block, from the stored state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luma_core import backends
from luma_core.codecs import Codec, SegmentMean
from luma_core.state import field_key


@dataclass(frozen=True)
class ParameterTelemetry:
    """What the last step of one parameter was like; tensors on the parameter's device.

    A block is a segment of the partition: one element where the parameter is cut by element.

    Attributes:
        name: the parameter's name.
        dtype: name of the first moment's codec.
        max_update: float32 ``[blocks]``: the largest magnitude that was added to an element of the
            block, weight decay apart.
        max_first: float32 ``[blocks]``: the largest magnitude of the stored first moment.
        second: float32 ``[blocks]``: the second moment.
        scale: float32, one for each of the codec's own blocks: bounds of the first moment; ``None``
            where its codec has none.
    """

    name: str
    dtype: str
    max_update: Tensor
    max_first: Tensor
    second: Tensor
    scale: Tensor | None


def measure(
    name: str,
    param: Tensor,
    state: Mapping[str, Tensor],
    codecs: Mapping[str, Codec],
    group: Mapping[str, Any],
) -> ParameterTelemetry:
    """Measure one parameter that has state.

    Args:
        name: the parameter's name.
        param: the parameter.
        state: its state, as in ``optimizer.state[p]`` of a whole parameter.
        codecs: the codec of each of AdamW's two moments.
        group: its group's options.
    """
    first, second = codecs["exp_avg"], codecs["exp_avg_sq"]
    value = state[field_key("exp_avg_sq", "value")]
    prefix = field_key("exp_avg", "")
    stored = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    decoded = backends.decode(first, stored, tuple(param.shape))
    partition = second.partition if isinstance(second, SegmentMean) else None
    largest = decoded.abs().view(-1) if partition is None else partition.largest(decoded).float()
    beta1, beta2 = map(float, group["betas"])
    step = state["step"].double()
    root = (value.view(-1).double() / (1.0 - beta2**step)).sqrt()
    update = group["lr"] * (largest / (1.0 - beta1**step)) / (root + float(group["eps"]))
    return ParameterTelemetry(
        name=name,
        dtype=first.name,
        max_update=update.float(),
        max_first=largest,
        second=value.view(-1),
        scale=first.scales(stored),
    )
