"""What ``codec=`` may say: short names for a codec of each kind of moment, or a codec by moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luma_core.codecs import (
    BF16,
    FP32,
    Codec,
    LogV,
    Luma16M,
    Luma16V,
    RootV,
    TableM,
    codec_from_dict,
    codec_names,
)
from luma_core.codecs.registry import codec_type
from luma_core.errors import ConfigurationError, UnknownCodecError
from luma_core.rules import MomentKind, Rule

CodecConfigs = dict[str, dict[str, Any]]
"""Each moment's codec as its `to_dict` returned it."""

CodecChoice = str | Mapping[str, str | Mapping[str, Any]]
"""What ``codec=`` takes: a preset, or by moment a codec's name or what `to_dict` returned."""

DEFAULT_BLOCK_SIZE = 128

SCALE_RISE = 64
"""How far the scale of `RootV` may rise in a step: half an octave. ``benchmarks/stall.py`` measures
what it is for."""

MIN_TABLE_ELEMENTS = 4096
"""Tensors with fewer elements keep a first moment in float32, where it is kept in a few bits."""

TURBO_PRESETS: dict[str, dict[str, Any]] = {
    "5bit": {"m_bits": 3, "v_bits": 2, "v_floor": 0.25},
    "8bit": {"m_bits": 3, "v_bits": 5, "v_floor": None},
    "16bit": {"m_bits": 8, "v_bits": 8, "v_floor": None},
}
"""The presets of a few bits, called after the bits that AdamW's two moments take together; see
docs/turbo-adam.md for what was measured with each."""


def moment_kinds(rule: Rule) -> dict[str, MomentKind]:
    """Return the kind of each moment that a rule keeps, in the rule's order."""
    return {spec.name: spec.kind for spec in rule.moments}


def few_bits_of_squares(bits: int, floor: float | None, *, block_size: int | None) -> Codec:
    """Return the codec of second moments in ``bits`` bits, with a floor or without (``None``)."""
    if floor is None:
        return LogV(block_size=block_size, bits=bits)
    return RootV(block_size=block_size, bits=bits, floor=floor, rise=SCALE_RISE)


Build = Callable[[int | None], Codec]
"""Makes a codec with a block size."""


def _both(codec: type[Codec]) -> dict[MomentKind, Build]:
    return dict.fromkeys(("signed", "square"), lambda block_size: codec(block_size=block_size))


def _few_bits(m_bits: int, v_bits: int, v_floor: float | None) -> dict[MomentKind, Build]:
    return {
        "signed": lambda block_size: TableM(
            block_size=block_size, bits=m_bits, min_elements=MIN_TABLE_ELEMENTS
        ),
        "square": lambda block_size: few_bits_of_squares(v_bits, v_floor, block_size=block_size),
    }


PRESETS: dict[str, dict[MomentKind, Build]] = {
    "luma16": {
        "signed": lambda block_size: Luma16M(block_size=block_size),
        "square": lambda block_size: Luma16V(block_size=block_size),
    },
    "fp32": _both(FP32),
    "bf16": _both(BF16),
    **{name: _few_bits(**bits) for name, bits in TURBO_PRESETS.items()},
}
"""The codec that a short name stands for, by kind of moment: a function of the block size."""


def stores(codec: type[Codec], kind: MomentKind) -> bool:
    """Return whether a codec stores moments of a kind, in any optimizer."""
    return codec.tiled and (codec.signed if kind == "signed" else codec.positive)


def codecs_of_kind(kind: MomentKind) -> tuple[str, ...]:
    """Return the names of the codecs that store moments of a kind, sorted."""
    return tuple(name for name in codec_names() if stores(codec_type(name), kind))


def preset_codecs(
    codec: CodecChoice,
    moments: Mapping[str, MomentKind],
    *,
    block_size: int | None,
    given_block_size: bool = False,
) -> CodecConfigs:
    """Return the codec configuration of each moment.

    Args:
        codec: one of ``PRESETS``; or by moment a codec's name, or its configuration, which has a
            block size of its own.
        moments: the kind of each moment.
        block_size: elements per scale block of what is given by name, or ``None`` for one per
            tensor.
        given_block_size: whether it was asked for, so that configurations must have it too.

    Raises:
        UnknownCodecError: a name is not known.
        ConfigurationError: moments are missing or unknown, a codec cannot store its moment, or
            ``block_size`` cannot work.
    """
    if isinstance(codec, Mapping):
        if set(codec) != set(moments):
            raise ConfigurationError(
                f"codec={dict(codec)!r} must map each of {', '.join(map(repr, moments))} to a "
                "codec, and nothing else.",
                hint=_hint(moments),
            )
        return {
            moment: moment_codec(
                codec[moment],
                moment,
                kind,
                block_size=block_size,
                given_block_size=given_block_size,
            ).to_dict()
            for moment, kind in moments.items()
        }
    if not isinstance(codec, str) or codec not in PRESETS:
        raise UnknownCodecError(
            f"codec={codec!r} must be one of {', '.join(map(repr, PRESETS))}, or map each of "
            f"{', '.join(map(repr, moments))} to a codec.",
            hint=_hint(moments),
        )
    return {moment: PRESETS[codec][kind](block_size).to_dict() for moment, kind in moments.items()}


def moment_codec(
    codec: str | Mapping[str, Any],
    moment: str,
    kind: MomentKind,
    *,
    block_size: int | None,
    given_block_size: bool = False,
) -> Codec:
    """Return the codec of one moment, of a name or of what `to_dict` returned.

    Raises:
        UnknownCodecError: no codec has that name.
        ConfigurationError: it cannot store such a moment, or its block size is another than asked
            for.
    """
    where = f"codec[{moment!r}]={codec!r}"
    hint = f"Codecs of such a moment: {', '.join(map(repr, codecs_of_kind(kind)))}."
    if not isinstance(codec, str | Mapping):
        raise ConfigurationError(
            f"{where} must be a codec's name, or what codec.to_dict() returns.", hint=hint
        )
    if isinstance(codec, str) and codec not in codec_names():
        raise UnknownCodecError(f"{where} is the name of no codec.", hint=hint)
    config = {"name": codec, "block_size": block_size} if isinstance(codec, str) else codec
    name = config.get("name")
    if name in codec_names() and not stores(codec_type(str(name)), kind):
        raise ConfigurationError(
            f"{where} cannot store {moment!r}: {_needs(codec_type(str(name)), kind)}.", hint=hint
        )
    found = codec_from_dict(config)
    if given_block_size and found.block_size != block_size:
        raise ConfigurationError(
            f"block_size={block_size!r} contradicts {where}.",
            hint="Leave block_size out: the configuration has its own.",
        )
    return found


def _needs(codec: type[Codec], kind: MomentKind) -> str:
    """Say why a codec stores no moments of a kind."""
    if not codec.tiled:
        return "each tensor needs such a codec of its own"
    if kind == "signed":
        return "its values have both signs"
    return "updates are divided by it, so that small values must not become 0"


def _hint(moments: Mapping[str, MomentKind]) -> str:
    """Say how codecs are given by moment."""
    return " ".join(
        f"For {moment!r}: {', '.join(map(repr, codecs_of_kind(kind)))}."
        for moment, kind in moments.items()
    )
