# SPDX-License-Identifier: MIT
"""From architecture weights to the architecture that they mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasfast.spaces import NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3, NB201, discretise

ALL = [NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3]
# The peer's tensors: beta begins at node 3 in the first space, at node 2 in the others.
BETAS = {"nb1shot1-1": (3, 4), "nb1shot1-2": (2, 3, 4), "nb1shot1-3": (2, 3, 4, 5)}


def weights(spec, draw):
    blocks = spec.num_blocks
    beta = [draw((1, k)) for k in BETAS[spec.name]]
    return draw((blocks, 3)), beta, draw((1, blocks + 1))


def largest(row, count):
    """By probability, first of equals first."""
    total = sum(math.exp(weight) for weight in row)
    ranked = sorted(range(len(row)), key=lambda k: (-math.exp(row[k]) / total, k))
    return tuple(sorted(ranked[:count]))


@given(st.sampled_from(ALL), st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_likeliest_operations_and_parents(spec, seed, dtype):
    rng = np.random.default_rng(seed)
    # Few values, so that ties are common.
    alpha, beta, gamma = weights(spec, lambda shape: rng.integers(-2, 3, shape).astype(dtype))
    arch = discretise(spec, alpha, beta, gamma)
    assert spec.block_ops(arch) == tuple(largest(row, 1)[0] for row in alpha.tolist())
    rows = {each.shape[1]: each[0].tolist() for each in beta}
    rows[spec.num_blocks + 1] = gamma[0].tolist()
    for node, parents in enumerate(spec.parents(arch), start=1):
        count = spec.num_parents[node - 1]
        assert parents == (largest(rows[node], count) if node in rows else tuple(range(node)))


@given(st.sampled_from(ALL), st.integers(0, 2**32))
def test_weights_of_an_architecture_mean_it(spec, seed):
    arch = spec.sample(1, seed)[0]
    parents = spec.parents(arch)
    alpha = np.eye(3)[list(spec.block_ops(arch))]
    rows = {
        node: np.isin(np.arange(node), parents[node - 1])[None].astype(float)
        for node in (*BETAS[spec.name], spec.num_blocks + 1)
    }
    gamma = rows.pop(spec.num_blocks + 1)
    assert discretise(spec, alpha, list(rows.values()), gamma) == arch


def test_loose_ends_vanish_in_the_pruned_subnet():
    zeros = weights(NB1SHOT1_1, np.zeros)
    arch = discretise(NB1SHOT1_1, *zeros)
    # All tied: the lowest indices, so the output takes the input and block 1.
    assert str(arch) == ("|maxpool3x3~0|+|maxpool3x3~0,1|+|maxpool3x3~0,1|+|maxpool3x3~0,1|+|~0,1|")
    assert NB1SHOT1_1.pruned(arch) == (((0, (0,)), None, None, None), (0, 1))
    assert NB1SHOT1_1.to_nb101(arch).num_vertices == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, g: (a[:3], b, g), r"alpha: wanted real numbers \[4, 3\], .* \[3, 3\]"),
        (lambda a, b, g: (a, b[:1], g), r"beta: nb1shot1-1 has blocks \[3, 4\] .* got 1"),
        (lambda a, b, g: (a, b[::-1], g), r"beta\[0\] \(block 3\): wanted real numbers \[1, 3\]"),
        (lambda a, b, g: (a, b, g[0]), r"gamma: wanted real numbers \[1, 5\], got float64 \[5\]"),
        (lambda a, b, g: (a * np.nan, b, g), "alpha: wanted weights less than infinity, got NaN"),
        (lambda a, b, g: (a, [b[0], b[1] + np.inf], g), r"beta\[1\] \(block 4\): wanted weights"),
        (lambda a, b, g: (a, b, g > 0), "gamma: wanted real numbers .* got bool"),
    ],
)  # fmt: skip
def test_bad_weights(change, message):
    with pytest.raises(ValueError, match=message):
        discretise(NB1SHOT1_1, *change(*weights(NB1SHOT1_1, np.zeros)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_of_torch(dtype):
    """As an optimiser has them, with gradients."""
    rng = np.random.default_rng(3)
    arrays = weights(NB1SHOT1_2, lambda shape: rng.integers(-2, 3, shape).astype(np.float32))
    alpha, beta, gamma = (
        [torch.nn.Parameter(torch.tensor(each, dtype=dtype)) for each in part]
        if isinstance(part, list)
        else torch.nn.Parameter(torch.tensor(part, dtype=dtype))
        for part in arrays
    )
    assert discretise(NB1SHOT1_2, alpha, beta, gamma) == discretise(NB1SHOT1_2, *arrays)
    with pytest.raises(ValueError, match=r"gamma: wanted real numbers .* got bool \[1, 5\]"):
        discretise(NB1SHOT1_2, alpha, beta, gamma > 0)


def test_only_spaces_of_choice_blocks():
    with pytest.raises(ValueError, match="spec: wanted a space of choice blocks, got CellSpec"):
        discretise(NB201, *weights(NB1SHOT1_1, np.zeros))
    with pytest.raises(ValueError, match="spec: wanted a space of choice blocks, got 'nb1shot1-1'"):
        discretise("nb1shot1-1", *weights(NB1SHOT1_1, np.zeros))
