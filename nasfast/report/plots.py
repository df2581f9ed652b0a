# SPDX-License-Identifier: MIT
"""The plots of a report, as inline SVG and as PNG."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nasfast import metrics
from nasfast.report import numbers
from nasfast.report.model import Report

_Floats = npt.NDArray[np.float64]

_INK = "#222222"
_BLUE = "#1d4f91"
_RED = "#b3261e"
_SIZE_INCHES = (4.7, 3.3)
# Of more points the density is drawn: no point of so many could be told from another.
_MAX_VECTOR_POINTS = 3000
_MAX_BINS = 60
# Colours apart in a black and white print too: each has a line style of its own.
LINES: tuple[tuple[str, Any], ...] = (
    ("#1d4f91", "-"), ("#b4501e", "--"), ("#2f7d5b", "-."), ("#7a3e9d", ":"),
    ("#3d4146", (0, (5, 1, 1, 1, 1, 1))),
)  # fmt: skip
# One architecture is told from none, in grey too.
_DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#c3d3ea", "#7fa3d1", "#3b6cab", "#16407c", "#0a1f40"], N=32
)

_STYLE: dict[str, Any] = {
    "axes.edgecolor": "#777777",
    "axes.labelcolor": _INK,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlepad": 8.0,
    "figure.dpi": 100.0,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "svg.fonttype": "none",
    "text.color": _INK,
    # A name with dollar signs is a name, not a formula.
    "text.parse_math": False,
    "xtick.color": "#555555",
    "xtick.labelsize": 8.5,
    "ytick.color": "#555555",
    "ytick.labelsize": 8.5,
}


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: File name without its ending.
        figure: The drawing.
        caption: What is shown and what is not, in sentences.
    """

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Range:
    """The part of an axis that is shown.

    Attributes:
        low: Left end, the least finite value.
        high: Right end.
        beyond: Finite values that lie above ``high``.
    """

    low: float
    high: float
    beyond: int


def shown_range(values: _Floats) -> Range:
    """The range of the finite values, without the tail where the tail is long.

    The cut is at the largest value or, if that is not enough, at the 99.5, 98, 95 or 90
    percentile: the first that lies at most 8 times as far from the least value as the upper
    quartile does. Untrained supernets give losses that need this.

    Args:
        values: ``[n]``; at least one is finite.
    """
    finite = values[np.isfinite(values)]
    low, body = float(finite.min()), float(np.quantile(finite, 0.75))
    high = float(finite.max())
    for quantile in (0.995, 0.98, 0.95, 0.9):
        # With the upper quartile at the bottom, only the first cut makes sense.
        if high - low <= 8.0 * (body - low) or (body == low and quantile < 0.995):
            break
        high = float(np.quantile(finite, quantile))
    return Range(low, high, int((finite > high).sum()))


def make_plots(report: Report) -> tuple[tuple[Plot, ...], tuple[Plot, ...]]:
    """All plots of a report.

    Returns:
        The scores against the truth (none without one), and the distributions over the space.
    """
    loss = np.asarray(report.loss, dtype=np.float64)
    accuracy = np.asarray(report.accuracy, dtype=np.float64)
    with style():
        spread = (_histogram("accuracy", accuracy), _histogram("loss", loss))
        if report.truth is None:
            return (), spread
        truth = np.asarray(report.truth, dtype=np.float64)
        # Their own values, not their indices: the arrays may hold a part of the space.
        best = [(arch.loss, arch.accuracy, arch.truth) for arch in report.top]
        top = np.array(best, dtype=np.float64).reshape(-1, 3)
        scatters = (
            _scatter("loss", loss, truth, top[:, [0, 2]], report.truth_name),
            _scatter("accuracy", accuracy, truth, top[:, [1, 2]], report.truth_name),
        )
    return scatters, spread


