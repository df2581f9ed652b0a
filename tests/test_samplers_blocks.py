# SPDX-License-Identifier: MIT
"""Samplers of paths in spaces of choice blocks."""

import collections

import numpy as np
import pytest
from scipy import stats

from nasfast import UniformSampler
from nasfast.spaces import NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3
from nasfast.train import FairSampler

SPACES = (NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3)


@pytest.mark.parametrize("kind", [UniformSampler, FairSampler])
@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_every_decision_is_uniform(space, kind):
    """Operations and parents, loose ends with them: a chi-squared test of each decision."""
    rows = space.op_array(kind(space, seed=1).draw(epoch=3, count=6000))
    assert not all(all(space.used_blocks(space.arch(row))) for row in rows[:200])
    for column, options in zip(rows.T, space.options, strict=True):
        counts = np.bincount(column, minlength=options)
        assert len(counts) == options
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_a_round_has_each_operation_of_each_block_once(space):
    archs = FairSampler(space, seed=2).draw(epoch=0, count=31)
    assert len(archs) == 31
    rows = space.op_array(archs)[:30, : space.num_blocks].reshape(10, 3, space.num_blocks)
    assert (np.sort(rows, axis=1) == np.arange(3)[:, None]).all()
    parents = collections.Counter(space.parents(arch) for arch in archs)
    assert len(parents) > 5  # drawn for each network, not for a round


@pytest.mark.parametrize("kind", [UniformSampler, FairSampler])
def test_a_mask_leaves_operations_out_and_parents_as_they_are(kind):
    mask = NB1SHOT1_2.mask(["maxpool3x3"])
    rows = NB1SHOT1_2.op_array(kind(NB1SHOT1_2, 0, mask).draw(0, 400))
    assert set(rows[:, :4].ravel().tolist()) == {1, 2}
    for column, options in zip(rows[:, 4:].T, NB1SHOT1_2.options[4:], strict=True):
        assert set(column.tolist()) == set(range(options))


@pytest.mark.parametrize("kind", [UniformSampler, FairSampler])
def test_one_architecture_for_each_cell(kind):
    networks = kind(NB1SHOT1_3, 4, scope="cell", cells=9).draw(1, 12)
    assert [len(network) for network in networks] == [9] * 12
    assert all(len(set(network)) > 1 for network in networks)
    again = kind(NB1SHOT1_3, 4, scope="cell", cells=9).draw(1, 12)
    assert networks == again
    assert networks != kind(NB1SHOT1_3, 4, scope="cell", cells=9).draw(2, 12)


def test_uneven_masks_are_refused():
    mask = NB1SHOT1_1.mask()
    mask[2, 0] = False
    with pytest.raises(ValueError, match=r"operations on every block, got \[2, 3\]"):
        FairSampler(NB1SHOT1_1, 0, mask)
