# SPDX-License-Identifier: MIT
"""Supernet training and the joint supernet on a card: against the CPU engine, to the same bits."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from nasfast import (
    FixedSampler,
    Supernet,
    SupernetConfig,
    TrainSettings,
    UniformSampler,
    cuda_device,
    joint_forward,
    joint_loss,
    ops,
    train,
)
from nasfast.data import Augmentation, ImageSet, TrainLoader
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import build_training
from nasfast.spaces import NB201
from nasfast.train import TrainState

MISSING = cuda_device.why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
PRECISIONS = ("fp32", "bf16")
TOLERANCE = {"fp32": 2e-3, "bf16": 0.2}  # of how far weights move, over a few steps
SHAPE = dict(channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=True, track=True)
SETTINGS = TrainSettings(epochs=2, lr=0.05, lr_min=0.02, paths=3, weight_decay=0.01, clip=2.0)

# Behind a cell that carries nothing there is only rounding to normalise.
SAMPLER = UniformSampler(NB201, 2, NB201.mask(("none",)))


def image_set(count=48):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 4, "random", 4, mean=(0.5,), std=(0.25,))


def loader(batch=20):
    return TrainLoader(image_set(), batch, Augmentation(crop_padding=1, flip=True), seed=3)


def trained(backend, precision="fp32", settings=SETTINGS, **options):
    supernet, state = Supernet.create(SupernetConfig(**SHAPE), seed=1), TrainState()
    sampler = options.pop("sampler", SAMPLER)
    records = train(
        supernet, options.pop("loader", loader()), sampler, settings, state=state,
        backend=backend, precision=precision, **options,
    )  # fmt: skip
    return supernet.arena, records, state


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("paths", [1, 3])
def test_training_is_that_of_the_cpu(paths, precision):
    settings = replace(SETTINGS, paths=paths)
    (ours, records, state), (theirs, expected, other) = (
        trained(backend, precision, settings) for backend in ("cuda", "cpu")
    )
    start = Supernet.create(SupernetConfig(**SHAPE), seed=1).arena
    assert ours.device.type == "cpu"
    assert (ours - theirs).norm() <= TOLERANCE[precision] * (theirs - start).norm()
    for own, wanted in zip(records, expected, strict=True):
        assert own.loss == pytest.approx(wanted.loss, rel=TOLERANCE[precision])
    assert state.momentum.keys() == other.momentum.keys()
    assert all(buffer.device.type == "cpu" for buffer in state.momentum.values())


def test_training_goes_on_where_it_stopped():
    whole, _, _ = trained("cuda")
    supernet, state = Supernet.create(SupernetConfig(**SHAPE), seed=1), TrainState()
    for epochs in (1, 2):
        # The rate of an epoch depends on how many there are.
        settings = replace(SETTINGS, lr_min=SETTINGS.lr, epochs=epochs)
        train(supernet, loader(), SAMPLER, settings, state=state, backend="cuda")
    once, _, _ = trained("cuda", settings=replace(SETTINGS, lr_min=SETTINGS.lr))
    assert torch.equal(supernet.arena, once)
    assert not torch.equal(once, whole)


def test_training_that_diverges_says_so_and_keeps_the_weights():
    bad = FixedSampler(NB201.from_index(15_624))
    settings = replace(SETTINGS, lr=1e30, lr_min=1e30, paths=1, clip=0.0)
    with pytest.raises(FloatingPointError, match=r"training loss is .* at epoch 0, step 1"):
        trained("cuda", settings=settings, sampler=bad)


def step(device="cuda", **changed):
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    archs = NB201.sample(4, seed=1)
    program = build_training(supernet.layout, archs)
    cut = plan(program, batch=4, height=8, width=8, memory=UNBOUNDED)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = dict(
        weights=supernet.arena.to(device), momenta=torch.zeros_like(supernet.arena).to(device),
        images=images.to(device), labels=(torch.arange(8) % 4).to(device), sizes=[4, 4],
        lanes=[0, 1, 2, 2, 1, 3], paths=3,
    )  # fmt: skip
    given = arguments | changed
    loss, correct, steps = ops.train_paths(
        torch.from_numpy(cut.table()), *given.values(), 0.05, SETTINGS
    )
    return given["weights"], given["momenta"], loss, correct, steps


def test_the_operator_gives_the_same_bits_every_time():
    one, other = step(), step()
    assert one[4] == 2
    assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
    expected = step("cpu")
    assert torch.allclose(one[2].cpu(), expected[2], rtol=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(weights=torch.zeros(1)), "train_paths: weights: wanted "),
        (dict(lanes=[0, 1]), "lanes: wanted 2 minibatches times paths, got 2"),
        (dict(lanes=[0, 1, 2, 2, 1, 4]), r"lanes: wanted 0\.\.3, got 4"),
        (dict(paths=0), r"train_paths: paths: wanted 1\.\.65535, got 0"),
        (dict(labels=torch.full((8,), 9)), "labels: wanted 0..3, got 9"),
    ],
    ids=str,
)
def test_what_the_operator_refuses(changed, message):
    moved = {
        name: value.cuda() if isinstance(value, torch.Tensor) and name == "labels" else value
        for name, value in changed.items()
    }
    with pytest.raises(RuntimeError, match=message):
        step(**moved)


def joint(device, precision="fp32", function=joint_loss, **options):
    """Return what the joint supernet gives, and gradients of arena and mixing weights."""
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    arena = supernet.arena.to(device).requires_grad_()
    own = Supernet(supernet.config, arena, supernet.layout)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 8, 8, generator=generator).to(device)
    weights = torch.rand(6, 5, generator=generator).softmax(1).to(device).requires_grad_()
    labels = (torch.arange(6) % 4).to(device)
    given = (images, labels) if function is joint_loss else (images,)
    result = function(own, *given, weights, precision=precision, **options)
    scalar = result if function is joint_loss else (result * result).sum()
    scalar.backward()
    return [t.detach().cpu() for t in (result, arena.grad, weights.grad, arena)]


@pytest.mark.parametrize("function", [joint_loss, joint_forward])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_joint_supernet_is_that_of_the_cpu(precision, function):
    ours, theirs = (joint(device, precision, function, update=True) for device in ("cuda", "cpu"))
    tolerance = {"fp32": 1e-3, "bf16": 0.2}[precision]
    for own, expected in zip(ours, theirs, strict=True):
        assert (own - expected).norm() <= tolerance * expected.norm()


def test_the_joint_supernet_gives_the_same_bits_every_time():
    one, other = joint("cuda"), joint("cuda")
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_backend_wants_its_own_tensors():
    for device, backend, place in (("cpu", "cuda", "one CUDA device"), ("cuda", "cpu", "the CPU")):
        with pytest.raises(ValueError, match=re.escape(f"float32 on {place}")):
            joint(device, backend=backend)


def test_momentum_of_a_card_goes_on_elsewhere():
    _, _, state = trained("cuda", settings=replace(SETTINGS, epochs=1, lr_min=SETTINGS.lr))
    assert np.isfinite([float(buffer.sum()) for buffer in state.momentum.values()]).all()
    supernet = Supernet.create(SupernetConfig(**SHAPE), seed=1)
    records = train(supernet, loader(), SAMPLER, SETTINGS, state=state, backend="cpu")
    assert [record.epoch for record in records] == [1]
