# SPDX-License-Identifier: MIT
"""The definition proved: primitives by hand, networks against an independent one, gradients."""

import math
from dataclasses import replace

import pytest
import straight_line
import torch

from nasfast import BatchNorm, Merge, Mode, Supernet, SupernetConfig
from nasfast.primitives import (
    Unit,
    add,
    avg_pool,
    batch_statistics,
    classify,
    convolve,
    loss_and_correct,
    max_pool,
    normalise,
    normalise_batch,
    shortcut,
)
from nasfast.program import build, request_array
from nasfast.reference import Executor, Normaliser, Weights
from nasfast.spaces import NB201
from nasfast.units import FIELDS

F64 = torch.float64
SMALL = SupernetConfig(channels=4, cells_per_stage=2, classes=5)


def tensor(values, *shape):
    return torch.tensor(values, dtype=F64).reshape(shape)


def unit(**tensors):
    return Unit(**{name: tensors.get(name) for name in FIELDS})


# Primitives, computed by hand.


def test_average_pool_does_not_count_padding():
    x = tensor([1, 2, 3, 4, 5, 6], 1, 1, 2, 3)
    rows = [(1 + 2 + 4 + 5) / 4, 21 / 6, (2 + 3 + 5 + 6) / 4]
    torch.testing.assert_close(avg_pool(x, 3), tensor([*rows, *rows], 1, 1, 2, 3))
    assert avg_pool(tensor([7], 1, 1, 1, 1), 3).item() == 7


def test_max_pool_ignores_padding():
    x = tensor([-1, -2, -3, -4], 1, 1, 2, 2)
    assert (max_pool(x, 3) == -1).all()


def test_batch_norm_by_hand():
    # Channel 0 holds 1, 3, 5, 7: mean 4, biased variance 5; channel 1 is constant.
    x = tensor([1, 3, 9, 9, 5, 7, 9, 9], 2, 2, 1, 2)
    mean, variance = batch_statistics(x)
    torch.testing.assert_close(mean, tensor([4, 9], 2))
    torch.testing.assert_close(variance, tensor([5, 0], 2))
    scale = (5 + 1e-5) ** -0.5
    wanted = tensor([-3 * scale, -scale, 0, 0, scale, 3 * scale, 0, 0], 2, 2, 1, 2)
    torch.testing.assert_close(normalise_batch(x, unit()), wanted)
    affine = unit(gamma=tensor([2, 5], 2), beta=tensor([1, -1], 2))
    shift = tensor([1, 1, -1, -1, 1, 1, -1, -1], 2, 2, 1, 2)
    torch.testing.assert_close(normalise_batch(x, affine), wanted * 2 + shift)
    torch.testing.assert_close(normalise(x, mean, variance, affine), wanted * 2 + shift)


def test_one_element_a_channel_gives_the_shift():
    x = tensor([3, -4], 1, 2, 1, 1)
    assert (normalise_batch(x, unit()) == 0).all()
    affine = unit(gamma=tensor([2, 2], 2), beta=tensor([0.5, 7], 2))
    torch.testing.assert_close(normalise_batch(x, affine), tensor([0.5, 7], 1, 2, 1, 1))
    tracked = unit(mean=torch.zeros(2, dtype=F64), variance=torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match="more than one element a channel"):
        normalise_batch(x, tracked, update=True)


def test_running_statistics_take_a_tenth_of_the_unbiased_variance():
    x = tensor([1, 3, 5, 7], 4, 1, 1, 1)
    tracked = unit(mean=tensor([10], 1), variance=tensor([1], 1))
    normalise_batch(x, tracked, update=True)
    torch.testing.assert_close(tracked.mean, tensor([0.9 * 10 + 0.1 * 4], 1))
    torch.testing.assert_close(tracked.variance, tensor([0.9 * 1 + 0.1 * 20 / 3], 1))


