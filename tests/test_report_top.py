# SPDX-License-Identifier: MIT
"""The plots of the top of a space: identification, sampling mass and use of operations."""

import dataclasses

import numpy as np
import pytest
from test_report import check_stands_alone, make_report, written

from nasfast import metrics
from nasfast.report import ArchOps, Sampling
from nasfast.report.plots import make_plots, to_svg
from nasfast.report.top_plots import make_top_curves, make_usage_plots, usage


def lines(plot):
    return {line.get_label(): line for line in plot.figure.axes[0].get_lines()}


def test_identification_curve():
    report = make_report(400)
    report.truth[:50] = np.nan
    (plot,) = make_top_curves(report)
    assert plot.name == "top_identification"
    drawn = lines(plot)
    assert list(drawn) == [
        "a random ranking", "supernet loss", "supernet accuracy", "Parameter count", "FLOPs",
    ]  # fmt: skip
    truth, x = report.truth[50:], drawn["supernet loss"].get_xdata()
    assert x[0] >= 10 and x[-1] == 350
    levels = np.sort(truth)[::-1][x.round().astype(int) - 1]
    wanted = metrics.top_identification_curve(-report.loss[50:], truth, levels=levels)
    assert drawn["supernet loss"].get_ydata() == pytest.approx(wanted.values)
    assert drawn["a random ranking"].get_ydata() == pytest.approx(x / 350)
    assert (
        len({str(line.get_linestyle()) + str(line._dash_pattern) for line in drawn.values()}) == 5
    )


def test_a_perfect_score_finds_everything():
    report = make_report(60)
    (plot,) = make_top_curves(dataclasses.replace(report, loss=-report.truth))
    assert (lines(plot)["supernet loss"].get_ydata() == 1.0).all()


def test_sampling_mass():
    report = make_report(40)
    uniform = dataclasses.replace(report, sampling=Sampling("a search", np.ones(40)))
    _, plot = make_top_curves(uniform)
    assert plot.name == "sampling_mass"
    drawn = lines(plot)
    assert list(drawn) == ["uniform sampling", "a search"]
    assert drawn["a search"].get_ydata() == pytest.approx(drawn["uniform sampling"].get_ydata())
    best = np.zeros(40)
    best[np.nanargmax(report.truth)] = 1.0
    _, plot = make_top_curves(dataclasses.replace(report, sampling=Sampling("a search", best)))
    assert (lines(plot)["a search"].get_ydata() == 1.0).all()


def test_nothing_to_draw(tmp_path):
    report = make_report(40)
    assert make_top_curves(dataclasses.replace(report, truth=None)) == ()
    one = np.where(np.arange(40) == 7, 0.5, np.nan)
    assert make_top_curves(dataclasses.replace(report, truth=one)) == ()
    nothing = np.full(40, np.nan)
    lost = dataclasses.replace(report, loss=nothing, accuracy=nothing, controls=(), top=())
    (plot,) = make_top_curves(lost)
    assert plot.caption.endswith("No value is finite.")
    assert "no value is finite" in make_usage_plots(lost)[0].caption
    assert make_usage_plots(dataclasses.replace(report, ops=None)) == ()
    _, text = written(lost, tmp_path)
    check_stands_alone(text)


def test_usage_by_hand():
    """The example of the paper: 3 of 10 use an operation, 4 times in all."""
    chosen = np.zeros((12, 5), dtype=int)
    chosen[0, :2] = chosen[4, 0] = chosen[9, 3] = 1
    chosen[10] = 2  # ranks eleventh
    scores = np.append(-np.arange(11.0), np.nan)
    found = usage(ArchOps(("conv", "pool", "none"), chosen), scores)
    assert found.sizes == (10, 11)
    assert found.using[0].tolist() == [1.0, 0.3, 0.0]
    assert found.share[0].tolist() == pytest.approx([46 / 50, 4 / 50, 0.0])
    assert found.share[1].tolist() == pytest.approx([46 / 55, 4 / 55, 5 / 55])
    assert found.using[1].tolist() == pytest.approx([10 / 11, 3 / 11, 1 / 11])


def test_usage_counts_the_blocks_that_are_used():
    """Twelve architectures of three blocks, of which loose ends carry nothing: -1."""
    chosen = np.full((12, 3), -1)
    chosen[:, 0] = 0
    chosen[:4, 1] = 1
    found = usage(ArchOps(("pool", "conv"), chosen, on="block"), -np.arange(12.0))
    assert found.sizes == (10, 12)
    assert found.using.tolist() == [[1.0, 4 / 10], [1.0, 4 / 12]]
    assert found.share.tolist() == [[10 / 14, 4 / 14], [12 / 16, 4 / 16]]


def test_usage_plots():
    report = make_report(400)
    names = [plot.name for plot in make_usage_plots(report)]
    by_loss = ["operation_usage_by_loss", "operation_share_by_loss"]
    assert names == [*by_loss, "operation_usage_by_truth", "operation_share_by_truth"]
    plots = make_usage_plots(dataclasses.replace(report, truth=None))
    assert [plot.name for plot in plots] == by_loss
    drawn = lines(plots[1])
    assert list(drawn) == list(report.ops.names)
    shares = np.stack([line.get_ydata() for line in drawn.values()])
    assert shares.sum(axis=0) == pytest.approx(np.ones(shares.shape[1]))
    assert len({line.get_marker() for line in drawn.values()}) == 5
    assert "all 400" in to_svg(plots[0])


def test_many_architectures_are_drawn_as_a_density():
    few, many = make_report(3000), make_report(3300)
    assert "Darker" not in make_plots(few)[0][0].caption
    plot = make_plots(many)[0][0]
    shown = plot.figure.axes[0].collections[0].get_array()
    beyond = int(plot.caption.partition("rank. ")[2].split()[0]) if "beyond" in plot.caption else 0
    assert shown.sum() + beyond == 3300
    assert f"Darker is denser, up to {shown.max():.0f} in one place." in plot.caption


def test_bad_accuracies_are_cut_and_counted():
    report = make_report(400, controls=(), params=None)
    accuracy = 0.9 + 0.05 * np.random.default_rng(0).random(400)
    accuracy[:3] = 0.1
    plot = make_plots(dataclasses.replace(report, accuracy=accuracy, top=()))[0][1]
    assert "lie beyond the edge, at an accuracy below 90." in plot.caption
