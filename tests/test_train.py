# SPDX-License-Identifier: MIT
"""Training: against a hand-written loop, untouched weights, resume, samplers."""

import math

import pytest
import straight_line
import torch
import torch.nn.functional as F

from nasfast import FixedSampler, Supernet, SupernetConfig, TrainSettings, UniformSampler, train
from nasfast.data import Augmentation, ImageSet, TrainLoader
from nasfast.spaces import NB201
from nasfast.train import TrainState

CONFIG = SupernetConfig(channels=3, cells_per_stage=1, classes=4, in_channels=1)
MEAN_STD = dict(mean=(0.5,), std=(0.25,))
BACKENDS = ["reference", "cpu"]


def image_set(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 4, "random", 4, **MEAN_STD)


LOADER = TrainLoader(image_set(), 8, Augmentation(crop_padding=1, flip=True), seed=3)
DOUBLE = TrainLoader(image_set(), 8, seed=3, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        dict(momentum=0.0, nesterov=False, weight_decay=0.0),
        dict(momentum=0.9, nesterov=False, weight_decay=0.01),
        dict(momentum=0.9, nesterov=True, weight_decay=0.01),
        dict(momentum=0.9, nesterov=True, weight_decay=0.01, clip=0.5),
        dict(momentum=0.9, nesterov=True, weight_decay=0.01, schedule="constant"),
    ],
)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("without", [(), ("none",)])
def test_steps_equal_a_hand_written_loop(options, affine, without):
    config = SupernetConfig(
        channels=3, cells_per_stage=1, classes=4, in_channels=1, affine=affine,
        fixed_track=False, last_track=False,
    )  # fmt: skip
    start = Supernet.create(config, seed=1).copy(torch.float64)
    trained = start.copy()
    settings = TrainSettings(epochs=2, lr=0.1, lr_min=0.02, **options)
    sampler = UniformSampler(NB201, seed=5, mask=NB201.mask(without))
    records = train(trained, DOUBLE, sampler, settings)

    tensors = {n: t.detach().clone().requires_grad_() for n, t in start.named_tensors()}
    velocity = {}
    losses = []
    for epoch in range(2):
        lr = 0.1 if settings.schedule == "constant" else (0.1, 0.06)[epoch]
        assert records[epoch].lr == pytest.approx(lr)
        archs = sampler.draw(epoch, 3)
        for arch, batch in zip(archs, DOUBLE.epoch(epoch), strict=True):
            logits = straight_line.logits(
                tensors, [arch.op_indices] * 3, batch.images, cells_per_stage=1,
                structural_zeros="affine" if affine else "plain",
            )  # fmt: skip
            loss = F.cross_entropy(logits, batch.labels)
            losses.append(loss.item())
            grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
            touched = {n: g for n, g in zip(tensors, grads, strict=True) if g is not None}
            if settings.clip:
                norm = math.sqrt(sum(float((g**2).sum()) for g in touched.values()))
                touched = {
                    n: g * min(1.0, settings.clip / (norm + 1e-6)) for n, g in touched.items()
                }
            with torch.no_grad():
                for name, grad in touched.items():
                    step = grad + settings.weight_decay * tensors[name]
                    if settings.momentum:
                        fresh = name not in velocity
                        v = step if fresh else settings.momentum * velocity[name] + step
                        velocity[name] = v
                        step = step + settings.momentum * v if settings.nesterov else v
                    tensors[name] -= lr * step
    for name, tensor in trained.named_tensors():
        torch.testing.assert_close(tensor, tensors[name].detach(), rtol=1e-9, atol=1e-11, msg=name)
    assert [r.loss for r in records] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_off_the_live_path_rest(backend):
    supernet = Supernet.create(CONFIG, seed=0)
    before = supernet.state_dict()
    arch = NB201.arch((3, 0, 2, 1, 0, 0))  # node 1 and 2 are dead ends: the output is the input
    state = TrainState()
    settings = TrainSettings(epochs=2, lr=0.1)
    train(supernet, LOADER, FixedSampler(arch), settings, state=state, backend=backend)
    after = supernet.state_dict()
    for name in before:
        in_cell = ".edges." in name
        assert torch.equal(before[name], after[name]) == in_cell, name
    assert not any(".edges." in name for name in state.momentum)


