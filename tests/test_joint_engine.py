# SPDX-License-Identifier: MIT
"""The joint supernet on the CPU engine, against the definition in float64."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_joint import one_hot, randn
from test_ops import ISAS
from test_reference import SMALL, randomised

from nasfast import Merge, Mode, Supernet, compile_archs, joint_forward, joint_loss, ops, slow_paths
from nasfast.plan import plan
from nasfast.program import build_joint
from nasfast.spaces import NB201

F32, F64 = torch.float32, torch.float64
IMAGES, LABELS = randn(20, 3, 9, 8).float(), torch.arange(20) % SMALL.classes
MASK = np.random.default_rng(1).random((6, 5)) < 0.6


def supernet(dtype=F32, **flags):
    return randomised(replace(SMALL, **flags)).copy(dtype)


def results(own, weights, how, *, loss=False, arena=False, **options):
    """Value, gradients by name and running statistics of a training step; None stays None."""
    dtype = own.arena.dtype
    weights = weights.detach().to(dtype).requires_grad_(weights.requires_grad)
    leaves = None if arena else own.leaves()
    images = options.pop("images", IMAGES).to(dtype)
    options = dict(tensors=leaves, update=True, backend=how) | options
    labels = LABELS[: len(images)]
    if arena:
        own.arena.requires_grad_()
    if loss:
        value = joint_loss(own, images, labels, weights, **options)
        (2 * value).backward()
    else:
        value = joint_forward(own, images, weights, **options)
        (2 * F.cross_entropy(value, labels)).backward()
    found = dict(value=value, weights=weights.grad)
    if arena:
        found["arena"] = own.arena.grad
    else:
        found |= {name: leaf.grad for name, leaf in leaves.items()}
    found["statistics"] = torch.cat(
        [own.arena.new_zeros(1), *(own.view(p).flatten() for p in own.layout.params if p.is_buffer)]
    )
    return {name: None if t is None else t.detach().double() for name, t in found.items()}


def assert_close(got, plain, exact):
    """The rule for fp32: 4 times the error of PyTorch's own float32, or 1e-5 of the largest."""
    others = ("value", "weights", "statistics")
    largest = max(float(t.abs().max()) for n, t in exact.items() if t is not None and n != "value")
    for name, wanted in exact.items():
        if wanted is None or got[name] is None:
            assert wanted is got[name], name
            continue
        scale = float(wanted.abs().max()) if name in others else largest
        allowed = max(4 * float((plain[name] - wanted).abs().max()), 1e-5 * scale)
        assert float((got[name] - wanted).abs().max()) <= allowed, name


def compare(weights, flags, **options):
    exact = results(supernet(F64, **flags), weights, "reference", **options)
    plain = results(supernet(**flags), weights, "reference", **options)
    got = results(supernet(**flags), weights, "cpu", **options)
    assert_close(got, plain, exact)
    return got


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize(
    "flags", [dict(), dict(affine=True), dict(affine=True, track=True)], ids=str
)
@pytest.mark.parametrize(
    ("shape", "mask"), [((6, 5), None), ((6, 6, 5), None), ((6, 6, 5), MASK)],
    ids=["all", "cells", "mask"],
)  # fmt: skip
def test_it_is_the_definition(shape, mask, flags, loss):
    weights = randn(*shape, seed=1).softmax(dim=-1).requires_grad_()
    compare(weights, flags, mask=mask, loss=loss)


@pytest.mark.parametrize("loss", [False, True])
def test_gradients_reach_the_arena(loss):
    weights = randn(6, 5, seed=1).softmax(dim=-1).requires_grad_()
    by_name = results(supernet(affine=True, track=True), weights, "cpu", loss=loss)
    own = supernet(affine=True, track=True)
    whole = compare(weights, dict(affine=True, track=True), arena=True, loss=loss)["arena"]
    for p in own.layout.params:
        part = whole[p.offset : p.offset + p.size].view(p.shape)
        assert torch.equal(part, torch.zeros_like(part) if p.is_buffer else by_name[p.name])


@pytest.mark.parametrize("loss", [False, True])
def test_what_rests(loss):
    """Weights of 0 that need no gradient: gradients None, statistics unchanged."""
    for arch in ((3, 0, 0, 2, 0, 0), (3, 1, 2, 0, 4, 3), (0, 0, 0, 0, 0, 0)):
        got = compare(one_hot(NB201.arch(arch)), dict(track=True), loss=loss)
        assert got["weights"] is None
        compare(one_hot(NB201.arch(arch)).requires_grad_(), dict(affine=True), loss=loss)


