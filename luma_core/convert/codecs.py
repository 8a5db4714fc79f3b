"""Codecs of our own checkpoints by the names that a conversion takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luma_core import catalog
from luma_core.errors import ConfigurationError, UnknownCodecError
from luma_core.optim.luma import LUMA
from luma_core.optim.presets import CodecConfigs, moment_kinds, preset_codecs
from luma_core.optim.turbo_adam import TurboAdam, turbo_codecs
from luma_core.rules import Rule
from luma_core.rules.adam_family import AdamFamilyRule
from luma_core.rules.registry import rule_of

_TARGETS = {entry.name: entry for entry in catalog.TARGETS}


@dataclass(frozen=True)
class TargetCodecs:
    """How a converted state is kept.

    Attributes:
        algorithm: of the optimizer that goes on with it.
        codecs: configuration of each moment's codec.
    """

    algorithm: str
    codecs: CodecConfigs


def codec_choices() -> tuple[str, ...]:
    """Return the names that `target_codecs` takes."""
    return catalog.TARGET_NAMES


def _goes_on_as_adamw(rule: Rule) -> bool:
    """Return whether what is made of a rule's state is AdamW's, as that of LAMB and Adam-mini."""
    same_moments = rule.moment_names == LUMA.rule.moment_names
    return same_moments and not isinstance(rule, AdamFamilyRule)


def target_codecs(
    name: Any,
    *,
    block_size: int | None,
    algorithm: str = "adamw",
    group: Mapping[str, Any] | None = None,
) -> TargetCodecs:
    """Return the codecs that a name stands for, and the algorithm whose state they make.

    Args:
        name: one of `codec_choices`.
        block_size: elements per scale block, or ``None`` for one scale per tensor.
        algorithm: whose state it is.
        group: options of the group, where those say which rule steps it.

    Raises:
        UnknownCodecError: there is no such name.
        ConfigurationError: ``block_size`` cannot work with it.
    """
    if name not in codec_choices():
        raise UnknownCodecError(
            f"codec={name!r} must be one of {', '.join(map(repr, codec_choices()))}."
        )
    preset, rule = _TARGETS[name].preset, rule_of(algorithm)
    if rule is not None and not _goes_on_as_adamw(rule):
        kinds = moment_kinds(rule.for_group(group or {}))
        return TargetCodecs(algorithm, preset_codecs(preset, kinds, block_size=block_size))
    if _TARGETS[name].algorithm == LUMA.algorithm:
        codecs = preset_codecs(preset, moment_kinds(LUMA.rule), block_size=block_size)
        return TargetCodecs(LUMA.algorithm, codecs)
    if block_size is None:
        raise ConfigurationError(
            f"block_size=None does not go with codec={name!r}, which needs a scale for each block.",
            hint="Use 128.",
        )
    codecs = turbo_codecs(preset=preset, block_size=block_size)
    return TargetCodecs(TurboAdam.algorithm, codecs)
