# SPDX-License-Identifier: MIT
"""Cells as small SVG drawings: nodes on a line, edges as arcs, one line style for each op.

Where operations sit on nodes, the circles have the style, and edges are plain lines.
A style differs from every other in colour and in dashes or width, so that a black and white
print can be read too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from nasfast.report.model import CellDrawing

ABSENT_OP = "none"

_RADIUS = 10.5
_SPACING = 58.0
_MARGIN = 3.0
_FIRST_ARC, _ARC_STEP = 28.0, 15.0


@dataclass(frozen=True)
class OpStyle:
    """How the edges of one op are drawn.

    Attributes:
        color: CSS colour.
        width: Of the line, in SVG units.
        dashes: ``stroke-dasharray``; empty for a solid line.
    """

    color: str
    width: float
    dashes: str = ""


_KNOWN_STYLES = {
    "nor_conv_3x3": OpStyle("#1d4f91", 3.6),
    "nor_conv_1x1": OpStyle("#b4501e", 1.5),
    "avg_pool_3x3": OpStyle("#2f7d5b", 2.2, "9 4"),
    "skip_connect": OpStyle("#3d4146", 2.2, "2.2 2.6"),
    "conv3x3-bn-relu": OpStyle("#1d4f91", 3.6),
    "conv1x1-bn-relu": OpStyle("#b4501e", 1.5),
    "maxpool3x3": OpStyle("#2f7d5b", 2.6, "5 2.4"),
}
_PLAIN_EDGE = OpStyle("#5d6369", 1.4)
# Two cycles of coprime lengths: 35 other ops before one repeats.
_OTHER_COLORS = ("#7a3e9d", "#8a6d00", "#00707f", "#a3123f", "#333333")
_OTHER_LINES = (
    (2.0, "9 3 2 3"),
    (3.0, "2 2.5"),
    (1.3, "3 2"),
    (2.6, ""),
    (1.5, "9 3 2 3 2 3"),
    (3.4, "10 3"),
    (1.0, ""),
)


def op_styles(ops: Iterable[str]) -> dict[str, OpStyle]:
    """A line style for each op that is drawn.

    Args:
        ops: Names, in any order and number; ``none`` is passed over because it is not drawn.

    Returns:
        Op name -> style: the ops of known benchmarks in a fixed order, then others by name.
    """
    wanted = set(ops) - {ABSENT_OP}
    styles = {op: style for op, style in _KNOWN_STYLES.items() if op in wanted}
    for i, op in enumerate(sorted(wanted - styles.keys())):
        width, dashes = _OTHER_LINES[i % len(_OTHER_LINES)]
        styles[op] = OpStyle(_OTHER_COLORS[i % len(_OTHER_COLORS)], width, dashes)
    return styles


def draw_cell(cell: CellDrawing, styles: Mapping[str, OpStyle] | None = None) -> str:
    """Draws one cell; information flows from left to right and ``none`` edges are left out.

    An edge has the same place in every cell with the same list of edges, whatever its op.

    Args:
        cell: The cell.
        styles: Op name -> style, for one legend over many cells; by default the styles of the
            cell's own ops.

    Returns:
        One ``<svg>`` element without reference to anything outside it.

    Raises:
        ValueError: If ``styles`` lacks an op of the cell.
    """
    if styles is None:
        styles = op_styles(cell.ops)
    places = _place_arcs(cell)
    above = max((level for level in places if level > 0), default=0)
    below = max((-level for level in places if level < 0), default=0)
    axis = _arc_height(above) + _MARGIN
    height = axis + _arc_height(below) + _MARGIN
    width = (cell.num_nodes - 1) * _SPACING + 2.0 * (_RADIUS + _MARGIN)
    lines = []
    for (source, target, op), level in zip(cell.edges, places, strict=True):
        if op == ABSENT_OP:
            continue
        title = f"<title>{source} to {target}{escape(f': {op}') if op else ''}</title>"
        path = _svg_path(_arc(source, target, level), axis)
        style = _style_of(op, styles) if op else _PLAIN_EDGE
        lines.append(f'<path d="{path}"{_stroke(style)}>{title}</path>')
    label = quoteattr(_in_words(cell))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label={label}>'
        f'<g fill="none">{"".join(lines)}</g>{_nodes(cell, axis, styles)}</svg>'
    )


def _style_of(op: str, styles: Mapping[str, OpStyle]) -> OpStyle:
    if op not in styles:
        raise ValueError(f"styles: wanted one for each op of the cell, got none for {op!r}")
    return styles[op]


def _in_words(cell: CellDrawing) -> str:
    """A text in place of the drawing."""
    drawn = [f"{s}-{t} {op}".rstrip() for s, t, op in cell.edges if op != ABSENT_OP]
    edges = "edges " + ", ".join(drawn)
    blocks = [f"{node} {op}" for node, op in enumerate(cell.node_ops, start=1) if op]
    if blocks:
        return f"Cell with blocks {', '.join(blocks)}; {edges}"
    return f"Cell with {edges}" if drawn else "Cell without edges"


def draw_line(style: OpStyle) -> str:
    """A short horizontal line in the style of one op, for a legend; an ``<svg>`` element."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 44 10" width="44" height="10" '
        f'aria-hidden="true"><path d="M2 5H42" fill="none"{_stroke(style)}/></svg>'
    )


