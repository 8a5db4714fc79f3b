"""Foreign formats of AdamW state: one file per format, each a source, a sink, or both."""

from luma_core.convert.base import AdamWState, ParameterInfo, Sink, SinkOptions, Source
from luma_core.convert.registry import ConversionReport, convert, format_names, open_source

__all__ = [
    "AdamWState",
    "ConversionReport",
    "ParameterInfo",
    "Sink",
    "SinkOptions",
    "Source",
    "convert",
    "format_names",
    "open_source",
]
