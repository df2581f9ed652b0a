# SPDX-License-Identifier: MIT
"""The joint supernet: against an independent one, single paths, masks, gradients, what rests."""

from dataclasses import replace

import numpy as np
import pytest
import straight_line
import torch
from test_reference import F64, SETTINGS, SMALL, randomised, run

from nasfast import BatchNorm, Merge, Mode, Supernet, SupernetConfig, joint_forward
from nasfast.data import Batch
from nasfast.evaluate import run as run_program
from nasfast.program import build_joint
from nasfast.reference import Executor, Normaliser, Weights
from nasfast.spaces import NB201

TINY = SupernetConfig(channels=2, cells_per_stage=1, classes=3)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def images():
    return randn(6, 3, 8, 8)


def one_hot(arch, dtype=F64):
    return torch.nn.functional.one_hot(torch.tensor(arch.op_indices), 5).to(dtype)


@pytest.mark.parametrize(("flags", "bn"), SETTINGS)
@pytest.mark.parametrize("shape", [(6, 5), (6, 6, 5)])
def test_it_equals_an_independent_implementation(flags, bn, shape, images):
    supernet = randomised(replace(SMALL, **flags))
    cells, fixed = bn.split("/")
    owner = (lambda i, j: f"nodes.{j}") if supernet.config.weights_on == "node" else None
    leaves, own = supernet.leaves(), supernet.leaves()
    weights = randn(*shape, seed=1).softmax(dim=-1).requires_grad_()
    theirs = weights.detach().clone().requires_grad_()
    x, their_x = (images.clone().requires_grad_() for _ in range(2))
    got = joint_forward(supernet, x, weights, tensors=leaves, bn=bn)
    wanted = straight_line.logits(
        own, theirs.expand(6, 6, 5), their_x, cells_per_stage=2, cells=cells, fixed=fixed,
        owner=owner,
    )  # fmt: skip
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    direction = randn(*got.shape, seed=2)
    (got * direction).sum().backward()
    (wanted * direction).sum().backward()
    pairs = [(weights, theirs), (x, their_x), *zip(leaves.values(), own.values(), strict=True)]
    for mine, other in pairs:
        if other.grad is not None:
            largest = float(other.grad.abs().max())
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9 + 1e-9 * largest)
    assert (weights.grad[..., 0] == 0).all()


def test_one_hot_weights_give_the_bits_of_a_single_path(images):
    x = images.float()
    for flags in (dict(), dict(affine=True), dict(weights_on="node")):
        supernet = Supernet.create(replace(SMALL, **flags), 1)
        archs = [*NB201.sample(40, seed=6), *(NB201.arch([op] * 6) for op in range(5))]
        for arch, wanted in zip(archs, run(supernet, archs, x, merge=Merge.VALUE), strict=True):
            weights = one_hot(arch, x.dtype)
            assert torch.equal(joint_forward(supernet, x, weights, backend="reference"), wanted)
        cells = NB201.sample(6, seed=7)
        stacked = torch.stack([one_hot(arch, x.dtype) for arch in cells])
        wanted = run(supernet, [cells], x, merge=Merge.VALUE)[0]
        assert torch.equal(joint_forward(supernet, x, stacked, backend="reference"), wanted)
        # Weights that need a gradient leave nothing out: equal but for rounding.
        needed = joint_forward(supernet, x, stacked.requires_grad_())
        torch.testing.assert_close(needed, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_what_rests_has_no_gradient_and_keeps_its_statistics(images):
    config = replace(SMALL, affine=True, track=True)
    arch = NB201.arch((3, 0, 0, 2, 0, 0))  # its first edge leads nowhere
    for weights, live in ((one_hot(arch), {"3<-0.2"}), (one_hot(arch).requires_grad_(), None)):
        supernet = randomised(config)
        before = supernet.state_dict()
        leaves = supernet.leaves()
        logits = joint_forward(supernet, images, weights, tensors=leaves, update=True)
        logits.square().sum().backward()
        for param in supernet.layout.params:
            changed = not torch.equal(supernet.view(param), before[param.name])
            lives = live is None or "edges" not in param.name or "3<-0.2." in param.name
            has_gradient = leaves[param.name].grad is not None
            wanted = (lives, False) if param.is_buffer else (False, lives)
            assert (changed, has_gradient) == wanted, param.name


def test_a_gradient_reaches_the_arena(images):
    supernet, weights = randomised(TINY), randn(6, 5).softmax(dim=-1)
    leaves = supernet.leaves()
    joint_forward(supernet, images, weights, tensors=leaves).square().sum().backward()
    supernet.arena.requires_grad_()
    joint_forward(supernet, images, weights, update=True).square().sum().backward()
    for param in supernet.layout.params:
        own = supernet.arena.grad[param.offset : param.offset + param.size].view(param.shape)
        wanted = torch.zeros_like(own) if param.is_buffer else leaves[param.name].grad
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("flags", "bn"), SETTINGS[:4])
def test_gradients_in_float64(flags, bn, images):
    supernet = randomised(replace(TINY, **flags))
    leaves = supernet.leaves()
    params = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    weights = randn(6, 5, seed=3).requires_grad_()
    x = images[:2, :, :4, :4].clone().requires_grad_()

    def logits(x, weights, *given):
        tensors = leaves | dict(zip(params, given, strict=True))
        return joint_forward(supernet, x, weights, tensors=tensors, bn=bn)

    inputs = (x, weights, *params.values())
    assert torch.autograd.gradcheck(logits, inputs, fast_mode=True, atol=1e-6)