def test_shared_weights_count_every_use_in_running_statistics():
    # Two edges into node 3 carry one convolution of one value: PyTorch updates twice.
    config = SupernetConfig(
        channels=3, cells_per_stage=1, classes=4, in_channels=1, track=True, weights_on="node"
    )
    one_step = TrainLoader(image_set(8), 8, seed=3)
    settings = TrainSettings(epochs=1, lr=0.0, lr_min=0.0)
    variances = []
    for ops in ((1, 0, 0, 2, 2, 0), (0, 0, 0, 2, 0, 0)):
        supernet = Supernet.create(config, seed=0)
        train(supernet, one_step, FixedSampler(NB201.arch(ops)), settings)
        name = "cells.0.nodes.3.2.op.2.running_var"
        variances.append(supernet.view(supernet.layout.by_name[name]))
    twice, once = variances  # once 0.9 + s, twice 0.9 (0.9 + s) + s
    torch.testing.assert_close(twice, 0.9 * once + (once - 0.9))


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_follow_the_minibatches(backend):
    config = SupernetConfig(channels=3, cells_per_stage=1, classes=4, in_channels=1, track=True)
    supernet = Supernet.create(config, seed=0)
    arch = NB201.arch((0, 0, 0, 2, 0, 0))
    train(supernet, LOADER, FixedSampler(arch), TrainSettings(epochs=1), backend=backend)
    state = supernet.state_dict()
    assert (state["stem.1.running_mean"] != 0).any()
    assert (state["cells.0.edges.3<-0.2.op.2.running_var"] != 1).all()
    assert (state["cells.0.edges.3<-0.3.op.2.running_var"] == 1).all()