def test_convolution_by_hand():
    x = tensor([1, 2, 3, 4], 1, 1, 2, 2)
    kernel = tensor(range(9), 1, 1, 3, 3)  # correlation: the centre weight is 4
    top = [4 * 1 + 5 * 2 + 7 * 3 + 8 * 4, 3 * 1 + 4 * 2 + 6 * 3 + 7 * 4]
    bottom = [1 * 1 + 2 * 2 + 4 * 3 + 5 * 4, 0 * 1 + 1 * 2 + 3 * 3 + 4 * 4]
    wanted = tensor([*top, *bottom], 1, 1, 2, 2)
    torch.testing.assert_close(convolve(x, unit(weight=kernel)), wanted)
    with_bias = convolve(x, unit(weight=kernel, bias=tensor([1], 1)), stride=2)
    torch.testing.assert_close(with_bias, wanted[:, :, :1, :1] + 1)


def test_shortcut_by_hand_and_on_odd_images():
    weight = unit(weight=tensor([2], 1, 1, 1, 1))
    torch.testing.assert_close(
        shortcut(tensor([1, 2, 3, 4], 1, 1, 2, 2), weight), tensor([5], 1, 1, 1, 1)
    )
    odd = shortcut(tensor([1, 2, 3, 4, 5, 6, 7, 8, 9], 1, 1, 3, 3), weight)
    torch.testing.assert_close(odd, 2 * tensor([3, 4.5, 7.5, 9], 1, 1, 2, 2))


def test_head_by_hand():
    x = tensor([1, -3, 2, 2], 1, 2, 1, 2)
    linear = unit(weight=tensor([1, 0, 0, 1, 1, 1], 3, 2), bias=tensor([0, 0, 1], 3))
    torch.testing.assert_close(classify(x, linear), tensor([-1, 2, 2], 1, 3))


def test_loss_by_hand():
    loss, correct = loss_and_correct(tensor([0, 0, 2, 0], 2, 2), torch.tensor([1, 0]))
    wanted = tensor([math.log(2), math.log(1 + math.exp(-2))], 2)
    torch.testing.assert_close(loss, wanted)
    assert correct.tolist() == [False, True]
    loss, correct = loss_and_correct(tensor([float("nan"), 0], 1, 2), torch.tensor([0]))
    assert loss.isnan().all() and not correct.any()


def test_sums_go_left_to_right():
    terms = [torch.tensor(v) for v in (1e8, 1.0, -1e8)]
    assert add(terms).item() == 0.0
    assert add([terms[0], terms[2], terms[1]]).item() == 1.0


# Whole networks.


def randomised(config, seed=0):
    """A float64 supernet whose every tensor is random, running variances positive."""
    supernet = Supernet.create(config, seed).copy(F64)
    generator = torch.Generator().manual_seed(seed)
    for param in supernet.layout.params:
        view = supernet.view(param)
        if param.field == "variance":
            view.uniform_(0.5, 2.0, generator=generator)
        elif param.field in ("gamma", "beta", "mean"):
            view.normal_(0, 0.7, generator=generator)
    return supernet


def run(supernet, archs, images, bn="batch", merge=Merge.LINEAR):
    modes = BatchNorm.parse(bn)
    mode = Mode(modes.cells, supernet.config.affine)
    requests = request_array(supernet.layout, archs)
    program = build(supernet.layout, requests, mode=mode, merge=merge)
    executor = Executor(program, Weights(supernet.layout, dict(supernet.named_tensors())))
    norm = Normaliser(modes)
    stem = executor.stem(images, norm)
    lanes = [executor.logits(int(n), stem, {}, norm) for n in program.lanes[:, 0]]
    return torch.stack([lanes[lane] for lane in program.lane_of_request])


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0))


SETTINGS = [
    (dict(affine=False, track=False), "batch/running"),
    (dict(affine=False, track=False), "batch/batch"),
    (dict(affine=True, track=True), "running/running"),
    (dict(affine=True, track=True), "batch/running"),
    (dict(affine=False, track=True), "running/batch"),
    (dict(affine=True, track=False, fixed_affine=False, last_affine=False), "batch/batch"),
    (dict(affine=True, track=True, weights_on="node"), "running/running"),
    (dict(affine=False, weights_on="node"), "batch/batch"),
]


