# SPDX-License-Identifier: MIT
"""Reports on a scored search space: one HTML file with its plots and tables."""

from __future__ import annotations

from nasfast.report.correlate import correlations, precision_check
from nasfast.report.draw import OpStyle, draw_cell, op_styles
from nasfast.report.finetuning import estimate_rows
from nasfast.report.html import write_report
from nasfast.report.model import (
    ArchOps,
    CellDrawing,
    Control,
    CorrelationRow,
    CostReport,
    Estimate,
    EstimateCurve,
    EstimateRow,
    FineTuningReport,
    MergeRow,
    MetricRow,
    MetricTable,
    PrecisionCheck,
    RankedArch,
    Report,
    ReportSummary,
    Sampling,
    WorkRow,
)
from nasfast.report.scalars import Scalar, tensorboard_writer, write_scalars

__all__ = [
    "ArchOps",
    "CellDrawing",
    "Control",
    "CorrelationRow",
    "CostReport",
    "Estimate",
    "EstimateCurve",
    "EstimateRow",
    "FineTuningReport",
    "MergeRow",
    "MetricRow",
    "MetricTable",
    "OpStyle",
    "PrecisionCheck",
    "RankedArch",
    "Report",
    "ReportSummary",
    "Sampling",
    "Scalar",
    "WorkRow",
    "correlations",
    "draw_cell",
    "estimate_rows",
    "op_styles",
    "precision_check",
    "tensorboard_writer",
    "write_report",
    "write_scalars",
]
