# SPDX-License-Identifier: MIT
"""The section of a report on what bf16 did to a ranking."""

import dataclasses
import math

import numpy as np
import pytest
from test_report import check_stands_alone, make_report, written

from nasfast import metrics
from nasfast.report import numbers, precision_check

LOSS = np.array([0.5, 0.25, 0.75, 1.5, 1.0])
FP32_LOSS = np.array([0.5, 0.3, 0.7, 0.9, 1.0])  # one of ten pairs has another order
ACCURACY = np.array([0.5, 0.75, 0.5, 0.25, 0.25])
FP32_ACCURACY = np.array([0.5, 0.75, 0.4375, 0.25, 0.28125])


def test_by_hand():
    check = precision_check("bf16", LOSS, ACCURACY, FP32_LOSS, FP32_ACCURACY)
    assert check.kendall.value == pytest.approx((9 - 1) / 10)
    assert check.kendall == metrics.kendall_tau(-LOSS, -FP32_LOSS, bootstrap=1000)
    assert check.accuracy_difference == 0.0625


def test_section(tmp_path):
    check = precision_check("bf16", LOSS, ACCURACY, FP32_LOSS, FP32_ACCURACY)
    summary, text = written(dataclasses.replace(make_report(40), precision=check), tmp_path)
    assert summary.precision is check
    words = check_stands_alone(text).words
    assert "bf16 against fp32 This ranking was computed in bfloat16." in words
    assert "Of its architectures 5 were scored in float32 too" in words
    interval = numbers.interval(check.kendall.interval)
    assert f"of the two losses 0.800, 95 % interval {interval}, n = 5" in words
    assert "6.25 percentage points" in words
    tf32 = dataclasses.replace(check, precision="tf32")
    _, text = written(dataclasses.replace(make_report(40), precision=tf32), tmp_path)
    words = check_stands_alone(text).words
    assert "tf32 against fp32 This ranking was computed in tf32." in words
    assert "without a finite loss" not in words


def test_no_section_in_fp32(tmp_path):
    summary, text = written(make_report(40), tmp_path)
    assert summary.precision is None
    assert "against fp32" not in text


@pytest.mark.parametrize("finite", [0, 1])
def test_losses_that_are_not_finite(tmp_path, finite):
    """No correlation can be measured, and the page says so."""
    loss = np.where(np.arange(5) < finite, LOSS, np.nan)
    check = precision_check("bf16", loss, ACCURACY, FP32_LOSS, FP32_ACCURACY)
    assert math.isnan(check.kendall.value)
    assert (check.kendall.n, check.kendall.dropped) == (finite, 5 - finite)
    _, text = written(dataclasses.replace(make_report(40), precision=check), tmp_path)
    words = check_stands_alone(text).words
    assert f"{5 - finite} without a finite loss" in words
    assert f"undefined, n = {finite}" in words