@pytest.mark.parametrize(("flags", "bn"), SETTINGS)
@pytest.mark.parametrize("merge", [Merge.NONE, Merge.DEAD, Merge.VALUE, Merge.LINEAR])
def test_networks_equal_an_independent_implementation(flags, bn, merge, images):
    supernet = randomised(replace(SMALL, **flags))
    tensors = dict(supernet.named_tensors())
    cells, fixed = bn.split("/")
    owner = (lambda i, j: f"nodes.{j}") if supernet.config.weights_on == "node" else None
    archs = NB201.sample(24, seed=4)
    archs += [NB201.arch([op] * 6) for op in range(5)]
    archs += [NB201.arch((0, 0, 0, 2, 3, 0)), NB201.arch((3, 0, 2, 0, 0, 0))]
    per_cell = NB201.sample(6, seed=5)
    got = run(supernet, [*archs, per_cell], images, bn, merge)
    for logits, network in zip(got, [*([a] * 6 for a in archs), per_cell], strict=True):
        wanted = straight_line.logits(
            tensors, [a.op_indices for a in network], images, cells_per_stage=2, cells=cells,
            fixed=fixed, owner=owner,
        )  # fmt: skip
        torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)


def test_merging_up_to_equal_values_keeps_the_bits(images):
    supernet = Supernet.create(SMALL, 1)
    archs, x = NB201.sample(60, seed=6), images.float()
    dead = run(supernet, archs, x, merge=Merge.DEAD)
    for merge in (Merge.IDENTITY, Merge.VALUE):
        assert torch.equal(run(supernet, archs, x, merge=merge), dead)


def test_zero_is_structural():
    # A peer multiplies by 0.0 and passes NaN on; here an edge without an operation carries zero.
    supernet = randomised(SMALL)
    poisoned = supernet.copy()
    poisoned.view(poisoned.layout.by_name["cells.0.edges.1<-0.3.op.1.weight"]).fill_(float("nan"))
    x = torch.randn(4, 3, 8, 8, dtype=F64)
    arch = NB201.arch((3, 0, 0, 2, 0, 0))
    for merge in Merge:
        assert torch.equal(
            run(poisoned, [arch], x, merge=merge), run(supernet, [arch], x, merge=merge)
        )


def test_recalibrated_statistics_are_those_of_all_images_at_once(images):
    supernet = randomised(SMALL)
    arch = NB201.from_index(77)
    program = build(
        supernet.layout, request_array(supernet.layout, [arch]), mode=Mode("recalibrate")
    )
    executor = Executor(program, Weights(supernet.layout, dict(supernet.named_tensors())))
    norm = Normaliser(BatchNorm.parse("recalibrate"), recording=True)
    executor.logits(0, executor.stem(images, norm), {}, norm)
    norm.recording = False
    halves = [executor.logits(0, executor.stem(x, norm), {}, norm) for x in images.split(3)]
    wanted = run(supernet, [arch], images, "batch")[0]
    torch.testing.assert_close(torch.cat(halves), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("flags", "bn"), SETTINGS[:4])
def test_gradients_in_float64(flags, bn, images):
    config = SupernetConfig(channels=2, cells_per_stage=1, classes=3, **flags)
    supernet = randomised(config)
    arch = NB201.arch((3, 2, 4, 1, 3, 2))
    mode = Mode(bn.split("/")[0], config.affine)
    program = build(supernet.layout, request_array(supernet.layout, [arch]), mode=mode)
    names = [p.name for p in supernet.layout.params if not p.is_buffer]
    buffers = {n: t for n, t in supernet.named_tensors() if n not in names}
    x = images[:3, :, :4, :4]

    def loss(*tensors):
        weights = Weights(supernet.layout, {**buffers, **dict(zip(names, tensors, strict=True))})
        executor, norm = Executor(program, weights), Normaliser(BatchNorm.parse(bn))
        logits = executor.logits(0, executor.stem(x, norm), {}, norm)
        return loss_and_correct(logits, torch.tensor([0, 1, 2]))[0].sum()

    used = [t.detach().clone().requires_grad_() for n, t in supernet.named_tensors() if n in names]
    assert torch.autograd.gradcheck(loss, used, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("text", ["", "train", "batch/running/batch/batch", "batch,running"])
def test_batch_norm_modes_that_are_none(text):
    with pytest.raises(ValueError, match="wanted cells"):
        BatchNorm.parse(text)


def test_batch_norm_modes():
    assert BatchNorm.parse("batch") == BatchNorm("batch", "batch", "batch")
    assert BatchNorm.parse("batch/running") == BatchNorm("batch", "running", "running")
    assert str(BatchNorm.parse("batch/running/batch")) == "batch/running/batch"
