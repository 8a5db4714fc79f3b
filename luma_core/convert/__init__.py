"""Foreign formats of AdamW state: one file per format, each a source, a sink, or both."""

from luma_core.convert.base import (
    AdamWState,
    MomentError,
    ParameterInfo,
    Sink,
    SinkOptions,
    Source,
    Written,
)
from luma_core.convert.codecs import codec_choices
from luma_core.convert.registry import (
    ConversionReport,
    convert,
    format_names,
    open_source,
    source_names,
    target_names,
)
from luma_core.convert.together import convert_together

__all__ = [
    "AdamWState",
    "ConversionReport",
    "MomentError",
    "ParameterInfo",
    "Sink",
    "SinkOptions",
    "Source",
    "Written",
    "codec_choices",
    "convert",
    "convert_together",
    "format_names",
    "open_source",
    "source_names",
    "target_names",
]
