# SPDX-License-Identifier: MIT
"""Reports on a scored search space: one HTML file with its plots and tables."""

from __future__ import annotations

from nasfast.report.correlate import correlations, precision_check
from nasfast.report.draw import OpStyle, draw_cell, op_styles
from nasfast.report.finetuning import estimate_rows
from nasfast.report.html import write_report
from nasfast.report.model import (
    CellDrawing,
    Control,
    CorrelationRow,
    Estimate,
    EstimateCurve,
    EstimateRow,
    FineTuningReport,
    PrecisionCheck,
    RankedArch,
    Report,
    ReportSummary,
)

__all__ = [
    "CellDrawing",
    "Control",
    "CorrelationRow",
    "Estimate",
    "EstimateCurve",
    "EstimateRow",
    "FineTuningReport",
    "OpStyle",
    "PrecisionCheck",
    "RankedArch",
    "Report",
    "ReportSummary",
    "correlations",
    "draw_cell",
    "estimate_rows",
    "op_styles",
    "precision_check",
    "write_report",
]
