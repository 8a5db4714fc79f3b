"""Short names for the codecs of AdamW's two moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luma_core.codecs import BF16, FP32, Codec
from luma_core.errors import UnknownCodecError
from luma_core.optim.luma import luma_codecs
from luma_core.rules.adamw import MOMENTS

CodecConfigs = dict[str, dict[str, Any]]
"""Each moment's codec as its `to_dict` returned it."""


def _both(codec: type[Codec]) -> Callable[[int | None], CodecConfigs]:
    return lambda block_size: {name: codec(block_size=block_size).to_dict() for name in MOMENTS}


PRESETS: dict[str, Callable[[int | None], CodecConfigs]] = {
    "luma16": lambda block_size: luma_codecs(block_size=block_size),
    "fp32": _both(FP32),
    "bf16": _both(BF16),
}
"""Functions from a block size to the codecs that a short name stands for."""


def preset_codecs(
    codec: str | Mapping[str, Mapping[str, Any]], *, block_size: int | None
) -> CodecConfigs:
    """Return the codec configuration of each moment.

    Args:
        codec: one of ``PRESETS``, or the configurations themselves by moment, which have block
            sizes of their own.
        block_size: elements per scale block for a short name, or ``None`` for one per tensor.

    Raises:
        UnknownCodecError: the name is not one of ``PRESETS``.
        ConfigurationError: ``block_size`` cannot work.
    """
    if isinstance(codec, Mapping):
        return {moment: dict(config) for moment, config in codec.items()}
    if not isinstance(codec, str) or codec not in PRESETS:
        raise UnknownCodecError(
            f"codec={codec!r} must be one of {', '.join(map(repr, PRESETS))}.",
            hint="Or a mapping of each moment to what its codec's to_dict() returns.",
        )
    return PRESETS[codec](block_size)
