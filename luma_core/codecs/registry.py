"""Codecs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luma_core.codecs.base import Codec
from luma_core.codecs.bf16 import BF16
from luma_core.codecs.fp32 import FP32
from luma_core.codecs.luma16_m import Luma16M
from luma_core.codecs.luma16_v import Luma16V
from luma_core.errors import ConfigurationError, UnknownCodecError

_CODECS: dict[str, type[Codec]] = {cls.name: cls for cls in (FP32, BF16, Luma16M, Luma16V)}


def codec_names() -> tuple[str, ...]:
    """Return the names of all codecs, sorted."""
    return tuple(sorted(_CODECS))


def codec_from_dict(config: Mapping[str, Any]) -> Codec:
    """Build a codec from plain JSON values, as `Codec.to_dict` returns them.

    Raises:
        UnknownCodecError: no codec has that name.
        ConfigurationError: its configuration cannot work.
    """
    name = config.get("name")
    if not isinstance(name, str) or name not in _CODECS:
        raise UnknownCodecError(
            f"codec {name!r} is not known.", hint=f"Known codecs: {', '.join(codec_names())}."
        )
    try:
        return _CODECS[name].from_dict(config)
    except TypeError as error:
        raise ConfigurationError(f"codec {name!r}: {error}.") from error
