# SPDX-License-Identifier: MIT
"""Stand-alone networks of NAS-Bench-101: the definition by hand, the engine by the definition."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_engine import ISAS, batch_of
from test_engine_gradients import check_fp32, engine_gradients, randomised, reference_gradients

import nasfast
from nasfast import Supernet, SupernetConfig, spaces
from nasfast.layout import Layout
from nasfast.program import build_training
from nasfast.spaces import nb101
from nasfast.spaces.nb101 import Nb101Cell
from nasfast.spaces.nb101_network import Nb101Network

EPS = 1e-5
CONV3, CONV1, POOL = nb101.OPS


def cell_of(edges, *inner):
    size = len(inner) + 2
    matrix = [[int((i, j) in edges) for j in range(size)] for i in range(size)]
    return Nb101Cell.from_lists(matrix, ["input", *inner, "output"])


# Channels that differ along an edge (three share the output), a projection to the output, a pool of
# a cut sum, an input that leads straight to the output, every operation.
CELLS = {
    "cut": cell_of({(0, 1), (1, 2), (1, 4), (2, 3), (2, 4), (3, 4)}, CONV3, POOL, CONV1),
    "projected": cell_of({(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)}, CONV1, CONV3),
    "straight": cell_of({(0, 1)}),
    "pools": cell_of({(0, 1), (0, 2), (1, 3), (2, 3), (1, 4), (3, 4)}, POOL, POOL, POOL),
    "seven": cell_of(
        {(0, 1), (0, 5), (1, 2), (1, 6), (2, 3), (2, 6), (3, 4), (4, 6), (5, 6)},
        CONV3, CONV1, POOL, CONV3, CONV1,
    ),
}  # fmt: skip


def straight_line(cell, tensors, images, channels, modules):
    """The published network, written down once more; batch statistics."""

    def conv(x, name):
        weight = tensors[f"{name}.0.weight"]
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        y = (y - y.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
            y.var((0, 2, 3), unbiased=False, keepdim=True) + EPS
        )
        gamma, beta = tensors[f"{name}.1.weight"], tensors[f"{name}.1.bias"]
        return torch.relu(y * gamma[:, None, None] + beta[:, None, None])

    matrix, last = np.array(cell.matrix), cell.num_vertices - 1
    x, layer, width = conv(images, "layers.0.conv_bn_relu"), 1, channels
    for stack in range(3):
        if stack:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
            x, layer, width = F.max_pool2d(x, 2), layer + 1, 2 * width
        for _ in range(modules):
            ends = [v for v in range(1, last) if matrix[v, last]]
            own = {v: width // len(ends) + (k < width % len(ends)) for k, v in enumerate(ends)}
            for v in range(last - 1, 0, -1):
                if v not in own:
                    own[v] = max(own[t] for t in range(v + 1, last) if matrix[v, t])
            states = {}
            for v in range(1, last):
                terms = [states[u][:, : own[v]] for u in range(1, v) if matrix[u, v]]
                if matrix[0, v]:
                    terms.append(conv(x, f"layers.{layer}.input_op.{v}.conv_bn_relu"))
                value = sum(terms)
                if cell.ops[v] == POOL:
                    states[v] = F.max_pool2d(value, 3, 1, 1)
                else:
                    kind = cell.ops[v].removesuffix("-bn-relu")
                    states[v] = conv(value, f"layers.{layer}.vertex_op.{v}.{kind}.conv_bn_relu")
            out = [torch.cat([states[v] for v in ends], 1)] if ends else []
            if matrix[0, last]:
                out.append(conv(x, f"layers.{layer}.input_op.{last}.conv_bn_relu"))
            x, layer = sum(out), layer + 1
    return F.linear(x.mean((2, 3)), tensors["classifier.weight"], tensors["classifier.bias"])


def network_of(cell, channels, modules):
    space = Nb101Network.of(cell)
    return SupernetConfig.published(space.name, channels=channels, cells_per_stage=modules)


@pytest.mark.parametrize("name", CELLS)
def test_definition_is_the_published_network(name):
    config = network_of(CELLS[name], channels=7, modules=2)
    supernet = randomised(config).copy(torch.float64)
    batch = batch_of(6, 9, width=6)
    images = batch.images.double()
    logits = straight_line(CELLS[name], dict(supernet.named_tensors()), images, 7, 2)
    wanted = F.cross_entropy(logits, batch.labels).item()
    batch = nasfast.data.Batch(images, batch.labels)
    scores = nasfast.evaluate(
        supernet, config.spec.enumerate(), [batch], precision="fp64", backend="reference"
    )
    assert scores.loss[0] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CELLS)
def test_engine_gradients(name, isa, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", isa)
    config = network_of(CELLS[name], channels=7, modules=1)
    supernet = randomised(config)
    program = build_training(Layout(config), config.spec.enumerate())
    batch = batch_of(17, 9, width=7)
    exact = reference_gradients(program, supernet, 0, batch, torch.float64)
    theirs = reference_gradients(program, supernet, 0, batch, torch.float32)
    ours = engine_gradients(program, supernet, 0, batch, "fp32")
    assert ours[0] == pytest.approx(exact[0], rel=1e-5)
    check_fp32(exact[1], theirs[1], ours[1])


def test_parameters_are_the_benchmark_s():
    for cell in CELLS.values():
        config = SupernetConfig.published(Nb101Network.of(cell).name)
        assert Supernet.create(config, seed=0).num_params == cell.num_params()


def test_names_say_the_cell():
    for cell in CELLS.values():
        space = Nb101Network.of(cell)
        assert spaces.get(space.name) == space
        assert space.cell.hash == cell.hash
        arch = space.from_index(0)
        assert space.from_string(str(arch)) == arch and space.to_index(arch) == 0
    assert space.enumerate() == [arch] and space.op_counts(arch)[CONV3] == 2
    # input, 3x3, 1x1, pool, 3x3, output: two more steps than convolutions
    assert arch.depth == 3 and arch.longest_path == 5


@pytest.mark.parametrize(
    "name",
    ["nb101:", "nb101:4-zz-01", "nb101:4-1-7", "nb101:9-1-0000000", "nb101:3-1-9", "nb101:4-41-01"],
)
def test_bad_names(name):
    with pytest.raises(ValueError, match="space: "):
        spaces.get(name)


def test_pruned_names_are_wanted():
    whole = cell_of({(0, 1), (1, 3), (0, 2)}, CONV3, CONV1)  # vertex 2 leads nowhere
    written = f"nb101:4-{whole.adjacency_bits:x}-01"
    with pytest.raises(ValueError, match="wanted the pruned cell 'nb101:3"):
        spaces.get(written)


def test_too_few_channels_are_named():
    name = Nb101Network.of(CELLS["cut"]).name
    with pytest.raises(ValueError, match="channels: wanted at least 3"):
        SupernetConfig.published(name, channels=2)


def test_there_is_no_last_batch_norm_to_ask_for():
    config = SupernetConfig.published(Nb101Network.of(CELLS["pools"]).name, channels=4)
    supernet = Supernet.create(dataclasses.replace(config, last_track=False), seed=0)
    scores = nasfast.evaluate(supernet, config.spec.enumerate(), [batch_of(3)], bn="running")
    assert np.isfinite(scores.loss).all()


def test_edges_that_are_not_there_own_nothing():
    name = Nb101Network.of(CELLS["pools"]).name
    with pytest.raises(ValueError, match="weights_on: wanted 'edge'"):
        SupernetConfig.published(name, weights_on="node")
