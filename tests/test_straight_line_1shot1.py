# SPDX-License-Identifier: MIT
"""The independent NAS-Bench-1Shot1 subnets that others are compared with agree with each other."""

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from straight_line_1shot1 import (
    CONV_1X1,
    NUM_PARENTS,
    ancestors,
    logits,
    max_pool,
    published_logits,
    random_weights,
    shapes,
)

CHANNELS, LAYERS = 3, 4


def random_arch(space_name, seed):
    """Draw one with loose ends, as the published random search does."""
    draw = random.Random(seed)
    counts = NUM_PARENTS[space_name]
    choices = [list(itertools.combinations(range(n), k)) for n, k in enumerate(counts, start=1)]
    return [draw.randrange(3) for _ in counts[1:]], [draw.choice(several) for several in choices]


def images(seed, count=5, side=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("space_name", NUM_PARENTS)
def test_what_is_left_out_adds_nothing(space_name, mode):
    size = dict(channels=CHANNELS, layers=LAYERS)
    loose = 0
    for seed in range(12):
        weights = random_weights(space_name, seed=seed, **size)
        ops, parents = random_arch(space_name, seed)
        loose += len(ancestors(parents)) < len(ops)
        given = (weights, space_name, ops, parents, images(seed), mode)
        mine, published = logits(*given, **size), published_logits(*given, **size)
        torch.testing.assert_close(mine, published, rtol=1e-12, atol=1e-12)
        assert mine.std() > 1e-3  # not all the same
    assert 0 < loose < 12


@pytest.mark.parametrize("space_name", NUM_PARENTS)
def test_every_choice_matters(space_name):
    size = dict(channels=CHANNELS, layers=LAYERS)
    weights = random_weights(space_name, seed=0, **size)
    found = []
    for seed in range(12):
        ops, parents = random_arch(space_name, seed)
        found.append(logits(weights, space_name, ops, parents, images(0), **size))
    for one, other in itertools.combinations(found, 2):
        assert (one - other).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("space_name", "tensors", "parameters"),
    [("nb1shot1-1", 714, 1_101_402), ("nb1shot1-3", 876, 1_509_594)],
)
def test_sizes_are_the_published_ones(space_name, tensors, parameters):
    found = shapes(space_name)
    norms = sum(name.endswith("running_mean") for name in found)
    assert len(found) + norms == tensors  # one counter for each batch norm
    trained = [shape for name, shape in found.items() if ".running_" not in name]
    assert sum(map(math.prod, trained)) == parameters


def test_max_pool_is_that_of_torch():
    x = images(1, side=9)
    for kernel, stride in ((3, 1), (2, 2)):
        assert torch.equal(max_pool(x, kernel, stride), F.max_pool2d(x, kernel, stride, 1))


def test_one_cell_by_hand():
    """Space 1, one cell: block 1 is a 1x1 convolution of the projected input; it and the input are
    added at the output."""
    weights = random_weights("nb1shot1-1", channels=2, layers=1, seed=3)
    ops, parents = [CONV_1X1] * 4, [(0,), (0, 1), (0, 1), (0, 1), (0, 1)]

    def unit(x, name):
        y = F.conv2d(x, weights[f"{name}.0.weight"], padding=int("stem" in name))
        scale, shift = weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]
        return F.relu(F.batch_norm(y, None, None, scale, shift, training=True))

    # With one cell both reductions would stand before it: layers // 3 == 2 * layers // 3 == 0.
    stem = F.max_pool2d(unit(images(2), "stem.op"), 2, 2, 1)
    projected = unit(stem, "cells.0._input_projections.0.op")
    block = unit(projected, "cells.0._choice_blocks.0.mixed_op._ops.2.op.op")
    out = unit(stem, "cells.0._input_projections.4.op")
    out = torch.cat([out[:, :4] + block, out[:, 4:]], dim=1)
    out = F.conv2d(F.relu(out), weights["postprocess.op.1.weight"])
    out = F.batch_norm(out, None, None, training=True).mean(dim=(2, 3))
    out = F.linear(out, weights["classifier.weight"], weights["classifier.bias"])
    mine = logits(weights, "nb1shot1-1", ops, parents, images(2), channels=2, layers=1)
    torch.testing.assert_close(mine, out, rtol=1e-12, atol=1e-12)
