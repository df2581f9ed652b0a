# SPDX-License-Identifier: MIT
"""The CUDA operators on the emulated device, through the functions that call them on a card.

Wherever an operator of the CPU would be called the CUDA one is, so that all of its way but the
hardware runs: arguments, engine, kernels. What it gives is compared with the CPU engine.
"""

import contextlib
import re
from types import SimpleNamespace

import emulated_ops
import numpy as np
import pytest
import torch
from engine_samples import batch_of

from nasfast import (
    Sgd,
    Supernet,
    SupernetConfig,
    TrainSettings,
    UniformSampler,
    backends,
    cuda_device,
    evaluate,
    finetune,
    joint_forward,
    joint_loss,
    ops,
    train,
)
from nasfast.data import ImageSet, TrainLoader
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import build_training
from nasfast.spaces import NB201
from nasfast.tf32 import Tf32Convolutions

NAMES = (
    "run_program", "score_lanes", "subnet_forward", "train_lanes", "train_paths",
    "program_gradients",
)  # fmt: skip
SHAPE = dict(channels=4, cells_per_stage=1, affine=True, track=True)
# Behind a cell that carries nothing there is only rounding to normalise.
MASK = NB201.mask(("none",))


@pytest.fixture(scope="module", autouse=True)
def library():
    return emulated_ops.operators()


@contextlib.contextmanager
def emulated():
    """Let the emulated device compute; yield the names of the operators that it has run."""
    real, called = torch.ops.nasfast, []

    def call(name):
        def default(*arguments):
            called.append(name)
            return getattr(torch.ops.nasfast_emulated, name).default(*arguments)

        return SimpleNamespace(default=default)

    class Redirected:
        def __getattr__(self, name):
            return call(name) if name in NAMES else getattr(real, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "nasfast", Redirected())
        yield called


def both(function):
    """Return what the CPU gives and what the emulated device does, and what ran there."""
    expected = function()
    with emulated() as called:
        return expected, function(), set(called)


