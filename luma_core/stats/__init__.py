"""Streaming statistics of optimizer states, live or saved, and the difference of two."""

from luma_core.stats.compute import compute
from luma_core.stats.difference import diff
from luma_core.stats.report import (
    HISTOGRAM_BINS,
    HISTOGRAM_EDGES,
    HISTOGRAM_LOW,
    HISTOGRAM_WIDTH,
    CheckpointStats,
    ErrorStats,
    Histogram,
    MomentDiff,
    MomentStats,
    ParameterDiff,
    ParameterStats,
    QuantityStats,
    ScaleStats,
    StateDiff,
    TotalDiff,
    TotalStats,
)

__all__ = [
    "HISTOGRAM_BINS",
    "HISTOGRAM_EDGES",
    "HISTOGRAM_LOW",
    "HISTOGRAM_WIDTH",
    "CheckpointStats",
    "ErrorStats",
    "Histogram",
    "MomentDiff",
    "MomentStats",
    "ParameterDiff",
    "ParameterStats",
    "QuantityStats",
    "ScaleStats",
    "StateDiff",
    "TotalDiff",
    "TotalStats",
    "compute",
    "diff",
]