@pytest.mark.parametrize("scope", ["network", "cell"])
@pytest.mark.parametrize("how", [dict(backend="reference"), dict(), dict(precision="bf16")])
def test_a_resumed_training_is_the_uninterrupted_one(scope, how):
    settings = TrainSettings(epochs=4, lr=0.05, paths=1 if scope == "network" else 2)
    sampler = UniformSampler(NB201, 7, scope=scope, cells=3)
    whole = Supernet.create(CONFIG, seed=0)
    records = train(whole, LOADER, sampler, settings, **how)

    class Killed(Exception):
        pass

    kept = {}

    def kill(record, state):
        if record.epoch == 1:
            kept.update(weights=whole_again.state_dict(), epoch=state.epoch)
            kept["momentum"] = {name: t.clone() for name, t in state.momentum.items()}
            raise Killed

    whole_again = Supernet.create(CONFIG, seed=0)
    with pytest.raises(Killed):
        train(whole_again, LOADER, sampler, settings, on_epoch=kill, **how)
    resumed = Supernet.create(CONFIG, seed=99)
    resumed.load_state_dict(kept["weights"])
    state = TrainState(kept["epoch"], kept["momentum"])
    later = train(resumed, LOADER, sampler, settings, state=state, **how)
    assert torch.equal(resumed.arena, whole.arena)
    assert [r.loss for r in later] == [r.loss for r in records[2:]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_seed_same_bits(backend):
    arenas = []
    for seed in (1, 1, 2):
        supernet = Supernet.create(CONFIG, seed=0)
        sampler, settings = UniformSampler(NB201, seed), TrainSettings(epochs=1)
        train(supernet, LOADER, sampler, settings, backend=backend)
        arenas.append(supernet.arena)
    assert torch.equal(arenas[0], arenas[1]) and not torch.equal(arenas[0], arenas[2])


@pytest.mark.parametrize("how", [dict(backend="reference"), dict(), dict(precision="bf16")])
def test_it_learns(how):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    noise = torch.randint(0, 60, (64, 1, 8, 8), generator=generator)
    images = (noise + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    easy = ImageSet(images, labels, "brightness", 4, **MEAN_STD)
    supernet = Supernet.create(CONFIG, seed=0)
    sampler = FixedSampler(NB201.arch((3, 1, 1, 1, 3, 1)))
    settings = TrainSettings(epochs=20, lr=0.05)
    records = train(supernet, TrainLoader(easy, 16), sampler, settings, **how)
    assert records[0].loss > 1.0 and records[-1].loss < 0.3 and records[-1].accuracy > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_does_not_fit(backend):
    supernet = Supernet.create(CONFIG, seed=0)
    wrong = {"nothing": torch.zeros(1), "classifier.bias": torch.zeros(3),
             "stem.1.running_mean": torch.zeros(3)}  # fmt: skip
    for momentum in ({name: tensor} for name, tensor in wrong.items()):
        with pytest.raises(ValueError, match=r"state: momentum of '.*' does not fit"):
            train(
                supernet, LOADER, UniformSampler(NB201, 0), TrainSettings(epochs=1),
                state=TrainState(0, momentum), backend=backend,
            )  # fmt: skip
    with pytest.raises(ValueError, match=r"loader: wanted images in torch.float32, got torch.floa"):
        train(supernet, DOUBLE, UniformSampler(NB201, 0), TrainSettings(epochs=1))
    with pytest.raises(ValueError, match="scope: wanted 'network' or 'cell', got 'cells'"):
        UniformSampler(NB201, 0, scope="cells")


@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_states_do_not_change_later(backend):
    kept = []

    def keep(_, state):
        kept.append((state.momentum, {name: t.clone() for name, t in state.momentum.items()}))

    supernet = Supernet.create(CONFIG, seed=0)
    settings, sampler = TrainSettings(epochs=3), UniformSampler(NB201, 0)
    train(supernet, LOADER, sampler, settings, on_epoch=keep, backend=backend)
    assert len(kept) == 3 and kept[0][0].keys()
    for momentum, copy in kept:
        assert all(torch.equal(momentum[name], copy[name]) for name in copy)


def test_samplers_draw_by_epoch_alone():
    sampler = UniformSampler(NB201, seed=4, mask=NB201.mask(("none", "avg_pool_3x3")))
    assert sampler.draw(3, 10) == sampler.draw(3, 10) != sampler.draw(4, 10)
    assert all(arch.op_counts["none"] == 0 for arch in sampler.draw(0, 50))
    cells = UniformSampler(NB201, seed=4, scope="cell", cells=3).draw(0, 7)
    assert [len(network) for network in cells] == [3] * 7
    assert len({arch for network in cells for arch in network}) > 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_stops_with_its_place(backend):
    supernet = Supernet.create(CONFIG, seed=0)
    settings = TrainSettings(epochs=9, lr=1e30, lr_min=1e30)
    with pytest.raises(FloatingPointError, match=r"training loss is .* at epoch \d, step \d \(\|"):
        train(supernet, LOADER, UniformSampler(NB201, 0), settings, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("paths", [1, 2])
def test_a_refused_step_leaves_weights_and_statistics(backend, paths):
    config = SupernetConfig(channels=3, cells_per_stage=1, classes=4, in_channels=1, track=True)
    supernet = Supernet.create(config, seed=0)
    supernet.view(supernet.layout.by_name["classifier.weight"]).fill_(3e38)
    before = supernet.arena.clone()
    with pytest.raises(FloatingPointError, match="epoch 0, step 0"):
        train(
            supernet, LOADER, FixedSampler(NB201.from_index(3)),
            TrainSettings(epochs=1, paths=paths), backend=backend,
        )  # fmt: skip
    assert torch.equal(supernet.arena, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epochs=0), "epochs: wanted at least 1, got 0"),
        (dict(paths=0), "paths: wanted at least 1, got 0"),
        (dict(lr=float("nan")), "lr: wanted a finite number"),
        (dict(weight_decay=-1.0), "weight_decay: wanted a finite number of at least 0, got -1.0"),
        (dict(momentum=0.0), "nesterov: needs a momentum above 0"),
        (dict(schedule="step"), "wanted 'cosine' or 'constant', got 'step'"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**(dict(epochs=1) | options))


@pytest.mark.parametrize(("classes", "in_channels"), [(4, 3), (3, 1)])
def test_images_that_do_not_fit_the_supernet(classes, in_channels):
    config = SupernetConfig(channels=3, cells_per_stage=1, classes=classes, in_channels=in_channels)
    wanted = f"wanted images of {in_channels} channels and at most {classes} classes"
    with pytest.raises(ValueError, match=f"{wanted}, got 1 channels and 4 classes"):
        train(
            Supernet.create(config, seed=0), LOADER, UniformSampler(NB201, 0),
            TrainSettings(epochs=1),
        )  # fmt: skip
