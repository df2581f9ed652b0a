# SPDX-License-Identifier: MIT
"""Fine-tuning in a report: the table by hand, curves that are not finite, missing truth."""

import dataclasses

import numpy as np
import pytest

from nasfast.report import Estimate, EstimateCurve, FineTuningReport, estimate_rows
from nasfast.report.curve_plots import make_curve_plots
from nasfast.report.finetuning import top_truth
from nasfast.report.plots import to_svg

TRUTH = np.array([0.1, 0.2, np.nan, 0.4])
REPORT = FineTuningReport(
    about="What was done.",
    truth=TRUTH,
    truth_name="toy accuracy",
    estimates=(
        Estimate("perfect", np.array([1.0, 2.0, 99.0, 3.0])),
        Estimate("reverse", np.array([3.0, 2.0, -99.0, np.nan])),
    ),
    curves=(
        EstimateCurve("SoTL", (1, 2), np.array([[3.0, 2.0, 0.0, 1.0], [1.0, 2.0, 0.0, 3.0]])),
        EstimateCurve("lost", (1, 2), np.full((2, 4), np.nan)),
        EstimateCurve("one point", (0,), np.array([[1.0, 3.0, 0.0, 2.0]])),
    ),
    diverged=((7, 3),),
)


def test_rows_are_over_the_architectures_with_a_truth():
    perfect, reverse = estimate_rows(REPORT)
    assert (perfect.kendall.value, perfect.spearman.value, perfect.kendall.n) == (1.0, 1.0, 3)
    assert perfect.top_truth == pytest.approx(np.mean([0.1, 0.2, 0.4]))
    assert (reverse.kendall.value, reverse.kendall.n, reverse.kendall.dropped) == (-1.0, 2, 1)
    assert reverse.top_truth == pytest.approx(0.15)  # what diverged is never selected
    assert estimate_rows(dataclasses.replace(REPORT, truth=None)) == ()


def test_the_first_ten_are_averaged():
    truth = np.arange(20.0)
    assert top_truth(truth, truth) == pytest.approx(np.mean(range(10, 20)))
    assert np.isnan(top_truth(np.full(20, np.nan), truth))


def test_plots():
    correlation, top = make_curve_plots(REPORT)
    assert (correlation.name, top.name) == ("finetuning_correlation", "finetuning_top")
    assert "over 3 architectures" in correlation.caption
    assert "the best possible, 0.2333" in top.caption
    svg = to_svg(make_curve_plots(REPORT)[0])
    assert "SoTL" in svg and "one point" in svg and "lost" not in svg
    assert svg == to_svg(make_curve_plots(REPORT)[0])


def test_nothing_finite_or_nothing_known():
    lost = dataclasses.replace(REPORT, curves=REPORT.curves[1:2])
    for plot in make_curve_plots(lost):
        assert plot.caption.endswith("No value is finite.")
    for nothing in (dict(truth=None), dict(curves=())):
        assert make_curve_plots(dataclasses.replace(REPORT, **nothing)) == ()
