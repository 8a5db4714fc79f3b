"""Streaming statistics of optimizer states, live or saved, by module, and the difference of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.lazy import export_lazily

if TYPE_CHECKING:
    from luma_core.stats.computation import compute
    from luma_core.stats.difference import diff
    from luma_core.stats.modules import (
        METRICS,
        ModuleList,
        ModuleStats,
        QuantitySummary,
        ScaleSummary,
        by_module,
        module_of,
        together,
        within,
    )
    from luma_core.stats.report import (
        HISTOGRAM_BINS,
        HISTOGRAM_EDGES,
        HISTOGRAM_LOW,
        HISTOGRAM_WIDTH,
        STATS_VERSION,
        CheckpointStats,
        ErrorStats,
        Histogram,
        MomentDiff,
        MomentStats,
        ParameterDiff,
        ParameterStats,
        QuantityStats,
        ScaleHistogram,
        ScaleStats,
        StateDiff,
        TotalDiff,
        TotalStats,
    )
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "luma_core.stats.computation": ["compute"],
            "luma_core.stats.difference": ["diff"],
            "luma_core.stats.modules": [
                "METRICS",
                "ModuleList",
                "ModuleStats",
                "QuantitySummary",
                "ScaleSummary",
                "by_module",
                "module_of",
                "together",
                "within",
            ],
            "luma_core.stats.report": [
                "HISTOGRAM_BINS",
                "HISTOGRAM_EDGES",
                "HISTOGRAM_LOW",
                "HISTOGRAM_WIDTH",
                "STATS_VERSION",
                "CheckpointStats",
                "ErrorStats",
                "Histogram",
                "MomentDiff",
                "MomentStats",
                "ParameterDiff",
                "ParameterStats",
                "QuantityStats",
                "ScaleHistogram",
                "ScaleStats",
                "StateDiff",
                "TotalDiff",
                "TotalStats",
            ],
        },
    )

__all__ = [
    "HISTOGRAM_BINS",
    "HISTOGRAM_EDGES",
    "HISTOGRAM_LOW",
    "HISTOGRAM_WIDTH",
    "METRICS",
    "STATS_VERSION",
    "CheckpointStats",
    "ErrorStats",
    "Histogram",
    "ModuleList",
    "ModuleStats",
    "MomentDiff",
    "MomentStats",
    "ParameterDiff",
    "ParameterStats",
    "QuantityStats",
    "QuantitySummary",
    "ScaleHistogram",
    "ScaleStats",
    "ScaleSummary",
    "StateDiff",
    "TotalDiff",
    "TotalStats",
    "by_module",
    "compute",
    "diff",
    "module_of",
    "together",
    "within",
]
