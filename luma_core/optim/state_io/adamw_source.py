"""State of ``torch.optim.AdamW`` as a source: two moments in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luma_core import rounding
from luma_core.codecs import FP32, Codec
from luma_core.errors import ConversionError, StateMismatchError
from luma_core.optim.options import check_options
from luma_core.optim.state_io.adamw_entry import (
    MU_PRODUCT,
    AdamWEntry,
    check_moment_values,
    check_product,
    checked_entry,
)
from luma_core.optim.state_io.entries import check_entry_kind
from luma_core.optim.state_io.saved_groups import members_of, saved_names
from luma_core.optim.state_io.saved_options import (
    ADAMW,
    COUPLING,
    SHARED_OPTIONS,
    decays_gradient,
)
from luma_core.optim.state_io.sources import OwnParameter, Source
from luma_core.rules import Rule
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.nadamw import MOMENTUM_DECAY
from luma_core.state import GroupOptions, ParameterState, field_key

WHAT = "AdamW state"
"""What messages call it."""

_CODECS: dict[str, Codec] = {moment: FP32() for moment in MOMENTS}


def is_adamw_state(state_dict: Mapping[str, Any]) -> bool:
    """Return whether a state dict with all parts is of AdamW, or of another that keeps the same."""
    groups, entries = state_dict["param_groups"], state_dict["state"].values()
    if any("codecs" in group for group in groups) or not all("betas" in group for group in groups):
        return False
    moments = [all(m in entry for m in MOMENTS) for entry in entries if isinstance(entry, Mapping)]
    return any(moments) or (not any(entries) and all(map(_is_torch_group, groups)))


def _is_torch_group(group: Mapping[str, Any]) -> bool:
    return not group.keys().isdisjoint({"amsgrad", COUPLING})


def shared_options(group: Mapping[str, Any], *, coupled: bool = False) -> GroupOptions:
    """Return the options of an AdamW group that its compressed forms adopt.

    Args:
        group: the group.
        coupled: whether weight decay in the gradient can be continued.

    Raises:
        ConversionError: the group uses ``amsgrad``, or is Adam's with weight decay in the gradient.
        ConfigurationError: an option has a value that cannot work.
    """
    if group.get("amsgrad"):
        raise ConversionError(
            "the AdamW state uses amsgrad=True, whose running maximum cannot be represented.",
            hint="Only plain AdamW state can be converted.",
        )
    if decays_gradient(group) and not coupled:
        raise ConversionError(
            f"the state is of Adam with weight_decay={group['weight_decay']} added to the "
            "gradient, which AdamW cannot continue.",
            hint="Only the state of torch.optim.AdamW can be read.",
        )
    options = {key: group[key] for key in SHARED_OPTIONS if key in group}
    check_options(options)
    return options


class AdamWSource(Source):
    """What ``torch.optim.AdamW.state_dict()`` returned.

    Args:
        state_dict: with parts that `check_parts` has checked; keys of parameters may be names.
        rule: that is to go on with it.

    Raises:
        StateMismatchError: a group is not AdamW's, or names do not fit.
        ConversionError: it is not AdamW's state, cannot be represented, or a step or moment has a
            value that no AdamW run could have.
    """

    def __init__(self, state_dict: Mapping[str, Any], rule: Rule) -> None:
        groups = state_dict["param_groups"]
        for index, group in enumerate(groups):
            if "betas" not in group:
                raise StateMismatchError(
                    f"parameter group {index} of the {WHAT} has no 'betas': it is not AdamW's.",
                    hint="Give what torch.optim.AdamW's or Adam's state_dict() returned.",
                )
            shared_options(group, coupled=COUPLING in rule.torch_options)
            _check_name_count(index, group)
        names, named = saved_names(groups, WHAT, keys=True)
        super().__init__(ADAMW, groups, names, members_of(groups), named=named)
        more = frozenset({MU_PRODUCT} if MOMENTUM_DECAY in rule.torch_options else ())
        keys = ((key, group) for group in groups for key in group["params"])
        self._entries = [
            _checked(name, state_dict["state"].get(key), group, more)
            for name, (key, group) in zip(names, keys, strict=True)
        ]

    def has_state(self, index: int) -> bool:
        return self._entries[index] is not None

    def fits(self, index: int, own: OwnParameter) -> bool:
        entry = self._entries[index]
        return entry is None or entry.shape == tuple(own[1].shape)

    def codecs(self, index: int, own: OwnParameter) -> Mapping[str, Codec]:
        return _CODECS if self.has_state(index) else {}

    def state(self, index: int, own: OwnParameter) -> ParameterState:
        name, param, group = own
        dtype = str(param.dtype).removeprefix("torch.")
        head = ParameterState(name, tuple(param.shape), dtype, self.members[index])
        entry = self._entries[index]
        if entry is None:
            return head
        if entry.shape != head.shape:
            raise StateMismatchError(
                f"{name!r}: exp_avg has shape {list(entry.shape)}; "
                f"the parameter has {list(head.shape)}."
            )
        return ParameterState(
            name=name,
            shape=head.shape,
            dtype=dtype,
            group=head.group,
            step=entry.step,
            noise_key=rounding.parameter_key(group["seed"], name),
            codecs=_CODECS,
            fields={field_key(m, "value"): x.detach().float() for m, x in entry.moments.items()},
        )


def _checked(
    name: str, entry: Any, group: Mapping[str, Any], more: frozenset[str]
) -> AdamWEntry | None:
    """Return a parameter's entry, checked; None where it has no state."""
    if entry is None:
        return None
    check_entry_kind(name, entry)
    if not entry:
        return None
    found = checked_entry(repr(name), entry, more=more)
    check_product(repr(name), entry, group)
    for moment, value in found.moments.items():
        check_moment_values(repr(name), moment, value)
    return found


def _check_name_count(index: int, group: Mapping[str, Any]) -> None:
    names = group.get("param_names")
    count = len(group["params"])
    if names is not None and (not isinstance(names, list | tuple) or len(names) != count):
        raise StateMismatchError(
            f"parameter group {index} of the {WHAT} has 'param_names' that do not fit its "
            f"{count} 'params'; there must be one name for each."
        )
