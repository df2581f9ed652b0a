import numpy as np
import pytest

from nasfast import spaces
from nasfast.cost import stand_alone_cost
from nasfast.layout import SupernetConfig
from nasfast.spaces import NB201, nb101
from nasfast.tables.hashes import rows_of, space_hashes

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


# Choice blocks: networks of NAS-Bench-101.

NB1SHOT1 = (spaces.NB1SHOT1_1, spaces.NB1SHOT1_2, spaces.NB1SHOT1_3)


def by_vertex(cell, channels, modules, side, classes=10):
    """Parameters, multiply-accumulates, and outputs of batch norms, vertex by vertex."""
    kernels = {"conv3x3-bn-relu": 3, "conv1x1-bn-relu": 1}
    params, macs, norms = 0, 0, 0

    def convolution(kernel, inputs, outputs, pixels):
        nonlocal params, macs, norms
        params += kernel * kernel * inputs * outputs + 2 * outputs
        macs += kernel * kernel * inputs * outputs * pixels
        norms += outputs * pixels

    convolution(3, 3, channels, side * side)
    before = channels
    for stack in range(3):
        width, pixels = channels << stack, (-(-side // 2**stack)) ** 2
        for _ in range(modules):
            of_vertex = cell.vertex_channels(before, width)
            for v in range(1, cell.num_vertices):
                if cell.matrix[0][v]:
                    convolution(1, before, of_vertex[v], pixels)
                if cell.ops[v] in kernels:
                    convolution(kernels[cell.ops[v]], of_vertex[v], of_vertex[v], pixels)
            before = width
    return params + before * classes + classes, macs + before * classes, norms


@pytest.mark.parametrize("space", NB1SHOT1, ids=lambda s: s.name)
@pytest.mark.parametrize(("channels", "modules", "side"), [(128, 3, 32), (5, 1, 9), (16, 2, 32)])
def test_blocks_cost_what_their_cell_of_nas_bench_101_costs(space, channels, modules, side):
    """Raw encodings, so that loose ends are there; 5 channels do not divide among 2 or 3."""
    archs = space.sample(300, seed=channels)
    config = SupernetConfig.published(space.name, channels=channels, cells_per_stage=modules)
    cost = stand_alone_cost(config, archs, height=side, width=side)
    for k, arch in enumerate(archs):
        params, macs, _ = by_vertex(space.to_nb101(arch), channels, modules, side)
        assert (cost.params[k], cost.flops[k]) == (params, macs)


def test_a_block_without_channels_costs_nothing():
    """2 channels among 3 blocks at the output: the third has none, and its projection neither."""
    (arch,) = [
        spaces.NB1SHOT1_2.from_string(
            "|conv1x1-bn-relu~0|+|conv1x1-bn-relu~0|+|conv1x1-bn-relu~0,1|"
            "+|conv1x1-bn-relu~0,1|+|~1,2,3|"
        )
    ]
    config = SupernetConfig.published(
        "nb1shot1-2", channels=2, cells_per_stage=1, in_channels=1, classes=2
    )
    cost = stand_alone_cost(config, [arch], height=1, width=1)
    convolutions = [(9, 1, 2)]
    for inputs, of_vertex in ((2, (1, 1, 0)), (2, (2, 1, 1)), (4, (3, 3, 2))):
        for own in of_vertex:
            convolutions += [(1, inputs, own), (1, own, own)]
    weights = sum(area * cin * cout for area, cin, cout in convolutions)
    assert cost.params[0] == weights + 2 * sum(c for *_, c in convolutions) + 8 * 2 + 2
    assert cost.flops[0] == weights + 8 * 2


def test_a_network_of_nas_bench_101_alone_costs_the_same():
    for space in NB1SHOT1:
        for arch in space.sample(10, seed=3):
            own = spaces.Nb101Network.of(space.to_nb101(arch))
            shape = dict(channels=6, cells_per_stage=2)
            options = dict(height=9, width=7)
            alone = stand_alone_cost(
                SupernetConfig.published(own.name, **shape), own.enumerate(), **options
            )
            listed = stand_alone_cost(
                SupernetConfig.published(space.name, **shape), [arch], **options
            )
            assert alone.params.tolist() == listed.params.tolist()
            assert alone.flops.tolist() == listed.flops.tolist()


@pytest.fixture(scope="module")
def published(data_folder):
    names = ("hash", "num_vertices", "adj_bits", "ops", "params", "flops")
    with np.load(data_folder / "nb101_accuracy.npz") as file:
        return {name: file[name] for name in names}


@pytest.mark.parametrize("space", NB1SHOT1, ids=lambda s: s.name)
def test_published_costs_of_nas_bench_101(space, published):
    """Parameters of every architecture of the space, FLOPs of some by the rule of their source.

    In space 2 the output may divide 128 channels among three blocks, the first two of which get
    one more. Isomorphic cells, which share a hash, can then differ: their table has one of them.
    """
    config = SupernetConfig.published(space.name, channels=128)
    cost = stand_alone_cost(config, space.enumerate(), height=32, width=32)
    rows = rows_of(published["hash"], space_hashes(space))
    assert (rows >= 0).all()
    other = cost.params != published["params"][rows]
    assert other.sum() == (1857 if space.name == "nb1shot1-2" else 0)
    for k in np.flatnonzero(other)[::20]:
        arch = space.from_index(int(k))
        cell = nb101.cell_of(
            *(published[key][rows[k]] for key in ("num_vertices", "adj_bits", "ops"))
        )
        assert cell.hash == space.to_nb101(arch).hash
        for isomorphic in (cell, space.to_nb101(arch)):
            assert {42, 43} < set(isomorphic.vertex_channels(128, 128))
        assert by_vertex(cell, 128, 3, 32)[0] == published["params"][rows[k]]
    same = np.flatnonzero(~other)
    for k in np.random.default_rng(0).choice(same, 200, replace=False).tolist():
        _, macs, norms = by_vertex(space.to_nb101(space.from_index(k)), 128, 3, 32)
        assert macs == cost.flops[k]
        assert macs + 2 * norms == published["flops"][rows[k]]
