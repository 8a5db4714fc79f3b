"""Which codec each moment of a parameter gets: the one rule for what stays in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luma_core.codecs.base import Codec
from luma_core.codecs.blocks import BlockGrid
from luma_core.codecs.fp32 import FP32
from luma_core.codecs.registry import codec_from_dict
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
else:
    torch = import_later("torch", globals())

MIN_COMPRESS_ELEMENTS = 65_536
"""Default size below which flat tensors (biases, norms, tiny rows) stay in float32."""


def moment_codecs(
    configs: Mapping[str, Mapping[str, Any]],
    shape: tuple[int, ...] | torch.Size,
    min_compress_elements: int = MIN_COMPRESS_ELEMENTS,
) -> dict[str, Codec]:
    """Return the codec of each moment of a parameter.

    Flat tensors (see `BlockGrid`) of fewer than ``min_compress_elements`` elements stay in
    float32: they are a thousandth of a transformer and so slice exactly under any sharding.

    Args:
        configs: codec configuration by moment name, as in ``group["codecs"]``.
        shape: the parameter's shape.
        min_compress_elements: the rule's bound, as in ``group["min_compress_elements"]``.

    Raises:
        UnknownCodecError: a configuration names no known codec.
        ConfigurationError: a configuration cannot work.
    """
    return {
        moment: _select(_text(config), tuple(shape), min_compress_elements)
        for moment, config in configs.items()
    }


def parameter_codecs(
    options: Mapping[str, Any], name: str, shape: tuple[int, ...] | torch.Size
) -> dict[str, Codec]:
    """Return the codec of each moment of the parameter ``name`` of a group.

    Args:
        options: the group's, with ``codecs`` and ``min_compress_elements``. Where it has
            ``parameter_codecs``, that gives configurations by parameter name and moment, which
            hold as they are: for codecs that belong to one parameter, such as its partition.
        name: the parameter's name.
        shape: its shape.

    Raises:
        UnknownCodecError: a configuration names no known codec.
        ConfigurationError: a configuration cannot work.
    """
    codecs = moment_codecs(options["codecs"], shape, options["min_compress_elements"])
    own = options.get("parameter_codecs", {}).get(name, {})
    return {**codecs, **{moment: _exact(_text(config)) for moment, config in own.items()}}


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


@lru_cache(maxsize=4096)
def _exact(config: str) -> Codec:
    return codec_from_dict(json.loads(config))


@lru_cache(maxsize=4096)
def _select(config: str, shape: tuple[int, ...], min_compress_elements: int) -> Codec:
    codec = _exact(config)
    grid = BlockGrid.of(shape, codec.block_size)
    if (grid.flat and grid.numel < min_compress_elements) or not codec.takes(shape):
        return FP32(block_size=codec.block_size)
    return codec
