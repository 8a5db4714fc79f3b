"""Foreign formats of AdamW state: one file per format, each a source, a sink, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.lazy import export_lazily
from luma_core.moved import give_moved_names

if TYPE_CHECKING:
    from luma_core.convert.base import (
        AdamWState,
        ConvertOptions,
        MomentError,
        ParameterInfo,
        Sink,
        Source,
        Written,
    )
    from luma_core.convert.codecs import codec_choices
    from luma_core.convert.conversion import ConversionReport, convert, open_source
    from luma_core.convert.registry import (
        Format,
        format_names,
        register_format,
        source_names,
        target_names,
    )
    from luma_core.convert.together import convert_together
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "luma_core.convert.base": [
                "AdamWState",
                "ConvertOptions",
                "MomentError",
                "ParameterInfo",
                "Sink",
                "Source",
                "Written",
            ],
            "luma_core.convert.codecs": ["codec_choices"],
            "luma_core.convert.conversion": ["ConversionReport", "convert", "open_source"],
            "luma_core.convert.registry": [
                "Format",
                "format_names",
                "register_format",
                "source_names",
                "target_names",
            ],
            "luma_core.convert.together": ["convert_together"],
        },
    )
    __getattr__ = give_moved_names(
        __name__, {"luma_core.convert": {"SinkOptions": "ConvertOptions"}}, __getattr__
    )

__all__ = [
    "AdamWState",
    "ConversionReport",
    "ConvertOptions",
    "Format",
    "MomentError",
    "ParameterInfo",
    "Sink",
    "Source",
    "Written",
    "codec_choices",
    "convert",
    "convert_together",
    "format_names",
    "open_source",
    "register_format",
    "source_names",
    "target_names",
]