def to_svg(plot: Plot) -> str:
    """The plot as one ``<svg>`` element that can stand beside others in an HTML page.

    Equal plots give equal text: no date, no random names.
    """
    buffer = io.StringIO()
    # Without metadata of any kind matplotlib writes no block for it.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style(plot.name):
        plot.figure.savefig(buffer, format="svg", dpi=200, metadata=metadata)
    plot.figure.set_layout_engine("none")  # it holds for the image too, and takes long
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = svg.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    # Names of groups repeat from plot to plot; only those that something refers to are needed.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", svg
    )
    return svg.replace("<svg ", '<svg role="img" aria-label="Plot: see the caption" ', 1)


def to_png(plot: Plot) -> bytes:
    """The plot as a PNG image at 200 dots an inch."""
    buffer = io.BytesIO()
    with style():
        plot.figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


@contextmanager
def style(hash_salt: str | None = None) -> Iterator[None]:
    """Draw in the style of all plots."""
    settings: Any = {**_STYLE, "svg.hashsalt": hash_salt}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn by the browser's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_axes() -> tuple[Figure, Axes]:
    """An empty plot of the size of all plots."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=3.0, width=0.7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def legend_above(axes: Axes) -> None:
    """Add the legend above the lines, which may be anywhere."""
    longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
    axes.legend(
        frameon=False, fontsize=8.0, loc="lower left", bbox_to_anchor=(-0.02, 1.0),
        ncols=3 if longest < 15 else 2 if longest < 34 else 1,
        handlelength=3.2, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip


def _histogram(kind: str, values: _Floats) -> Plot:
    figure, axes = new_axes()
    finite = values[np.isfinite(values)]
    axes.set_xlabel(f"supernet {kind}")
    axes.set_ylabel("architectures")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    caption = f"Supernet {kind} of {numbers.things(values.size, 'architecture', 'architectures')}"
    if finite.size == 0:
        say_empty(axes)
        return Plot(f"{kind}_histogram", figure, caption + ": no value is finite.")
    shown = _axis_range(kind, finite)
    edges = _bin_edges(finite, shown)
    axes.hist(finite[finite <= shown.high], bins=edges.tolist(), color=_BLUE, linewidth=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(lambda value, _: numbers.count(round(value)))
    if kind == "accuracy":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    distinct = np.unique(finite).size
    caption += (
        f": {numbers.things(distinct, 'distinct value', 'distinct values')}; "
        f"{numbers.count(metrics.count_ties(finite))} share theirs with another."
    )
    return Plot(
        f"{kind}_histogram", figure, caption + _left_out(kind, values.size - finite.size, shown)
    )


def _scatter(kind: str, values: _Floats, truth: _Floats, top: _Floats, truth_name: str) -> Plot:
    figure, axes = new_axes()
    known = np.isfinite(truth)
    usable = known & np.isfinite(values)
    name = f"{kind}_and_truth"
    axes.set_xlabel(f"supernet {kind}, better \N{RIGHTWARDS ARROW}")
    # Above the axis, where a long name needs no turning of the head.
    title = textwrap.fill(textwrap.shorten(truth_name, 110, placeholder=" ..."), 58)
    axes.set_title(title, loc="left", fontsize=9.0)
    caption = f"Supernet {kind} (across) and {truth_name} (up)"
    if not usable.any():
        say_empty(axes)
        return Plot(name, figure, caption + ": no architecture has both.")
    shown = _scatter_range(kind, values[usable])
    inside = usable & (values >= shown.low) & (values <= shown.high)
    n = int(inside.sum())
    dense = n > _MAX_VECTOR_POINTS
    if dense:
        most = _density(figure, axes, values[inside], truth[inside], shown)
    else:
        axes.scatter(values[inside], truth[inside], s=9.0, alpha=0.55, color=_BLUE, linewidths=0)
    ringed = top[np.isfinite(top).all(axis=1)]
    ringed = ringed[(ringed[:, 0] >= shown.low) & (ringed[:, 0] <= shown.high)]
    halo = [withStroke(linewidth=2.6, foreground="white")]
    axes.scatter(
        ringed[:, 0], ringed[:, 1], s=34.0, facecolors="none", edgecolors=_RED, linewidths=1.0,
        path_effects=halo,
    )  # fmt: skip
    axes.set_xlim(*_padded(shown))
    if kind == "accuracy":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    else:
        axes.invert_xaxis()
    caption += f" of {numbers.things(int(usable.sum()), 'architecture', 'architectures')}."
    if dense:
        caption += f" Darker is denser, up to {numbers.count(most)} in one place."
    if len(ringed):
        caption += f" {numbers.things(len(ringed), 'ring marks', 'rings mark')} the best by rank."
    return Plot(name, figure, caption + _left_out(kind, int((known & ~usable).sum()), shown))


def _density(figure: Figure, axes: Axes, x: _Floats, y: _Floats, shown: Range) -> int:
    """Draw how many points lie where, and return the most in one place."""
    x_edges = _bin_edges(x, shown)
    y_edges = _bin_edges(y, Range(float(y.min()), float(y.max()), 0))
    counts = np.histogram2d(x, y, bins=(x_edges, y_edges))[0].T
    most = int(counts.max())
    mesh = axes.pcolormesh(
        x_edges, y_edges, np.ma.masked_equal(counts, 0), cmap=_DENSITY,
        norm=LogNorm(1, max(most, 2)), rasterized=True, linewidth=0,
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=30, label="architectures")
    bar.ax.yaxis.set_major_formatter(lambda value, _: numbers.count(round(value)))
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # no white lines between the steps
    return most


def _left_out(kind: str, not_finite: int, shown: Range) -> str:
    text = ""
    if not_finite:
        verb = "is" if not_finite == 1 else "are"
        text += f" {numbers.count(not_finite)} {verb} not finite and not shown."
    if shown.beyond:
        verb = "lies" if shown.beyond == 1 else "lie"
        edge = f"a loss above {numbers.significant(shown.high, 3)}"
        if kind == "accuracy":
            edge = f"an accuracy below {numbers.percent(shown.low, 1)}"
        text += f" {numbers.count(shown.beyond)} {verb} beyond the edge, at {edge}."
    return text


def say_empty(axes: Axes) -> None:
    """Say within a plot that there is nothing to draw."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=axes.transAxes)


