"""Codecs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luma_core.codecs.base import Codec
from luma_core.codecs.bf16 import BF16
from luma_core.codecs.costate_m import CoStateM
from luma_core.codecs.fp8_e4m3 import FP8E4M3
from luma_core.codecs.fp32 import FP32
from luma_core.codecs.log_v import LogV
from luma_core.codecs.luma16_m import Luma16M
from luma_core.codecs.luma16_v import Luma16V
from luma_core.codecs.root_v import RootV
from luma_core.codecs.segment_mean import SegmentMean
from luma_core.codecs.table_m import TableM
from luma_core.errors import ConfigurationError, UnknownCodecError

_CODECS: dict[str, type[Codec]] = {
    cls.name: cls
    for cls in (FP32, BF16, FP8E4M3, Luma16M, Luma16V, TableM, CoStateM, RootV, LogV, SegmentMean)
}


def codec_names() -> tuple[str, ...]:
    """Return the names of all codecs, sorted."""
    return tuple(sorted(_CODECS))


def codec_type(name: str) -> type[Codec]:
    """Return the class of the codec of a name; a `KeyError` where there is none."""
    return _CODECS[name]


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