def test_masked_operations_count_as_none(images):
    supernet, weights = randomised(SMALL), randn(6, 6, 5, seed=4)
    mask = np.random.default_rng(0).random((6, 6, 5)) < 0.5
    mask[0, 0] = False
    free, masked = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    wanted = joint_forward(supernet, images, free * torch.from_numpy(mask))
    got = joint_forward(supernet, images, masked, mask=mask)
    torch.testing.assert_close(
        got, wanted, rtol=1e-9, atol=1e-9 * float(wanted.detach().abs().max())
    )
    got.sum().backward()
    assert (masked.grad[~torch.from_numpy(mask)] == 0).all()
    # One mask for all cells, and together with weights of 0.
    same = np.random.default_rng(1).random((6, 5)) < 0.5
    both = torch.from_numpy(same) * (weights > 0)
    assert torch.equal(
        joint_forward(supernet, images, weights * (weights > 0), mask=same),
        joint_forward(supernet, images, weights, mask=both.numpy()),
    )


def test_nothing_left_is_zero(images):
    supernet = randomised(SMALL)
    nothing = joint_forward(supernet, images, torch.zeros(6, 5, dtype=F64))
    assert torch.equal(nothing, run(supernet, [NB201.arch([0] * 6)], images)[0])


def test_joint_programs_need_mixing_weights_and_have_no_scores(images):
    supernet = randomised(TINY)
    program = build_joint(supernet.layout, mode=Mode())
    executor = Executor(program, Weights(supernet.layout, dict(supernet.named_tensors())))
    norm = Normaliser(BatchNorm())
    with pytest.raises(ValueError, match="mixing: wanted the mixing weights"):
        executor.logits(0, executor.stem(images, norm), {}, norm)
    batch = Batch(images, torch.zeros(6, dtype=torch.int64))
    for backend, precision in (("reference", "fp64"), ("cpu", "fp32")):
        with pytest.raises(ValueError, match="program: a joint supernet has no scores"):
            list(run_program(program, [supernet], [[batch]], backend=backend, precision=precision))


def call(**changed):
    supernet = randomised(TINY)
    arguments = dict(images=randn(2, 3, 4, 4), weights=randn(6, 5)) | changed
    return joint_forward(supernet, arguments.pop("images"), arguments.pop("weights"), **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(weights=randn(5, 6)), r"weights: wanted torch.float64 \[6, 5\] or \[3, 6, 5\]"),
        (dict(weights=randn(2, 6, 5)), r"got torch.float64 \[2, 6, 5\]"),
        (dict(weights=randn(6, 5).float()), r"weights: .* got torch.float32 \[6, 5\]"),
        (dict(images=randn(3, 4, 4)), r"images: wanted torch.float64 \[batch, 3, height, width\]"),
        (dict(images=randn(2, 1, 4, 4)), r"images: .* got torch.float64 \[2, 1, 4, 4\]"),
        (dict(images=randn(0, 3, 4, 4)), r"images: .* got torch.float64 \[0, 3, 4, 4\]"),
        (dict(images=randn(2, 3, 4, 4).float()), r"images: .* got torch.float32"),
        (dict(mask=np.ones((5, 6), bool)), r"mask: wanted bool \[6, 5\] or \[3, 6, 5\], got bool"),
        (dict(mask=np.ones((6, 5))), r"mask: wanted bool .* got float64 \[6, 5\]"),
        (dict(bn="recalibrate"), "bn: the joint supernet does not recalibrate"),
        (dict(bn="running"), "bn: running statistics asked for cells"),
        (dict(tensors={}), r"tensors\['stem.0.weight'\]: wanted \[2, 3, 3, 3\], got none"),
        (dict(backend="gpu"), "backend: wanted one of auto, cpu, cuda, reference, got 'gpu'"),
    ],
)
def test_bad_input(changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)
