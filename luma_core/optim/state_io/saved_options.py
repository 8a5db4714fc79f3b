"""Options of saved groups: checked, and which optimizer they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luma_core.errors import ConfigurationError, StateMismatchError
from luma_core.optim.options import check_codecs, check_options, check_parameter_codecs
from luma_core.optim.state_io.owner import StateOwner
from luma_core.rules import Rule
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.registry import algorithm_with

ADAMW = "torch.optim.AdamW"
"""The algorithm of PyTorch's AdamW and Adam."""

FOREIGN_MUON = "Muon of another program"
"""The algorithm of PyTorch's Muon and others'."""

MUON_OPTIONS = ("momentum", "nesterov", "ns_coefficients", "ns_steps", "ns_eps", "adjust_lr_fn")
"""The options that those share with `Muon`, beside `SHARED_OPTIONS`."""

SHARED_OPTIONS = ("lr", "betas", "eps", "weight_decay", "maximize")
"""The options that AdamW and its compressed forms share."""

SAME_RULE = ("adamw", "luma", "turbo_adam")
"""The algorithms of `AdamW` and of those that are it with codecs chosen."""

_REQUIRED_OPTIONS = ("codecs", "min_compress_elements")
_LAMB_OPTIONS = frozenset({"max_grad_norm", "trust_clip", "always_adapt", "bias_correction"})
_LUMA_CODECS = {"exp_avg": "luma16_m", "exp_avg_sq": "luma16_v"}


def check_saved_groups(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> None:
    """Check that saved options are those of groups of an optimizer of this project."""
    for index, group in enumerate(groups):
        _check_group(index, group, optimizer.rule.for_group(group))


def _check_group(index: int, saved: Mapping[str, Any], rule: Rule) -> None:
    for key in _REQUIRED_OPTIONS:
        if key not in saved:
            raise StateMismatchError(
                f"saved parameter group {index} has no {key!r}: it is not state of this optimizer.",
                hint="Load AdamW state with import_adamw_state().",
            )
    moments = saved["codecs"]
    if isinstance(moments, Mapping) and moments and set(moments) != set(rule.moment_names):
        raise StateMismatchError(
            f"saved parameter group {index} has the moments {', '.join(map(repr, moments))}; this "
            f"optimizer keeps {', '.join(map(repr, rule.moment_names))}.",
            hint="It is state of an optimizer with another update rule.",
        )
    try:
        check_options(saved)
        check_codecs(saved["codecs"], rule.moments)
        check_parameter_codecs(saved.get("parameter_codecs", {}), rule.moment_names)
    except ConfigurationError as error:
        raise StateMismatchError(
            f"saved parameter group {index}: {error.message}", hint=error.hint
        ) from error


def has_same_rule_and_codecs(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> bool:
    """Return whether state of AdamW's rule is in the codecs of an optimizer that has this rule."""
    own = [group["codecs"] for group in optimizer.param_groups]
    return optimizer.algorithm in SAME_RULE and all(group["codecs"] in own for group in groups)


def find_algorithm(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> str:
    """Return the algorithm whose options some groups have.

    Moments tell rules apart. Options of AdamW, LUMA and TurboAdam are the same, so there codecs
    decide; the optimizer's own codecs are its own state's.
    """
    if any("use_muon" in group for group in groups):
        return "muon"
    moments = {moment for group in groups for moment in group["codecs"]}
    if moments != set(MOMENTS):
        return algorithm_with(moments)
    keys = {key for group in groups for key in group}
    if keys & _LAMB_OPTIONS:
        return "lamb"
    if "parameter_codecs" in keys:
        return "adam_mini"
    if has_same_rule_and_codecs(groups, optimizer):
        return optimizer.algorithm
    kinds = [{moment: c["name"] for moment, c in group["codecs"].items()} for group in groups]
    return "luma" if all(kind == _LUMA_CODECS for kind in kinds) else "turbo_adam"