def _axis_range(kind: str, finite: _Floats) -> Range:
    # An accuracy has no long tail, and the best ones are the ones to see.
    if kind == "accuracy":
        return Range(float(finite.min()), float(finite.max()), 0)
    return shown_range(finite)


def _scatter_range(kind: str, finite: _Floats) -> Range:
    """Without the tail of bad values, which is long at the low end of an accuracy."""
    if kind == "loss":
        return shown_range(finite)
    mirrored = shown_range(-finite)
    return Range(-mirrored.high, -mirrored.low, mirrored.beyond)


def _padded(shown: Range) -> tuple[float, float]:
    pad = 0.03 * (shown.high - shown.low) or 0.05 * max(abs(shown.low), 1.0)
    return shown.low - pad, shown.high + pad


def _bin_edges(finite: _Floats, shown: Range) -> _Floats:
    """Bins of equal width; whole numbers of levels each where the values come in levels."""
    levels = np.unique(finite[finite <= shown.high])
    low, high = _padded(shown)
    if levels.size > 1:
        gap = float(np.diff(levels).min())
        # An accuracy over m images has m + 1 levels: bins of unequal content would look like
        # structure. Values with no such grid have gaps far smaller than this.
        if shown.high - shown.low <= 50 * _MAX_BINS * gap:
            steps = round((shown.high - shown.low) / gap)
            width = gap * np.ceil((steps + 1) / _MAX_BINS)
            bins = int(np.ceil((steps + 1) * gap / width))
            edges: _Floats = shown.low - gap / 2.0 + width * np.arange(bins + 1)
            return edges
        low, high = shown.low, shown.high
    return np.linspace(low, high, (_MAX_BINS if levels.size > 1 else 21) + 1)
