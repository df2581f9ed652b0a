# SPDX-License-Identifier: MIT
"""Supernet training on the CPU engine: against the reference, in bf16, by threads and windows."""

import importlib
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from straight_line import logits

from nasfast import (
    FixedSampler,
    Supernet,
    SupernetConfig,
    TrainSettings,
    UniformSampler,
    data,
    evaluate,
    train,
)
from nasfast.data import Augmentation, Batch, ImageSet, TrainLoader
from nasfast.lane_backends import choose_lane_backend
from nasfast.lower import Mode
from nasfast.program import build, request_array
from nasfast.spaces import NB201
from nasfast.train import FairSampler, TrainState
from nasfast.train.steppers import EngineStepper, trained_units

SHAPE = dict(channels=4, cells_per_stage=1, classes=4, in_channels=1)


def image_set(count=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 4, "random", 4, mean=(0.5,), std=(0.25,))


LOADER = TrainLoader(image_set(), 8, Augmentation(crop_padding=1, flip=True), seed=3)


# A few steps: rounding grows fast where a channel is nearly constant or a ReLU's input nearly 0, in
# PyTorch's float32 as in ours. Behind a cell that carries nothing there is only rounding to
# normalise, hence the mask.
@pytest.mark.parametrize("paths", [1, 3])
@pytest.mark.parametrize(
    ("affine", "scope"), [(False, "network"), (True, "network"), (True, "cell")]
)
@pytest.mark.parametrize(
    "options",
    [dict(momentum=0.0, nesterov=False), dict(nesterov=False, clip=1.0), dict(weight_decay=0.01)],
    ids=str,
)
def test_the_engine_trains_as_the_reference(options, affine, scope, paths):
    config = SupernetConfig(**SHAPE, affine=affine, track=True)
    settings = TrainSettings(epochs=2, lr=0.05, lr_min=0.02, paths=paths, **options)
    loader = TrainLoader(image_set(), 24, Augmentation(crop_padding=1, flip=True), seed=3)
    mask = NB201.mask(("none",) if scope == "cell" else ())
    sampler = UniformSampler(NB201, 5, mask, scope, cells=3)
    found = []
    for backend in ("reference", "cpu"):
        supernet, state = Supernet.create(config, seed=1), TrainState()
        records = train(supernet, loader, sampler, settings, state=state, backend=backend)
        found.append((supernet, state.momentum, records))
    (one, momentum, records), (other, engine_momentum, engine_records) = found
    way = (one.arena - Supernet.create(config, seed=1).arena).norm()
    assert (other.arena - one.arena).norm() < 1e-3 * way
    assert momentum.keys() == engine_momentum.keys() and bool(momentum) == bool(settings.momentum)
    for name, buffer in momentum.items():
        off = (engine_momentum[name] - buffer).norm()
        assert off < 2e-3 * buffer.norm() + 1e-5, name
    for mine, wanted in zip(engine_records, records, strict=True):
        assert mine.loss == pytest.approx(wanted.loss, abs=1e-5)
        assert mine.accuracy == pytest.approx(wanted.accuracy, abs=1 / 48)


@pytest.mark.parametrize("affine", [False, True])
def test_which_tensors_had_a_gradient_is_what_autograd_says(affine):
    """Also behind cells that carry nothing: there only what comes after has a gradient."""
    config = SupernetConfig(**SHAPE, affine=affine, fixed_track=False, last_track=False)
    supernet = Supernet.create(config, seed=1)
    nothing, of_nothing = NB201.arch((0,) * 6), NB201.arch((0, 0, 0, 0, 2, 0))
    networks = [[nothing, a, a] for a in NB201.sample(4, seed=1)]
    networks += [[a, of_nothing, a] for a in NB201.sample(4, seed=2)]
    networks += [[a, a, nothing] for a in NB201.sample(2, seed=3)] + [
        [a] * 3 for a in NB201.sample(30, seed=4)
    ]
    program = build(
        supernet.layout, request_array(supernet.layout, networks), mode=Mode("batch", affine)
    )
    loader = TrainLoader(image_set(8), 8)
    for network, lane in zip(networks, program.lane_of_request, strict=True):

        class Once:
            def draw(self, epoch, count, network=network):
                return [network]

        state = TrainState()
        train(
            supernet.copy(), loader, Once(), TrainSettings(epochs=1), state=state,
            backend="reference",
        )  # fmt: skip
        units = trained_units(program, int(program.lanes[lane, 0]))
        names = {p.name for p in supernet.layout.params if p.unit in units}
        assert names == state.momentum.keys(), [str(a) for a in network]


DIGITS = SupernetConfig(channels=8, cells_per_stage=1, in_channels=1)


