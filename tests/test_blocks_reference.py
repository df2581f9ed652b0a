# SPDX-License-Identifier: MIT
"""Networks of choice blocks proved: the definition against an independent one in float64."""

import numpy as np
import pytest
import straight_line_1shot1 as straight
import torch
import torch.nn.functional as F

from nasfast import Merge, Supernet, SupernetConfig, evaluate, spaces
from nasfast.data import Batch

SPACES = tuple(straight.NUM_PARENTS)
CHANNELS = 3


def batch_of(seed, count=5, side=9):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(0, 10, (count,), generator=generator))


def case_of(name, cells, seed=0):
    """Weights of the published names, and the supernet that has them."""
    layers = 3 * cells
    weights = straight.random_weights(name, channels=CHANNELS, layers=layers, seed=seed)
    config = SupernetConfig.published(name, channels=CHANNELS, cells_per_stage=cells)
    return (
        weights,
        Supernet.from_state_dict(config, weights),
        dict(channels=CHANNELS, layers=layers),
    )


def losses(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none").numpy()


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("name", SPACES)
def test_the_definition_is_the_independent_one(name, mode, cells):
    """With loose ends and without, by what is needed and by the published way of 0 and 1."""
    weights, supernet, size = case_of(name, cells)
    space, batch = spaces.get(name, spaces.BlockSpec), batch_of(1)
    archs = [*space.sample(10, seed=cells), *space.sample(6, seed=2, distinct=True)]
    scores = evaluate(supernet, archs, [batch], bn=mode, precision="fp64", merge=Merge.LINEAR)
    for k, arch in enumerate(archs):
        given = (weights, name, space.block_ops(arch), space.parents(arch), batch.images, mode)
        for logits in (straight.logits, straight.published_logits):
            wanted = losses(logits(*given, **size), batch.labels)
            np.testing.assert_allclose(scores.lane_loss[scores.lane_of_arch[k]], wanted, rtol=1e-9)


@pytest.mark.parametrize("name", SPACES)
def test_every_level_of_merging_gives_the_same_bits(name):
    _, supernet, _ = case_of(name, 1)
    archs = spaces.get(name).sample(40, seed=5)
    found = [
        evaluate(supernet, archs, [batch_of(2)], bn="running", precision="fp64", merge=merge).loss
        for merge in Merge
    ]
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", SPACES)
def test_names_and_sizes_are_the_published_ones(name):
    config = SupernetConfig.published(name)
    assert config.num_cells == 9 and config.channels == 16
    supernet = Supernet.create(config, seed=0)
    found = {key: tuple(tensor.shape) for key, tensor in supernet.named_tensors()}
    assert found == straight.shapes(name)


def test_momentum_of_the_running_statistics_is_the_published_one():
    """A step of training leaves 0.3 % of the old statistics; the norm before the head 90 %."""
    layout = Supernet.create(SupernetConfig.published("nb1shot1-1"), seed=0).layout
    momenta = {
        name: layout.shapes[layout.by_name[f"{name}.running_mean"].unit].momentum
        for name in ("stem.op.1", "cells.4._input_projections.0.op.1", "postprocess.op.2")
    }
    assert list(momenta.values()) == [0.997, 0.997, 0.1]
