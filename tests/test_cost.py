import numpy as np
import pytest

from nasfast.cost import stand_alone_cost
from nasfast.layout import SupernetConfig
from nasfast.spaces import NB201

# Published by the benchmark's own counter: FLOPs and parameters in millions, for 10, 100 and 120
# classes; the first two at 32x32 pixels, the last at 16x16.
SHAPES = [(10, 32), (100, 32), (120, 16)]
PUBLISHED = [
    ("none", [(7.78305, 0.073306), (7.7889, 0.079156), (1.9534, 0.080456)]),
    ("skip_connect", [(7.78305, 0.073306), (7.7889, 0.079156), (1.9534, 0.080456)]),
    ("avg_pool_3x3", [(7.78305, 0.073306), (7.7889, 0.079156), (1.9534, 0.080456)]),
    ("nor_conv_1x1", [(31.37601, 0.241306), (31.38186, 0.247156), (7.85164, 0.248456)]),
    ("nor_conv_3x3", [(220.11969, 1.531546), (220.12554, 1.537396), (55.03756, 1.538696)]),
    (0, [(15.64737, 0.129306), (15.65322, 0.135156), (3.91948, 0.136456)]),
    (1, [(113.95137, 0.802426), (113.95722, 0.808276), (28.49548, 0.809576)]),
]


def architecture(which):
    if isinstance(which, int):
        return NB201.from_index(which)
    return NB201.arch([[op.name for op in NB201.ops].index(which)] * NB201.num_edges)


@pytest.mark.parametrize("column", range(3), ids=["10", "100", "120"])
def test_published_costs(column):
    classes, size = SHAPES[column]
    archs = [architecture(which) for which, _ in PUBLISHED]
    cost = stand_alone_cost(SupernetConfig(classes=classes), archs, height=size, width=size)
    assert cost.flops.tolist() == [round(row[column][0] * 1e6) for _, row in PUBLISHED]
    assert cost.params.tolist() == [round(row[column][1] * 1e6) for _, row in PUBLISHED]


def test_flags_of_the_supernet_do_not_matter():
    archs = NB201.sample(20, 0)
    plain = stand_alone_cost(SupernetConfig(), archs, height=32, width=32)
    flagged = SupernetConfig(
        affine=True, track=True, fixed_affine=False, last_affine=False, weights_on="node"
    )
    other = stand_alone_cost(flagged, archs, height=32, width=32)
    assert np.array_equal(plain.params, other.params)
    assert np.array_equal(plain.flops, other.flops)


def test_odd_images_are_halved_upwards():
    """By hand: 9x9 becomes 5x5 and 3x3; 1 channel, no operation with weights."""
    config = SupernetConfig(channels=1, cells_per_stage=1, classes=2, in_channels=1)
    cost = stand_alone_cost(config, [architecture("none")], height=9, width=9)
    stem = 9 * 81
    first = (9 * 1 * 2 + 9 * 2 * 2 + 1 * 2) * 25
    second = (9 * 2 * 4 + 9 * 4 * 4 + 2 * 4) * 9
    head = 4 * 2 + 2
    assert cost.flops.tolist() == [stem + first + second + head]
    batch_norms = 2 * (1 + 2 + 2 + 4 + 4 + 4)
    assert cost.params.tolist() == [9 + 56 + 224 + head + batch_norms]
