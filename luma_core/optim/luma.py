"""LUMA: AdamW whose two moments take 16 bits per parameter each."""

from __future__ import annotations

from typing import Any

from luma_core.optim.adamw import AdamW
from luma_core.optim.common_options import show_common_options
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, moment_kinds, preset_codecs


def luma_codecs(*, block_size: int | None = DEFAULT_BLOCK_SIZE) -> dict[str, dict[str, Any]]:
    """Return LUMA's codec configuration by moment.

    Args:
        block_size: elements per scale block, or ``None`` for one scale per tensor.
    """
    return preset_codecs("luma16", moment_kinds(LUMA.rule), block_size=block_size)


@show_common_options
class LUMA(AdamW):
    """AdamW with its state in about 4.02 bytes per parameter instead of 8.

    The first moment is kept on a signed logarithmic grid, the second on a logarithmic grid of its
    square root, both relative to their blocks and with unbiased stochastic rounding. Runs with
    equal seeds are bit-identical, and so are runs resumed from saved state.
    """

    algorithm: str = "luma"