def _stroke(style: OpStyle) -> str:
    text = f' stroke="{style.color}" stroke-width="{style.width:g}"'
    if style.dashes:
        text += f' stroke-dasharray="{style.dashes}"'
    return text


def _nodes(cell: CellDrawing, axis: float, styles: Mapping[str, OpStyle]) -> str:
    circles, labels = [], []
    ops = ("", *cell.node_ops, "") if cell.node_ops else ("",) * cell.num_nodes
    for node, op in enumerate(ops):
        x = _RADIUS + _MARGIN + node * _SPACING
        name = {0: "in", cell.num_nodes - 1: "out"}.get(node, str(node))
        look = ' opacity="0.3"' if op is None else _stroke(_style_of(op, styles)) if op else ""
        end = f"><title>{node}: {escape(op)}</title></circle>" if op else "/>"
        circles.append(f'<circle cx="{x:g}" cy="{axis:g}" r="{_RADIUS:g}"{look}{end}')
        faint = ' opacity="0.3"' if op is None else ""
        labels.append(f'<text x="{x:g}" y="{axis + 3.2:g}"{faint}>{name}</text>')
    return (
        f'<g fill="#fff" stroke="#222" stroke-width="1.2">{"".join(circles)}</g>'
        '<g fill="#222" font-size="9.5" font-family="sans-serif" text-anchor="middle">'
        f"{''.join(labels)}</g>"
    )


def _place_arcs(cell: CellDrawing) -> list[int]:
    """Level of each edge: 0 on the line, 1 and up above it, -1 and down below it."""
    spans = [(source, target) for source, target, _ in cell.edges]
    sides = [0] * len(spans)
    # Long arcs choose their side first: they have the most to cross.
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][0] - spans[i][1], i)):
        source, target = spans[i]
        if target - source == 1 and spans.index(spans[i]) == i:
            continue
        placed = [k for k in range(len(spans)) if sides[k]]
        cost = {}
        for side in (1, -1):
            beside = [spans[k] for k in placed if sides[k] == side]
            crossings = sum(_cross(spans[i], other) for other in beside)
            cost[side] = (crossings, len(beside))
        sides[i] = 1 if cost[1] <= cost[-1] else -1
    levels = [0] * len(spans)
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], i)):
        if sides[i]:
            inner = [
                abs(levels[k])
                for k in range(len(spans))
                if levels[k] * sides[i] > 0 and _within(spans[k], spans[i])
            ]
            levels[i] = sides[i] * (1 + max(inner, default=0))
    return levels


def _cross(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[0] < a[1] < b[1] or b[0] < a[0] < b[1] < a[1]


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _arc_height(level: int) -> float:
    """Room an arc of this level takes beyond the line, half a line width included."""
    return _FIRST_ARC + _ARC_STEP * (level - 1) + 2.0 if level else _RADIUS + 1.0


def _arc(source: int, target: int, level: int) -> list[tuple[float, float]]:
    """Bezier points of an edge, y upwards from the line: two for a line, four for an arc."""
    left = _RADIUS + _MARGIN + source * _SPACING
    right = left + (target - source) * _SPACING
    if level == 0:
        return [(left + _RADIUS, 0.0), (right - _RADIUS, 0.0)]
    # Outer arcs leave a node more steeply, so arcs that share a node part at once.
    angle = 0.5 * math.pi * (1.0 - 0.6 ** abs(level))
    sine, cosine = math.sin(angle), math.cos(angle)
    peak = _FIRST_ARC + _ARC_STEP * (abs(level) - 1)
    # A cubic with both handles at height h and both ends at e peaks at e / 4 + 3 h / 4.
    end = _RADIUS * sine
    handle = (peak - 0.25 * end) / 0.75
    reach = min((handle - end) * cosine / sine + _RADIUS * cosine, 0.42 * (right - left))
    side = math.copysign(1.0, level)
    return [
        (left + _RADIUS * cosine, side * end),
        (left + reach, side * handle),
        (right - reach, side * handle),
        (right - _RADIUS * cosine, side * end),
    ]


def _svg_path(points: list[tuple[float, float]], axis: float) -> str:
    texts = [f"{round(x, 1):g} {round(axis - y, 1):g}" for x, y in points]
    return f"M{texts[0]}" + ("L" if len(points) == 2 else "C") + " ".join(texts[1:])
