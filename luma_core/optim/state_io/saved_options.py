"""Options of saved groups: checked, and which optimizer they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luma_core import catalog
from luma_core.errors import ConfigurationError, StateMismatchError
from luma_core.optim.options import check_codecs, check_options, check_parameter_codecs
from luma_core.optim.state_io.owner import StateOwner
from luma_core.rules import Rule
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.registry import algorithm_with

ADAMW = "torch.optim.AdamW"
"""The algorithm of PyTorch's AdamW and Adam."""

ALGORITHM_KEY = "algorithm"
"""Where groups of a state dict say the algorithm; an optimizer's own groups do not have it."""
FOREIGN_MUON = "Muon of another program"
"""The algorithm of PyTorch's Muon and others'."""

MUON_OPTIONS = ("momentum", "nesterov", "ns_coefficients", "ns_steps", "ns_eps", "adjust_lr_fn")
"""The options that those share with `Muon`, beside `SHARED_OPTIONS`."""

SHARED_OPTIONS = ("lr", "betas", "eps", "weight_decay", "maximize")
"""The options that AdamW and its compressed forms share."""

COUPLING = "decoupled_weight_decay"
"""The option that says, in groups of rules that have it, whether weight decay is apart from the
gradient; in all others it is."""

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
    if decays_gradient(saved) and COUPLING not in rule.torch_options:
        raise StateMismatchError(
            f"saved parameter group {index} has weight_decay={saved['weight_decay']} added to the "
            "gradient, and so to both moments, which this optimizer cannot continue.",
            hint="Load it into Adam or RAdam.",
        )
    try:
        check_options(saved, {COUPLING, *rule.torch_options})
        check_codecs(saved["codecs"], rule.moments)
        check_parameter_codecs(saved.get("parameter_codecs", {}), rule.moment_names)
    except ConfigurationError as error:
        raise StateMismatchError(
            f"saved parameter group {index}: {error.message}", hint=error.hint
        ) from error


def decays_gradient(group: Mapping[str, Any]) -> bool:
    """Return whether a group's weight decay is added to gradients."""
    return not group.get(COUPLING, True) and group.get("weight_decay", 0) != 0


def options_taken_over(rule: Rule) -> tuple[str, ...]:
    """Return the options that a rule's groups adopt of state of another algorithm."""
    return (*SHARED_OPTIONS, *sorted(rule.torch_options))


def has_same_rule_and_codecs(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> bool:
    """Return whether state of AdamW's rule is in the codecs of an optimizer that has this rule."""
    own = [group["codecs"] for group in optimizer.param_groups]
    return optimizer.algorithm in SAME_RULE and all(group["codecs"] in own for group in groups)


def find_algorithm(groups: Sequence[Mapping[str, Any]], optimizer: StateOwner) -> str:
    """Return the algorithm that groups say, or else the one whose options they have.

    State from before groups said it is told by what it has. Moments tell rules apart. Between
    AdamW, LUMA and TurboAdam, whose rule is the same, codecs decide, whatever groups say; the
    optimizer's own codecs are its own state's.

    Raises:
        StateMismatchError: groups say several, or one that there is not.
    """
    if any("use_muon" in group for group in groups):
        return "muon"
    said = _said_algorithm(groups)
    if said is not None and said not in SAME_RULE:
        return said
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


def _said_algorithm(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the algorithm that groups say they are of; ``None`` where one does not."""
    said = [group[ALGORITHM_KEY] for group in groups if ALGORITHM_KEY in group]
    if not said or len(said) < len(groups):
        return None
    known = [entry.name for entry in catalog.ALGORITHMS]
    for name in said:
        if name not in known or name != said[0]:
            raise StateMismatchError(
                f"saved parameter groups say algorithm={name!r}; all must say one of "
                f"{', '.join(map(repr, known))}.",
                hint="Newer versions may know more: update luma-state.",
            )
    return str(said[0])