def apart(own, expected):
    own, expected = (torch.as_tensor(t).detach().double() for t in (own, expected))
    return float((own - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bn", ["batch", "running/batch"])
def test_scores(precision, bn):
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    archs = NB201.sample(7, seed=1, mask=MASK)
    batches = [batch_of(size, 8, seed=size) for size in (6, 4, 6)]
    expected, own, called = both(
        lambda: evaluate(supernet, archs, batches, bn=bn, precision=precision, backend="cpu")
    )
    assert called == {"run_program"}
    assert apart(own.loss, expected.loss) <= {"fp32": 1e-5, "bf16": 0.02}[precision]
    assert np.abs(own.accuracy - expected.accuracy).max() <= 1 / 8


def test_scores_in_tf32(monkeypatch):
    """As far off fp32 as plain PyTorch with operands rounded alike, and off in the same way."""
    monkeypatch.setitem(backends.PRECISIONS, "cpu", cuda_device.PRECISIONS)
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    archs, batches = NB201.sample(7, seed=1, mask=MASK), [batch_of(6, 8)]
    exact = evaluate(supernet, archs, batches, precision="fp64").lane_loss
    with Tf32Convolutions():
        rounded = evaluate(supernet, archs, batches, backend="reference").lane_loss
    with emulated() as called:
        own = evaluate(supernet, archs, batches, precision="tf32", backend="cpu").lane_loss
    assert set(called) == {"run_program"}
    error = apart(rounded, exact)
    assert 5e-5 < error < 1e-2
    assert apart(own, rounded) <= 0.5 * error


@pytest.mark.parametrize("space", ["nb1shot1-1", "nb1shot1-3"])
def test_scores_of_other_spaces(space):
    supernet = Supernet.create(SupernetConfig.published(space), seed=0)
    config = supernet.config
    archs = config.spec.sample(2, seed=0)
    batches = [batch_of(2, 8, seed=1, channels=config.in_channels)]
    expected, own, _ = both(lambda: evaluate(supernet, archs, batches, backend="cpu"))
    assert apart(own.loss, expected.loss) <= 1e-4


def test_logits():
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    program = build_training(supernet.layout, NB201.sample(3, seed=1, mask=MASK))
    cut = plan(program, batch=4, height=8, width=8, memory=UNBOUNDED, max_chunk_lanes=2)
    table, images = torch.from_numpy(cut.table()), batch_of(4, 8, seed=1).images
    expected, own, called = both(
        lambda: ops.subnet_forward(table, supernet.arena[None], images, lanes=3, classes=10)
    )
    assert called == {"subnet_forward"}
    assert own.shape == (3, 4, 10) and apart(own, expected) <= 1e-5


def test_curves():
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    archs = NB201.sample(3, seed=2, mask=MASK)
    batches = [batch_of(6, 8, seed=k) for k in range(3)]
    call = dict(
        steps=3, lr=0.02, sgd=Sgd(weight_decay=0.01, clip=2.0), validation=batches[:2], mini_at=(1,)
    )
    expected, own, called = both(lambda: finetune(supernet, archs, batches, backend="cpu", **call))
    assert called == {"train_lanes", "score_lanes"}
    for name in ("loss", "gradient_l1", "gradient_sum_l1", "valid_loss", "mini_loss"):
        assert apart(getattr(own.curves, name), getattr(expected.curves, name)) <= 2e-3, name
    assert np.array_equal(own.curves.diverged_at, expected.curves.diverged_at)


@pytest.mark.parametrize("paths", [1, 3])
def test_training(paths):
    settings = TrainSettings(epochs=1, lr=0.05, paths=paths, weight_decay=0.01, clip=2.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (18, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(18) % 4
    loader = TrainLoader(ImageSet(images, labels, "random", 4, mean=(0.5,), std=(0.25,)), 6)

    def trained():
        supernet = Supernet.create(SupernetConfig(**SHAPE, in_channels=1), seed=1)
        start = supernet.arena.clone()
        records = train(supernet, loader, UniformSampler(NB201, 2, MASK), settings, backend="cpu")
        return supernet.arena - start, records[0].loss

    expected, own, called = both(trained)
    assert called == {"train_paths"}
    assert apart(own[0], expected[0]) <= 2e-3
    assert own[1] == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("function", [joint_loss, joint_forward])
def test_the_joint_supernet(function):
    images, labels = batch_of(4, 8, seed=1).images, torch.arange(4) % 4
    mixing = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).softmax(1)

    def joint():
        supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
        before = supernet.arena.clone()
        supernet.arena.requires_grad_()
        weights = mixing.clone().requires_grad_()
        given = (images, labels) if function is joint_loss else (images,)
        result = function(supernet, *given, weights, backend="cpu", update=True)
        result.square().sum().backward()
        return result, supernet.arena.grad, weights.grad, supernet.arena.detach() - before

    expected, own, called = both(joint)
    assert called == {"program_gradients"}
    for mine, wanted in zip(own, expected, strict=True):
        assert wanted.norm() > 0 and apart(mine, wanted) <= 1e-3


# What they refuse, in words.


def step(**changed):
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    program = build_training(supernet.layout, NB201.sample(3, seed=1, mask=MASK))
    cut = plan(program, batch=4, height=8, width=8, memory=UNBOUNDED)
    batch = batch_of(4, 8, seed=1)
    given = dict(
        table=torch.from_numpy(cut.table()), weights=supernet.arena.clone(),
        momenta=torch.zeros_like(supernet.arena), images=batch.images, labels=batch.labels,
        sizes=[4], lanes=[0, 1], paths=2,
    ) | changed  # fmt: skip
    with emulated():
        return ops.train_paths(*given.values(), 0.05, TrainSettings(epochs=1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(lanes=[0]), "train_paths: lanes: wanted 1 minibatches times paths, got 1"),
        (dict(lanes=[0, 3]), "train_paths: lanes: wanted 0..2, got 3"),
        (dict(paths=0), "train_paths: paths: wanted 1..65535, got 0"),
        (dict(labels=torch.tensor([0, 1, 2, 10])), "train_paths: labels: wanted 0..9, got 10"),
        (dict(momenta=None), "train_paths: momenta: wanted exactly where momentum is above 0"),
        (dict(momenta=torch.zeros(3)), "train_paths: momenta: wanted shape ["),
        (dict(weights=torch.zeros(3)), "train_paths: weights: wanted shape ["),
        (dict(sizes=[5]), "train_paths: images: wanted shape [5, 3, any, any], got [4, 3, 8, 8]"),
    ],
    ids=str,
)
def test_what_training_refuses(changed, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        step(**changed)


def test_steps_that_are_taken_are_counted():
    loss, correct, steps = step()
    assert steps == 1 and loss.shape == correct.shape == (2,) and bool(torch.isfinite(loss).all())
    broken = Supernet.create(SupernetConfig(**SHAPE), seed=1).arena.fill_(float("nan"))
    kept = broken.clone()
    loss, _, steps = step(weights=broken)
    assert steps == 0 and not torch.isfinite(loss).any()
    assert torch.equal(broken.view(torch.int32), kept.view(torch.int32))