def test_50_steps_in_fp32_lose_as_the_reference():
    """On digits, an epoch of one step each: 1e-3 on the loss of every step."""
    splits = data.load("digits", train_images=64)
    loader = TrainLoader(splits.train, 64, Augmentation(crop_padding=1))
    curves = []
    for backend in ("reference", "cpu"):
        supernet, settings = Supernet.create(DIGITS, seed=0), TrainSettings(epochs=50, lr=0.01)
        records = train(supernet, loader, UniformSampler(NB201, 0), settings, backend=backend)
        curves.append([record.loss for record in records])
    reference, engine = np.array(curves)
    assert np.abs(engine - reference).max() < 1e-3
    assert engine[-10:].mean() < engine[:10].mean() - 0.02


def test_bf16_reaches_the_accuracy_of_fp32_within_seed_noise():
    splits, without_none = data.load("digits", train_images=300), NB201.mask(("none",))
    batches, archs = data.batches(splits.valid, 360), NB201.sample(20, 0, without_none)
    accuracy = {}
    for precision in ("fp32", "bf16"):
        found = []
        for seed in range(3):
            supernet = Supernet.create(DIGITS, seed)
            loader = TrainLoader(splits.train, 64, Augmentation(crop_padding=1), seed)
            sampler, settings = UniformSampler(NB201, seed, without_none), TrainSettings(60, 0.05)
            train(supernet, loader, sampler, settings, precision=precision)
            assert supernet.arena.dtype == torch.float32
            found.append(evaluate(supernet, archs, batches).accuracy.mean())
        accuracy[precision] = np.array(found)
    fp32, bf16 = accuracy.values()
    noise = max(fp32.std(ddof=1), bf16.std(ddof=1), 0.01)
    assert fp32.mean() > 0.7 and abs(fp32.mean() - bf16.mean()) < 2 * noise, accuracy


@pytest.mark.parametrize("paths", [1, 2])
def test_gradients_of_paths_are_added(paths):
    """The reference against one backward pass on the sum of losses."""
    config = SupernetConfig(**SHAPE, fixed_track=False, last_track=False)
    start = Supernet.create(config, seed=1).copy(torch.float64)
    loader = TrainLoader(image_set(8), 8, dtype=torch.float64)
    sampler = UniformSampler(NB201, 2)
    trained = start.copy()
    settings = TrainSettings(epochs=1, lr=0.1, momentum=0, nesterov=False, weight_decay=0,
                             paths=paths)  # fmt: skip
    (record,) = train(trained, loader, sampler, settings)
    tensors = {n: t.detach().clone().requires_grad_() for n, t in start.named_tensors()}
    (batch,) = loader.epoch(0)
    losses = [
        F.cross_entropy(
            logits(tensors, [arch.op_indices] * 3, batch.images, cells_per_stage=1,
                   structural_zeros="plain"),
            batch.labels,
        )
        for arch in sampler.draw(0, paths)
    ]  # fmt: skip
    sum(losses).backward()
    for name, tensor in trained.named_tensors():
        grad = tensors[name].grad
        wanted = tensors[name].detach() - (0 if grad is None else 0.1 * grad)
        torch.testing.assert_close(tensor, wanted, rtol=1e-9, atol=1e-11, msg=name)
    assert record.loss == pytest.approx(sum(x.item() for x in losses) / paths)


# One result for every number of threads and every window.


def arena(monkeypatch=None, window=None, **options):
    if window is not None:
        module = importlib.import_module("nasfast.train.single_path")
        monkeypatch.setattr(module, "_HELD_BYTES", window)
    supernet, state = Supernet.create(SupernetConfig(**SHAPE, track=True), seed=1), TrainState()
    settings = TrainSettings(epochs=2, paths=2)
    records = train(supernet, LOADER, UniformSampler(NB201, 5), settings, state=state, **options)
    momentum = {name: tensor.numpy().tobytes() for name, tensor in state.momentum.items()}
    return supernet.arena.numpy().tobytes(), momentum, [(r.loss, r.accuracy) for r in records]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_and_windows_change_no_bit(monkeypatch, precision):
    plain = arena(precision=precision, threads=1)
    if len(os.sched_getaffinity(0)) > 1:
        assert arena(precision=precision, threads=2) == plain
    for window in (1, 5 * 8 * 64 * 4):  # bytes: one minibatch, then five
        assert arena(monkeypatch, window, precision=precision) == plain


def test_a_state_of_one_backend_goes_on_with_the_other():
    kept = {}
    for backend in ("reference", "cpu"):
        supernet, state = Supernet.create(SupernetConfig(**SHAPE), seed=1), TrainState()
        sampler, settings = UniformSampler(NB201, 5), TrainSettings(epochs=1)
        train(supernet, LOADER, sampler, settings, state=state, backend="reference")
        train(supernet, LOADER, sampler, TrainSettings(epochs=3), state=state, backend=backend)
        kept[backend] = (supernet.arena, state)
    torch.testing.assert_close(kept["cpu"][0], kept["reference"][0], rtol=1e-4, atol=2e-5)
    assert kept["cpu"][1].momentum.keys() == kept["reference"][1].momentum.keys()