def test_one_hot_weights_are_a_single_path():
    own = Supernet.create(SMALL, 1)
    archs = [*NB201.sample(8, seed=6), *(NB201.arch([op] * 6) for op in range(5))]
    program = compile_archs(own, archs, merge=Merge.VALUE)
    table = torch.from_numpy(plan(program, batch=20, height=9, width=8, workers=1).table())
    lanes = ops.subnet_forward(
        table, own.arena[None], IMAGES, lanes=program.num_lanes, classes=SMALL.classes
    )
    for arch, lane in zip(archs, program.lane_of_request.tolist(), strict=True):
        logits = joint_forward(own, IMAGES, one_hot(arch, F32))
        # Sums are cut in other places.
        torch.testing.assert_close(logits, lanes[lane], rtol=0, atol=1e-5)


@pytest.mark.parametrize("images", [IMAGES[:1], IMAGES[:17, :, :5, :3], IMAGES[:16, :, :1, :1]])
def test_other_sizes(images):
    weights = randn(6, 5, seed=1).softmax(dim=-1).requires_grad_()
    compare(weights, dict(affine=True), images=images.contiguous(), update=False)
    compare(weights, dict(), images=images, loss=True)  # not contiguous


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", isa)
    weights = randn(6, 5, seed=1).softmax(dim=-1).requires_grad_()
    compare(weights, dict(affine=True), loss=True)
    exact = results(supernet(F64), weights, "reference", loss=True, arena=True)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = results(supernet(), weights, "reference", loss=True, arena=True)
    half = results(supernet(), weights, "cpu", loss=True, arena=True, precision="bf16")
    assert half["value"].item() == pytest.approx(exact["value"].item(), rel=0.03)
    for name in ("arena", "weights"):
        error, their_error = (float((t[name] - exact[name]).norm()) for t in (half, theirs))
        assert error <= 1.5 * their_error


def test_threads_change_no_bit():
    weights = randn(6, 5, seed=1).softmax(dim=-1).requires_grad_()
    try:
        one, two = (results(supernet(track=True), weights, "cpu", threads=k) for k in (1, 2))
    except ValueError:
        pytest.skip("needs two processors")
    assert all(t is None or torch.equal(t, two[name]) for name, t in one.items())


def test_opcheck_program_gradients():
    own = supernet(track=True)
    program = build_joint(own.layout, mode=Mode())
    table = torch.from_numpy(plan(program, batch=20, height=9, width=8, workers=1).table())
    mixing = randn(6, program.mixing_width, dtype=F32)
    torch.library.opcheck(
        torch.ops.nasfast.program_gradients.default,
        (table, own.arena, IMAGES, LABELS, None, mixing, 0, SMALL.classes, "fp32", 1,
         own.arena.clone()),
    )  # fmt: skip


