"""What ``torch.optim.AdamW`` keeps for one parameter: the one place that checks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from luma_core.errors import ConversionError
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.nadamw import MOMENTUM_DECAY, momentum_product
from luma_core.sharding import local_tensor

MU_PRODUCT = "mu_product"
"""What ``torch.optim.NAdam`` keeps beside step and moments."""

_STEP_LIMIT = 1 << 63


@dataclass(frozen=True)
class AdamWEntry:
    """One parameter's state, its values not looked at yet.

    Attributes:
        shape: of both moments.
        step: completed steps.
        moments: float tensors of that shape, by name.
    """

    shape: tuple[int, ...]
    step: int
    moments: Mapping[str, Tensor]


def checked_entry(
    place: str, entry: Mapping[str, Any], *, more: frozenset[str] = frozenset()
) -> AdamWEntry:
    """Return a parameter's state if it is what ``torch.optim.AdamW`` keeps.

    Args:
        place: what errors begin with.
        entry: ``step``, ``exp_avg`` and ``exp_avg_sq``.
        more: keys that it may have beside those.

    Raises:
        ConversionError: it has other keys, or they hold something else.
    """
    if "max_exp_avg_sq" in entry:
        raise ConversionError(
            f"{place} has 'max_exp_avg_sq': amsgrad's running maximum cannot be represented.",
            hint="Only plain AdamW state can be converted.",
        )
    expected = {"step", *MOMENTS}
    if set(entry) - more != expected:
        raise ConversionError(
            f"{place} has {', '.join(sorted(map(repr, entry)))}; AdamW's state is "
            f"{', '.join(sorted(map(repr, expected)))}."
        )
    return checked_parts(place, entry["step"], [entry[moment] for moment in MOMENTS])


def checked_parts(
    place: str, step: object, moments: Sequence[object], *, names: Sequence[str] = MOMENTS
) -> AdamWEntry:
    """Return a parameter's state from its parts.

    Args:
        place: what errors begin with.
        step: a number or a tensor of one.
        moments: the first and the second moment, or those of ``names``.
        names: of the moments.

    Raises:
        ConversionError: a part is something else, or the moments differ in shape.
    """
    shapes = [check_moment_kind(place, *pair) for pair in zip(names, moments, strict=True)]
    for name, shape in zip(names[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            raise ConversionError(
                f"{place}: {names[0]} has shape {list(shapes[0])}, {name} {list(shape)}; "
                "they must be equal."
            )
    tensors = dict(zip(names, cast(Sequence[Tensor], moments), strict=True))
    return AdamWEntry(shapes[0], checked_step(place, step), tensors)


def check_product(place: str, entry: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Check that NAdam's product of momenta, if there is one, is that of constant options.

    Raises:
        ConversionError: it is another, or its group has no momentum decay; the message begins with
            ``place``.
    """
    if MU_PRODUCT not in entry:
        return
    decay, step = group.get(MOMENTUM_DECAY), checked_step(place, entry["step"])
    if not isinstance(decay, int | float):
        raise ConversionError(f"{place} has {MU_PRODUCT!r}, its group no {MOMENTUM_DECAY!r}.")
    found = scalar(entry[MU_PRODUCT])
    expected = momentum_product(float(group["betas"][0]), float(decay), step)
    if not isinstance(found, int | float) or not math.isclose(
        found, expected, rel_tol=1e-3, abs_tol=1e-6
    ):
        raise ConversionError(
            f"{place}: {MU_PRODUCT} is {found!r}; with these betas and {MOMENTUM_DECAY} it is "
            f"{expected:.6g} after {step} steps.",
            hint="Betas that changed during a run of NAdam cannot be continued.",
        )


def checked_step(place: str, value: object) -> int:
    """Return AdamW's step count, kept as a number or a tensor of one.

    Raises:
        ConversionError: it is not a whole number, or out of range; the message begins with
            ``place``.
    """
    value = scalar(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value < _STEP_LIMIT and value == int(value))
    ):
        raise ConversionError(
            f"{place}: step is {value!r}; it must be a whole number from 0 to below 2**63."
        )
    return int(value)


def scalar(value: object) -> object:
    """Return what a tensor of one value holds; anything else as it is."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        return value
    return value.item() if value.layout == torch.strided and not value.is_meta else value


def check_moment_kind(place: str, moment: str, value: object) -> tuple[int, ...]:
    """Check that one of AdamW's moments is a dense float tensor, and return its shape.

    Raises:
        ConversionError: it is something else; the message begins with ``place``.
    """
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_meta
        or not value.is_floating_point()
    ):
        what = type(value).__name__
        if isinstance(value, Tensor):
            what = f"{value.dtype} {value.layout}{' without values' if value.is_meta else ''}"
        raise ConversionError(f"{place}: {moment} is {what}; it must be a dense float tensor.")
    return tuple(value.shape)


def check_moment_values(place: str, moment: str, value: Tensor) -> None:
    """Check that one of AdamW's moments is finite in float32 and, if a square, not negative.

    Raises:
        ConversionError: saying how many values are not; the message begins with ``place``.
    """
    x = local_tensor(value.detach()).float()
    low, high = (float(end) for end in x.aminmax()) if x.numel() else (0.0, 0.0)
    if math.isfinite(low) and math.isfinite(high) and (moment != "exp_avg_sq" or low >= 0):
        return
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ConversionError(
            f"{place}: {moment} holds {bad} values that are NaN or infinite.",
            hint="Use state from before the training diverged.",
        )
    negative = int((x < 0).sum()) if moment == "exp_avg_sq" else 0
    if negative:
        raise ConversionError(
            f"{place}: exp_avg_sq holds {negative} negative values; squares are 0 or more."
        )