def test_a_step_in_the_middle_that_diverges():
    """Weights, statistics and momentum are those of the steps before it, of its call too."""
    config = SupernetConfig(**SHAPE, track=True)
    archs = NB201.sample(6, seed=3)
    batches = list(LOADER.epoch(0))[:3]
    bad = Batch(batches[1].images.clone().fill_(float("inf")), batches[1].labels)
    results = []
    for stream in ([batches[0], bad, batches[2]], [batches[0]]):
        supernet = Supernet.create(config, seed=1)
        program = build(
            supernet.layout, request_array(supernet.layout, archs), mode=Mode("batch", False)
        )
        settings = TrainSettings(epochs=1, paths=2)
        stepper = EngineStepper(supernet, settings, TrainState(), precision="fp32", threads=1)
        stepper.begin(program, 8, 8, 8)
        taken = stepper.take(program.lane_of_request[: 2 * len(stream)].tolist(), stream, 0.1)
        results.append((supernet.arena.clone(), stepper.momentum(), taken))
    (weights, momentum, taken), (wanted, wanted_momentum, whole) = results
    assert torch.equal(weights, wanted)
    assert momentum.keys() == wanted_momentum.keys()
    assert all(torch.equal(momentum[name], wanted_momentum[name]) for name in momentum)
    assert taken.loss.tolist() == whole.loss.tolist() and whole.problem == ""
    assert taken.problem == "training loss is nan"


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backend="gpu"), "backend: wanted one of auto, cpu, cuda, reference, got 'gpu'"),
        (dict(precision="fp16"), "precision: wanted one of fp32, tf32, bf16, fp64, got 'fp16'"),
        (
            dict(precision="fp64"),
            "supernet: wanted torch.float64 weights for 'fp64', got torch.flo",
        ),
        (dict(backend="reference", precision="bf16"), "precision: no training in 'bf16' with"),
        (dict(threads=0), r"threads: wanted 1\.\."),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        train(
            Supernet.create(SupernetConfig(**SHAPE), 0), LOADER, UniformSampler(NB201, 0),
            TrainSettings(epochs=1), **options,
        )  # fmt: skip


def test_weights_on_nodes_are_trained_by_the_reference():
    assert choose_lane_backend("auto", "fp32", "edge") == "cpu"
    assert choose_lane_backend("auto", "fp32", "node") == "reference"
    for backend, precision in (("cpu", "fp32"), ("auto", "bf16")):
        with pytest.raises(
            ValueError, match="backend: weights on nodes are trained by 'reference'"
        ):
            choose_lane_backend(backend, precision, "node")


# The fair sampler.


@pytest.mark.parametrize("scope", ["network", "cell"])
@pytest.mark.parametrize("without", [(), ("none", "avg_pool_3x3")])
def test_a_fair_round_covers_every_operation_of_every_edge_once(scope, without):
    mask = NB201.mask(without)
    ops = np.flatnonzero(mask[0]).tolist()
    sampler = FairSampler(NB201, 4, mask, scope, cells=3)
    drawn = sampler.draw(2, 20 * len(ops))
    assert drawn == sampler.draw(2, 20 * len(ops)) != sampler.draw(3, 20 * len(ops))
    rows = [[n] if scope == "network" else n for n in drawn]
    assert {len(row) for row in rows} == {1 if scope == "network" else 3}
    table = np.array([[arch.op_indices for arch in row] for row in rows])
    rounds = np.sort(table.reshape(20, len(ops), -1), axis=1)
    assert (rounds == np.array(ops)[None, :, None]).all()
    assert len({str(row) for row in rows}) > 15 * len(ops)  # edges are permuted independently
    assert sampler.draw(2, len(ops) + 1) == drawn[: len(ops) + 1]


def test_a_fair_step_gives_every_operation_a_gradient():
    supernet, state = Supernet.create(SupernetConfig(**SHAPE), seed=0), TrainState()
    settings = TrainSettings(epochs=1, paths=5)
    (record,) = train(supernet, LOADER, FairSampler(NB201, 0), settings, state=state)
    assert math.isfinite(record.loss)
    trained = [p.name for p in supernet.layout.params if not p.is_buffer]
    assert len(state.momentum) > 0.9 * len(trained)


def test_fair_masks():
    mask = NB201.mask()
    mask[0, 1] = False
    with pytest.raises(ValueError, match=r"mask: wanted as many operations on every edge, got \[4"):
        FairSampler(NB201, 0, mask)
    with pytest.raises(ValueError, match="scope: wanted 'network' or 'cell', got 'edge'"):
        FairSampler(NB201, 0, scope="edge")
    assert FixedSampler(NB201.from_index(3)).draw(0, 2) == [NB201.from_index(3)] * 2