def test_tensors_that_lie_elsewhere():
    weights = randn(6, 5, seed=1, dtype=F32).softmax(dim=-1)
    found = []
    for elsewhere in (False, True):
        own = supernet(affine=True, track=True)
        leaves = own.leaves()
        if elsewhere:
            leaves = {
                n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in leaves.items()
            }
            own.arena.zero_()
        joint_loss(
            own, IMAGES, LABELS, weights, tensors=leaves, update=True, backend="cpu"
        ).backward()
        found.append([t.grad if t.requires_grad else t.clone() for t in leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_changed_weight_is_noticed_on_the_way_back():
    own = supernet(track=True)
    leaves, weights = own.leaves(), randn(6, 5, dtype=F32).softmax(dim=-1).requires_grad_()
    first = joint_forward(own, IMAGES, weights, tensors=leaves, update=True, backend="cpu")
    second = joint_forward(own, IMAGES, weights, tensors=leaves, update=True, backend="cpu")
    (first.sum() + second.sum()).backward()  # moved statistics are no such change
    third = joint_forward(own, IMAGES, weights, tensors=leaves, backend="cpu")
    with torch.no_grad():
        leaves["stem.0.weight"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        third.sum().backward()


def test_second_derivatives_are_refused():
    own, weights = supernet(), randn(6, 5, dtype=F32).softmax(dim=-1).requires_grad_()
    for loss in (
        joint_forward(own, IMAGES, weights).sum(),
        joint_loss(own, IMAGES, LABELS, weights),
    ):
        with pytest.raises(RuntimeError, match="has no second derivatives"):
            torch.autograd.grad(loss, weights, create_graph=True)


@pytest.mark.parametrize("track", [False, True])
def test_training_comes_to_the_same_losses(track):
    """First-order DARTS: a step of the alphas on one minibatch, of the weights on another."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(8, 16, 3, 8, 8, generator=generator)
    labels = torch.randint(0, SMALL.classes, (8, 16), generator=generator)
    losses = []
    for backend in ("auto", "reference"):
        own = Supernet.create(replace(SMALL, track=track), 0)
        leaves, alphas = own.leaves(), torch.zeros(6, 5, requires_grad=True)
        sgd = torch.optim.SGD([t for t in leaves.values() if t.requires_grad], 0.025, 0.9)
        adam = torch.optim.Adam([alphas], 3e-3)
        for k in range(8):
            optimizer = (adam, sgd)[k % 2]
            adam.zero_grad(), sgd.zero_grad()
            loss = joint_loss(
                own, images[k], labels[k], alphas.softmax(dim=-1), tensors=leaves, update=track,
                backend=backend,
            )  # fmt: skip
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:8] == pytest.approx(losses[8:], abs=1e-4)


def call(**changed):
    """A loss with what was changed; flags go to the supernet."""
    flags = {name: changed.pop(name) for name in ("track", "weights_on") if name in changed}
    dtype = changed.pop("dtype", F32)
    arguments = (
        dict(images=IMAGES.to(dtype), labels=LABELS, weights=randn(6, 5).to(dtype)) | changed
    )
    first = [arguments.pop(name) for name in ("images", "labels", "weights")]
    return joint_loss(supernet(dtype, **flags), *first, **arguments)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (dict(dtype=F64), "float64"),
        (dict(weights_on="node"), "weights on nodes"),
        (dict(track=True, bn="running/batch"), "running statistics serve"),
        (dict(images=IMAGES.clone().requires_grad_()), "a gradient of the images"),
        (dict(images=IMAGES[:1, :, :1, :1], labels=LABELS[:1], track=True),
         "running statistics of one element a channel"),
    ],
)  # fmt: skip
def test_what_it_does_not_take_is_said_once(changed, why, caplog):
    slow_paths.warn_of_reference.cache_clear()
    assert call(**changed).item() == call(**changed).item()
    said = f"joint supernet: {why}: plain PyTorch runs it, which is slow"
    assert caplog.record_tuples == [("nasfast", logging.WARNING, said)]
    if why != "float64":
        with pytest.raises(ValueError, match=f"the CPU engine does not take this call .{why}"):
            call(**changed, backend="cpu")
        with pytest.raises(ValueError, match="does not take this call"):
            call(**changed, precision="bf16")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(dtype=F64, backend="cpu"), "precision: backend 'cpu' has fp32, bf16, got 'fp64'"),
        (dict(precision="fp64"), "precision: wanted fp32 of a supernet in torch.float32"),
        (dict(dtype=F64, precision="bf16"), "precision: wanted fp64 of a supernet in"),
        (dict(precision="fp16"), "precision: wanted one of fp32, tf32, bf16, fp64, got 'fp16'"),
        (dict(precision="bf16", backend="reference"), "'reference' has fp32, fp64, got 'bf16'"),
        (dict(precision="tf32"), "precision: backend 'auto' has fp32, bf16, fp64, got 'tf32'"),
        (dict(threads=0), r"threads: wanted 1\.\."),
        (dict(labels=LABELS[:3]), r"labels: wanted int64 \[20\], got torch.int64 \[3\]"),
        (dict(labels=LABELS.int()), "labels: wanted int64"),
        (dict(labels=LABELS - 1), r"labels: wanted 0\.\.\d+, got -1"),
        (dict(labels=LABELS + 3), r"labels: wanted 0\.\.\d+, got \d+"),
    ],
)
def test_bad_input(changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)


def test_the_operator_refuses_weights_on_nodes():
    own = supernet(weights_on="node")
    table = plan(build_joint(own.layout, mode=Mode()), batch=20, height=9, width=8, workers=1)
    with pytest.raises(RuntimeError, match="table: wanted weights that one convolution of a"):
        ops.program_gradients(
            torch.from_numpy(table.table()), own.arena, IMAGES, labels=LABELS,
            mixing=torch.ones(6, 30), classes=SMALL.classes,
        )  # fmt: skip
