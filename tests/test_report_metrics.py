# SPDX-License-Identifier: MIT
"""The second table of a report: its numbers are the metrics', and say what was resampled."""

import dataclasses

import numpy as np
import pytest
from test_report import check_stands_alone, make_report, written

from nasfast import metrics
from nasfast.report import Control
from nasfast.report.measures import bin_width, metric_table, resamples
from nasfast.report.tables import value_cell

OPTIONS = {"bootstrap": 200}


def with_images(report, images=20):
    """Bits whose mean is near the accuracy."""
    rng = np.random.default_rng(1)
    correct = rng.random((report.loss.size, images)) < np.asarray(report.accuracy)[:, None]
    bits = metrics.PerImage(np.packbits(correct, axis=1), images)
    return dataclasses.replace(report, correct=bits, accuracy=correct.mean(axis=1))


def test_rows_are_the_metrics():
    report = with_images(make_report(60))
    report.truth[:10] = np.nan
    loss, accuracy = -report.loss[10:], report.accuracy[10:]
    truth = report.truth[10:]
    table = metric_table(report)
    assert table.scores == ("Supernet loss", "Supernet accuracy", "Parameter count", "FLOPs")
    wanted = [
        metrics.top_k_mean(loss, truth, 10, **OPTIONS),
        metrics.top_k_best(loss, truth, 10, **OPTIONS),
        metrics.top_k_regret(loss, truth, 10, **OPTIONS),
        metrics.best_of_sample(loss, truth, sample=200, keep=3, **OPTIONS),
        metrics.surpass_random(loss, truth, runs=10, formula="paper", **OPTIONS),
        metrics.surpass_random(loss, truth, runs=10, formula="published_code", **OPTIONS),
        metrics.sparse_tau(loss, truth, binning="floor", threshold=0.001, **OPTIONS),
    ]
    assert [row.cells[0] for row in table.rows[:-1]] == wanted
    assert all(cell.resampled == "architectures" for cell in wanted)
    images = table.rows[-1]
    assert images.cells[0] is None and images.cells[2:] == (None, None)
    kept = metrics.PerImage(report.correct.values[10:], 20)
    assert images.cells[1] == metrics.kendall_tau(kept, truth, **OPTIONS)
    assert images.cells[1].resampled == "images" and table.images == 20
    assert images.cells[1].value == metrics.kendall_tau(accuracy, truth).value
    flops = report.controls[1].scores[10:]
    assert table.rows[0].cells[3] == metrics.top_k_mean(flops, truth, 10, **OPTIONS)
    assert metric_table(dataclasses.replace(report, truth=None)) is None


def test_page(tmp_path):
    summary, text = written(with_images(make_report(60)), tmp_path)
    page = check_stands_alone(text)
    assert "What a search would find" in page.words
    for row in summary.metrics.rows:
        assert f"{row.name}{row.about}" in page.words.replace(f"{row.name} ", row.name)
        for cell in row.cells:
            if cell is not None:
                assert value_cell(cell)["value"] in page.words
                assert value_cell(cell)["interval"] in page.words
    assert "200 resamples of the architectures unless it says images" in page.words
    assert "20 images drawn anew, not architectures" in page.words
    assert "the noise of the 20 images at hand" in page.words
    binned = next(row for row in summary.metrics.rows if row.name == "Sparse tau, floor")
    assert "floor(truth / 0.001)" in binned.about
    assert f"Ties in truth, binned {binned.cells[0].ties_truth}" in page.words


def test_without_bits_there_is_no_interval_over_images(tmp_path):
    summary, text = written(make_report(60), tmp_path)
    assert summary.metrics.images is None
    assert all(row.name != "Kendall tau-b" for row in summary.metrics.rows)
    assert "drawn anew" not in text


@pytest.mark.parametrize("finite", [0, 1])
def test_too_few_finite_scores(tmp_path, finite):
    report = make_report(60, truth=np.where(np.arange(60) < 40, 0.5, np.nan))
    lost = Control("lost", np.where(np.arange(60) < finite, 1.0, np.nan))
    summary, text = written(dataclasses.replace(report, controls=(lost,)), tmp_path)
    check_stands_alone(text)
    cells = [row.cells[2] for row in summary.metrics.rows]
    assert cells[-1] is None  # no correlation
    assert all(cell is None or cell.n == finite for cell in cells)


@pytest.mark.parametrize(
    ("truth", "width"),
    [([0.1, 1.0], 0.001), ([0.1, 93.4], 0.1), ([0.0, 100.0], 0.1), ([-1.0, 0.5], None),
     ([3.0, 250.0], None), ([], None)],
)  # fmt: skip
def test_bins_of_a_tenth_of_a_point(truth, width):
    assert bin_width(np.array(truth)) == width


def test_a_truth_that_is_no_accuracy_is_not_binned():
    table = metric_table(make_report(60, truth=-np.arange(60.0)))
    assert [row.name for row in table.rows if "Sparse" in row.name] == []


def test_fewer_resamples_of_many_architectures(tmp_path):
    """And none of controls, which the page says."""
    assert (resamples(2000), resamples(2001)) == (200, 100)
    summary, text = written(make_report(2001), tmp_path)
    cells = summary.metrics.rows[0].cells
    assert [cell.interval is None for cell in cells] == [False, False, True, True]
    words = check_stands_alone(text).words
    assert "unless it says images; controls over so many architectures have none." in words


@pytest.mark.parametrize(
    ("name", "value", "interval", "shown"),
    [
        ("top_10_regret", 0.0157, (0.00833, 0.0214), ("0.0157", "0.0083 to 0.0214")),
        ("top_10_mean", 94.4512, (93.0, 95.0), ("94.45", "93.00 to 95.00")),
        ("surpass_random[paper, runs=10]", 0.99999, (0.1, 1.0), ("1.000", "0.100 to 1.000")),
        ("top_10_mean", -0.5, (-1.0, 0.0), ("\N{MINUS SIGN}0.5000",
                                             "\N{MINUS SIGN}1.0000 to 0.0000")),
        ("top_10_mean", float("nan"), None, ("undefined", "")),
    ],
)  # fmt: skip
def test_intervals_have_the_decimals_of_their_value(name, value, interval, shown):
    level = 0.95 if interval else None
    cell = value_cell(metrics.Measured(name, value, 9, 0, 0, 0, interval, level))
    assert (cell["value"], cell["interval"]) == shown
