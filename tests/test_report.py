# SPDX-License-Identifier: MIT
"""Reports: the numbers are there, the page stands alone, and odd inputs still give a page."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from nasfast import metrics
from nasfast.report import (
    ArchOps,
    CellDrawing,
    Control,
    RankedArch,
    Report,
    Sampling,
    correlations,
    numbers,
    plots,
    write_report,
)

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}


def nb201_cell(index):
    ops = [OPS[index // 5**k % 5] for k in range(6)]
    return CellDrawing(4, tuple((*pair, op) for pair, op in zip(PAIRS, ops, strict=True)))


def nb201_string(cell):
    groups = (
        "".join(f"|{op}~{s}" for s, t, op in cell.edges if t == node) + "|" for node in (1, 2, 3)
    )
    return "+".join(groups)


def make_report(n=400, **changes):
    rng = np.random.default_rng(n)
    quality = rng.normal(size=n)
    loss = np.exp(0.5 * rng.normal(size=n) - quality)
    accuracy = np.round(64 / (1 + loss)) / 64
    params = np.round(1e5 * np.exp(0.3 * quality + rng.normal(size=n)))
    truth = np.round(1 / (1 + np.exp(-quality)), 3)
    top = []
    for rank, index in enumerate(metrics.top_k(-loss, 10).tolist(), start=1):
        cell = nb201_cell(index)
        top.append(
            RankedArch(
                rank=rank,
                index=index,
                arch=nb201_string(cell),
                loss=float(loss[index]),
                accuracy=float(accuracy[index]),
                params=int(params[index]),
                flops=140.0 * params[index],
                truth=float(truth[index]),
                cell=cell,
            )
        )
    values = {
        "title": "A ranking",
        "space": "NAS-Bench-201",
        "loss": loss,
        "accuracy": accuracy,
        "truth": truth,
        "truth_name": "test accuracy from scratch, 3 seeds",
        "controls": (Control("Parameter count", params), Control("FLOPs", 140 * params)),
        "params": params,
        "top": tuple(top),
        "facts": (("Seed", "777"), ("Precision", "bf16")),
        "notes": ("One supernet, one seed.",),
        "ops": ArchOps(OPS, np.arange(n)[:, None] // 5 ** np.arange(6) % 5),
    }
    return Report(**{**values, **changes})


class Page(HTMLParser):
    """Checks that tags nest, and collects text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def check_stands_alone(text):
    page = Page(text)
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    outside = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http:" not in outside and "https:" not in outside and "@import" not in outside
    assert "<script" not in text
    assert not {"link", "script", "iframe", "object", "img"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert reference in ids
    return page


def written(report, folder, **options):
    path = folder / "report.html"
    summary = write_report(report, path, **options)
    return summary, path.read_text(encoding="utf-8")


def test_the_whole_of_nas_bench_201(tmp_path):
    report = make_report(15_625)
    summary, text = written(report, tmp_path, png_folder=tmp_path / "plots")
    page = check_stands_alone(text)
    assert len(text) < 1_000_000
    assert "NAS-Bench-201, 15,625 architectures" in page.words
    assert " ".join(summary.headline.split()) in page.words
    tau = metrics.kendall_tau(-report.loss, report.truth, bootstrap=200)
    assert summary.correlations[0].kendall == tau
    assert f"Kendall tau-b of {tau.value:.3f}" in summary.headline
    assert numbers.interval(tau.interval) in summary.headline
    assert [row.name for row in summary.correlations] == [
        "Supernet loss, negated",
        "Supernet accuracy",
        "Parameter count",
        "FLOPs",
        "Supernet loss, parameter count held fixed",
    ]
    for row in summary.correlations:
        assert row.name in page.words
        assert f"{row.kendall.value:.3f}" in page.words
        assert f"{row.kendall.ties_scores:,}" in page.words
    assert summary.correlations[-1].spearman is None
    for arch in report.top:
        assert arch.arch in page.words
        assert numbers.significant(arch.loss) in page.words
        assert numbers.millions(arch.params) in page.words
        assert numbers.significant(arch.truth) in page.words
    assert "Seed" in page.words and "777" in page.words and "One supernet" in page.words
    assert sorted(p.name for p in summary.pngs) == [
        "accuracy_and_truth.png",
        "accuracy_histogram.png",
        "loss_and_truth.png",
        "loss_histogram.png",
        "operation_share_by_loss.png",
        "operation_share_by_truth.png",
        "operation_usage_by_loss.png",
        "operation_usage_by_truth.png",
        "top_identification.png",
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in summary.pngs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plots", "report.html"]


@pytest.mark.parametrize("n", [30, 3300])
def test_equal_reports_give_equal_bytes(tmp_path, n):
    # 3,300 points are drawn as an image inside the SVG, fewer as shapes.
    report = make_report(n, controls=(), params=None)
    write_report(report, tmp_path / "a.html", png_folder=tmp_path)
    first = {p.name: p.read_bytes() for p in tmp_path.glob("*.png")}
    write_report(report, tmp_path / "b.html", png_folder=tmp_path)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert first == {p.name: p.read_bytes() for p in tmp_path.glob("*.png")}


def test_correlations_are_the_metrics():
    report = make_report()
    report.truth[:30] = np.nan
    report.loss[25:40] = np.inf
    known = slice(30, None)
    rows = correlations(report)
    assert rows[0].kendall == metrics.kendall_tau(
        -report.loss[known], report.truth[known], bootstrap=1000
    )
    # Unknown truths are no failure of the score: only 30..39 count as left out.
    assert (rows[0].kendall.n, rows[0].kendall.dropped) == (360, 10)
    assert rows[2].spearman == metrics.spearman(
        report.params[known], report.truth[known], bootstrap=1000
    )
    assert (
        rows[-1].kendall.value
        == metrics.partial_kendall_tau(
            -report.loss[known], report.truth[known], report.params[known]
        ).value
    )
    assert len(rows) == 5
    assert len(correlations(dataclasses.replace(report, params=None, controls=()))) == 2


def test_rings_are_at_the_values_of_the_best_not_at_their_indices():
    report = make_report(40, controls=(), params=None)
    # As if only a part of the space were scored: official indices are not positions.
    top = tuple(dataclasses.replace(arch, index=arch.index + 15_000) for arch in report.top)
    top = (*top[:4], dataclasses.replace(top[4], truth=None))
    scatters, _ = plots.make_plots(dataclasses.replace(report, top=top))
    for plot in scatters:
        assert "4 rings mark the best by rank." in plot.caption
    rings = scatters[0].figure.axes[0].collections[1].get_offsets()
    assert np.asarray(rings).tolist() == [[arch.loss, arch.truth] for arch in top[:4]]


def test_without_truth(tmp_path):
    report = make_report()
    top = tuple(dataclasses.replace(arch, truth=None) for arch in report.top)
    summary, text = written(dataclasses.replace(report, truth=None, top=top), tmp_path)
    page = check_stands_alone(text)
    assert summary.correlations == () and summary.pngs == ()
    assert "No ground truth was given" in page.words
    assert "tau" not in summary.headline


def test_nothing_finite(tmp_path):
    nothing = np.full(400, np.nan)
    summary, text = written(make_report(loss=nothing, accuracy=nothing + np.inf, top=()), tmp_path)
    page = check_stands_alone(text)
    assert "none has a finite loss" in summary.headline and "undefined" in summary.headline
    assert "no value is finite" in page.words
    first = summary.correlations[0].kendall
    assert math.isnan(first.value) and (first.n, first.dropped) == (0, 400)
    assert math.isfinite(summary.correlations[2].kendall.value)


def test_truth_known_for_one_architecture_only(tmp_path):
    truth = np.full(400, np.nan)
    truth[7] = 0.5
    summary, text = written(make_report(truth=truth), tmp_path)
    check_stands_alone(text)
    assert all(math.isnan(row.kendall.value) for row in summary.correlations)


def test_constant_scores_are_undefined(tmp_path):
    changes = {"loss": np.full(400, math.log(10)), "accuracy": np.full(400, 0.1)}
    summary, text = written(make_report(**changes), tmp_path)
    page = check_stands_alone(text)
    assert math.isnan(summary.correlations[1].kendall.value)
    assert page.words.count("undefined") >= 6
    assert "1 distinct value; 400 share" in page.words


def test_heavy_tails_are_cut_and_counted(tmp_path):
    report = make_report()
    report.loss[:2] = 3e38
    report.loss[2:5] = np.nan
    _, text = written(dataclasses.replace(report, truth=None), tmp_path)
    words = check_stands_alone(text).words
    assert "3 are not finite and not shown." in words
    beyond = plots.shown_range(report.loss).beyond
    assert beyond >= 2
    assert f"{beyond} lie beyond the edge" in words


def test_shown_range():
    values = np.arange(1000.0)
    assert plots.shown_range(values) == plots.Range(0.0, 999.0, 0)
    values[-3:] = 1e6
    shown = plots.shown_range(values)
    assert shown.high < 1000.0 and shown.beyond == 5
    # Every tenth value is huge: the cut goes down to where the bulk can be seen.
    values[::12] = 1e6
    assert plots.shown_range(values).high < 1000.0
    assert plots.shown_range(np.array([2.0, np.nan, 2.0])) == plots.Range(2.0, 2.0, 0)


def test_histogram_bins_hold_equal_numbers_of_levels():
    for images in (10, 64, 256, 1797):
        levels = np.arange(images + 1) / images
        counts = np.histogram(levels, plots._bin_edges(levels, plots.Range(0.0, 1.0, 0)))[0]
        assert counts.sum() == levels.size and counts.size <= 61
        assert len(set(counts[:-1].tolist())) == 1


def test_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script> & $\\alpha_$ \u6f22"
    report = make_report(40)
    cell = CellDrawing(2, ((0, 1, evil),))
    top = (dataclasses.replace(report.top[0], arch=evil, cell=cell),)
    changes = {
        "title": evil,
        "space": evil,
        "truth_name": evil,
        "controls": (Control(evil, report.params),),
        "top": top,
        "facts": ((evil, evil),),
        "notes": (evil,),
    }
    _, text = written(dataclasses.replace(report, **changes), tmp_path)
    page = check_stands_alone(text)
    assert page.words.count(evil) >= 8


def test_architecture_strings_copy_as_they_are(tmp_path):
    report = make_report(40, truth=None)
    _, text = written(report, tmp_path)
    assert "<wbr>" in text and "\0" not in text
    assert report.top[0].arch in Page(text).words


@pytest.mark.parametrize("where", ["missing/report.html", "file/report.html", "folder"])
def test_a_failed_write_leaves_nothing(tmp_path, where):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=Path(where).name):
        write_report(make_report(40, truth=None), tmp_path / where)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nasfast.report.html.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(make_report(40, truth=None), path, png_folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": np.ones((20, 20))}, r"loss: wanted .* got shape \(20, 20\)"),
        ({"loss": np.ones(0)}, r"loss: wanted at least one value"),
        ({"accuracy": np.ones(399)}, r"accuracy: wanted shape \(400,\) .* got \(399,\)"),
        ({"truth": np.ones(401)}, r"truth: wanted"),
        ({"params": np.ones(1)}, r"params: wanted"),
        ({"controls": (Control("FLOPs", np.ones(3)),)}, r"controls\['FLOPs'\].scores: wanted"),
        ({"ops": ArchOps(OPS, np.ones((399, 6), dtype=int))}, r"ops.chosen: wanted"),
        ({"correct": metrics.PerImage(np.ones((3, 8)))}, r"correct.values: wanted"),
        ({"sampling": Sampling("a search", np.ones(3))}, r"sampling.probabilities: wanted"),
    ],
)
def test_reports_check_their_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        make_report(**changes)


@pytest.mark.parametrize("edges", [((1, 0, "x"),), ((0, 3, "x"),), ((-1, 1, "x"),), ((1, 1, "x"),)])
def test_cells_check_their_edges(edges):
    with pytest.raises(ValueError, match=r"edges: wanted 0 <= source < target < 3"):
        CellDrawing(3, edges)
    with pytest.raises(ValueError, match="num_nodes: wanted at least 2, got 1"):
        CellDrawing(1, ())
