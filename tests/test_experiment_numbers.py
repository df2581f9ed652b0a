"""Numbers, tables and names of experiments, as by hand."""

import math

import pytest

from nasfast.experiment_config import grid_points
from nasfast.experiment_table import over_seeds
from nasfast.markdown import markdown_table


def test_over_seeds_by_hand():
    two = over_seeds([1.0, 3.0])
    assert (two.mean, two.n) == (2.0, 2)
    assert two.std == pytest.approx(math.sqrt(2), rel=1e-15)  # ((-1)^2 + 1^2) / (2 - 1)
    half = math.tan(0.475 * math.pi) * math.sqrt(2 / 2)  # Student's t, 0.975, 1 degree of freedom
    assert (two.low, two.high) == pytest.approx((2 - half, 2 + half), rel=1e-12)
    three = over_seeds([2.0, 4.0, math.nan, 9.0])
    assert (three.mean, three.n) == (5.0, 3)
    assert three.std == pytest.approx(math.sqrt(13), rel=1e-15)  # (9 + 1 + 16) / 2
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * math.sqrt(13 / 3)  # 2 degrees of freedom
    assert (three.low, three.high) == pytest.approx((5 - half, 5 + half), rel=1e-12)
    same = over_seeds([0.5, 0.5])
    assert (same.std, same.low, same.high) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize(("values", "n"), [([0.5], 1), ([], 0), ([math.nan, 0.5], 1)])
def test_no_deviation_below_two_seeds(values, n):
    found = over_seeds(values)
    assert found.n == n
    assert found.mean == 0.5 if n else math.isnan(found.mean)
    assert all(math.isnan(value) for value in (found.std, found.low, found.high))


def test_markdown_is_aligned():
    assert markdown_table(["a", "b"], [["x|y", "1"], ["z", "1,000"]]) == (
        "| a    |     b |\n| ---- | ----: |\n| x\\|y |     1 |\n| z    | 1,000 |"
    )


# The grid.


def test_product_of_a_grid():
    points = grid_points({"train.lr": [0.1, 1e-5], "rank.archs": [3, 4]})
    assert [dict(point.settings) for point in points] == [
        {"train.lr": a, "rank.archs": b} for a in (0.1, 1e-5) for b in (3, 4)
    ]
    assert [point.label for point in points] == [
        "lr=0.1,archs=3", "lr=0.1,archs=4", "lr=1e-05,archs=3", "lr=1e-05,archs=4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        ({}, ["base"]),
        ({"train.lr": [1.0], "finetune.lr": [2.0]}, ["train.lr=1.0,finetune.lr=2.0"]),
        ({"rank.without": [[], ["none"], ["none", "skip_connect"]]},
         ["without=", "without=none", "without=none+skip_connect"]),
        ({"train.flip": [True, False]}, ["flip=true", "flip=false"]),
        ({"rank.bn": ["batch/running"]}, ["bn=batch-running"]),
    ],
)  # fmt: skip
def test_labels_can_be_read(grid, labels):
    assert [point.label for point in grid_points(grid)] == labels


def test_labels_are_distinct_and_short():
    points = grid_points({"truth.table": ["a/b", "a b", "x" * 500]})
    labels = [point.label for point in points]
    assert labels[0] == "table=a-b"
    assert labels[1].startswith("table=a-b,") and len(set(labels)) == 3
    assert max(map(len, labels)) < 200
