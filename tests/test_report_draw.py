# SPDX-License-Identifier: MIT
"""Drawings of cells: edges apart from one another, small, readable without colour."""

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from test_report import OPS, PAIRS, nb201_cell

from nasfast.report import CellDrawing, draw_cell, op_styles


def edge_curves(svg):
    """Each drawn edge as points along it, ``[80, 2]``, and the nodes' centres."""
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    nodes = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{name}circle")]
    at = np.linspace(0.0, 1.0, 80)[:, None]
    curves = []
    for path in root.iter(f"{name}path"):
        points = np.array([float(v) for v in re.findall(r"-?[\d.]+", path.get("d"))]).reshape(-1, 2)
        if len(points) == 2:
            curves.append(points[0] + at * (points[1] - points[0]))
        else:
            weights = [math.comb(3, k) * at**k * (1 - at) ** (3 - k) for k in range(4)]
            curves.append(sum(w * p for w, p in zip(weights, points, strict=True)))
    size = [float(v) for v in root.get("viewBox").split()[2:]]
    return curves, np.array(nodes), size


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 5, 7])
def test_edges_of_the_full_cell_do_not_overlap(num_nodes):
    pairs = list(itertools.combinations(range(num_nodes), 2))
    svg = draw_cell(CellDrawing(num_nodes, tuple((*pair, "nor_conv_3x3") for pair in pairs)))
    curves, nodes, (width, height) = edge_curves(svg)
    assert len(curves) == len(pairs) and len(nodes) == num_nodes
    for (source, target), curve in zip(pairs, curves, strict=True):
        assert curve.min() >= 1.8 and (curve <= [width - 1.8, height - 1.8]).all()
        assert (np.diff(curve[:, 0]) > 0).all()
        for node in range(num_nodes):
            distance = np.hypot(*(curve - nodes[node]).T).min()
            assert (
                distance == pytest.approx(10.5, abs=0.2)
                if node in (source, target)
                else (distance > 14.0)
            )
    for a, b in itertools.combinations(curves, 2):
        # They may cross or share an end; they must not run along each other.
        close = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)).min(axis=1) < 2.0
        assert close.mean() < 0.2


def test_parallel_edges_lie_apart():
    curves, _, _ = edge_curves(draw_cell(CellDrawing(2, tuple((0, 1, op) for op in "abcd"))))
    middles = sorted(curve[40, 1] for curve in curves)
    assert min(np.diff(middles)) > 10.0


def test_a_cell_of_nas_bench_201_is_planar_small_and_steady():
    full = CellDrawing(4, tuple((*pair, "avg_pool_3x3") for pair in PAIRS))
    svg = draw_cell(full)
    assert len(svg.encode()) < 3000
    curves, _, _ = edge_curves(svg)
    for a, b in itertools.combinations(curves, 2):
        assert np.hypot(*(a[10:-10, None] - b[None, 10:-10]).transpose(2, 0, 1)).min() > 4.0
    # An edge has its place whatever the other edges hold.
    paths = re.findall(r' d="([^"]+)"', svg)
    for index in (1, 777, 9_999, 15_624):
        cell = nb201_cell(index)
        kept = [p for p, (_, _, op) in zip(paths, cell.edges, strict=True) if op != "none"]
        assert re.findall(r' d="([^"]+)"', draw_cell(cell)) == kept


def test_styles_differ_without_colour():
    styles = op_styles([*OPS, "sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "conv5x5"])
    assert "none" not in styles and len(styles) == 8
    assert len({(style.width, style.dashes) for style in styles.values()}) == 8
    assert list(op_styles(OPS)) == list(op_styles(reversed(OPS)))
    many = op_styles(f"op{i}" for i in range(35))
    assert len(set(many.values())) == 35


def test_draw_cell_names_a_missing_style():
    with pytest.raises(ValueError, match=r"styles: wanted one for each op.*'nor_conv_3x3'"):
        draw_cell(CellDrawing(2, ((0, 1, "nor_conv_3x3"),)), styles={})


# Operations on nodes.

BLOCKS = CellDrawing(
    5, ((0, 1, ""), (0, 2, ""), (1, 2, ""), (2, 4, "")), ("conv3x3-bn-relu", "maxpool3x3", None)
)


def test_blocks_have_the_style_of_their_operation():
    styles = op_styles(BLOCKS.ops)
    assert list(styles) == ["conv3x3-bn-relu", "maxpool3x3"]
    drawn = ElementTree.fromstring(draw_cell(BLOCKS))
    circles = [e for e in drawn.iter() if e.tag.endswith("circle")]
    looks = [(c.get("stroke"), c.get("stroke-dasharray"), c.get("opacity")) for c in circles]
    conv, pool = styles.values()
    assert looks == [
        (None, None, None),
        (conv.color, None, None),
        (pool.color, pool.dashes, None),
        (None, None, "0.3"),
        (None, None, None),
    ]
    titles = [e.text for c in circles for e in c]
    assert titles == ["1: conv3x3-bn-relu", "2: maxpool3x3"]
    lines = [e for e in drawn.iter() if e.tag.endswith("path")]
    assert len(lines) == 4 and len({e.get("stroke") for e in lines}) == 1
    assert drawn.get("aria-label") == (
        "Cell with blocks 1 conv3x3-bn-relu, 2 maxpool3x3; edges 0-1, 0-2, 1-2, 2-4"
    )


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="node_ops: wanted 3 or none, got 2"):
        CellDrawing(5, (), ("a", "b"))
    with pytest.raises(ValueError, match="styles: wanted one for each op of the cell"):
        draw_cell(BLOCKS, op_styles(["maxpool3x3"]))
