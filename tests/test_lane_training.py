# SPDX-License-Identifier: MIT
"""Lanes with private weights: against a plain loop of PyTorch, alone and together, diverging."""

import numpy as np
import pytest
import straight_line
import torch
import torch.nn.functional as F

from nasfast import (
    BatchNorm,
    FixedSampler,
    Supernet,
    SupernetConfig,
    TrainSettings,
    evaluate,
    train,
)
from nasfast.data import Batch, ImageSet, TrainLoader
from nasfast.lane_training import ReferenceLanes, Sgd
from nasfast.lower import Merge, Mode
from nasfast.plan import plan
from nasfast.program import build, request_array
from nasfast.spaces import NB201

CONFIG = SupernetConfig(channels=4, cells_per_stage=1, classes=4, in_channels=1)
ARCHS = [
    NB201.from_string(text)
    for text in (
        "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|",
        "|nor_conv_1x1~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|",
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|none~1|+|none~0|nor_conv_3x3~1|skip_connect~2|",
        "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",
    )
]
CONV_OF_NOTHING = NB201.from_string(
    "|none~0|+|none~0|none~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"
)


def stream(count=4, size=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, 1, 8, 8, generator=generator).to(dtype),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def cut_of(config, archs, weight_set=0, **options):
    layout = Supernet.create(config, 0).layout
    program = build(
        layout, request_array(layout, archs), mode=Mode("batch", config.affine),
        merge=options.pop("merge", Merge.LINEAR), weight_set=weight_set,
    )  # fmt: skip
    return plan(program, batch=8, height=8, width=8, **options)


def train_all(cut, supernets, sgd, batches, lr, calls=None, **options):
    """All lanes in the order of the program: states by lane, records by lane."""
    trainer = ReferenceLanes(cut, supernets, sgd, **options)
    states, records = {}, {}
    for chunk in range(cut.num_chunks):
        state, done = trainer.start(chunk), []
        lanes = cut.lanes_of(chunk).tolist()
        for part in calls or [batches]:
            rates = np.full((len(lanes), len(part)), lr)
            done.append(trainer.step(chunk, state, part, rates))
        for row, lane in enumerate(lanes):
            states[lane] = {
                "weights": state.weights[row],
                "momentum": None if state.momentum is None else state.momentum[row],
                "diverged_at": int(state.diverged_at[row]),
            }
            records[lane] = {
                name: np.concatenate([getattr(r, name)[row] for r in done])
                for name in ("loss", "correct", "gradient_l1", "gradient_sum_l1")
            }
    return states, records


def same(one, other):
    for name in one:
        a, b = one[name], other[name]
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), name
        else:
            assert a == b, name


def plain_loop(supernet, arch, batches, lr, sgd):
    """Deep-copied weights, a straight-line network, torch.optim.SGD."""
    tensors = {n: t.detach().clone().requires_grad_() for n, t in supernet.named_tensors()}
    optimizer = torch.optim.SGD(
        tensors.values(), lr=lr, momentum=sgd.momentum, nesterov=sgd.nesterov,
        weight_decay=sgd.weight_decay,
    )  # fmt: skip
    losses, correct, norms, sum_norms, sums = [], [], [], [], {}
    for batch in batches:
        logits = straight_line.logits(
            tensors, [arch.op_indices] * 3, batch.images, cells_per_stage=1,
            structural_zeros="affine" if supernet.config.affine else "plain",
        )  # fmt: skip
        loss = F.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        grads = {n: t.grad.clone() for n, t in tensors.items() if t.grad is not None}
        losses.append(loss.item())
        correct.append(int((logits.argmax(1) == batch.labels).sum()))
        norms.append(sum(float(g.abs().sum()) for g in grads.values()))
        sums = {n: sums.get(n, 0) + g for n, g in grads.items()}
        sum_norms.append(sum(float(g.abs().sum()) for g in sums.values()))
        if sgd.clip:
            torch.nn.utils.clip_grad_norm_(tensors.values(), sgd.clip)
        optimizer.step()
    return tensors, losses, correct, norms, sum_norms


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "sgd",
    [
        Sgd(momentum=0.0, nesterov=False, weight_decay=0.0),
        Sgd(momentum=0.9, nesterov=False, weight_decay=0.01),
        Sgd(weight_decay=0.01),
        Sgd(weight_decay=0.01, clip=0.5),
    ],
)
def test_every_lane_equals_a_deep_copied_network(sgd, affine):
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=affine,
        fixed_track=False, last_track=False,
    )  # fmt: skip
    supernet = Supernet.create(config, seed=1).copy(torch.float64)
    before = supernet.arena.clone()
    batches = stream(dtype=torch.float64)
    archs = [*ARCHS, CONV_OF_NOTHING]
    cut = cut_of(config, archs)
    states, records = train_all(
        cut, [supernet], sgd, batches, 0.1, dtype=torch.float64, gradient_sums=True
    )
    assert torch.equal(supernet.arena, before)
    for arch, lane in zip(archs, cut.program.lane_of_request.tolist(), strict=True):
        tensors, losses, correct, norms, sum_norms = plain_loop(supernet, arch, batches, 0.1, sgd)
        own = records[lane]
        np.testing.assert_allclose(own["loss"], losses, rtol=1e-9)
        np.testing.assert_array_equal(own["correct"], correct)
        np.testing.assert_allclose(own["gradient_l1"], norms, rtol=1e-9)
        np.testing.assert_allclose(own["gradient_sum_l1"], sum_norms, rtol=1e-9)
        trained = Supernet(config, states[lane]["weights"], supernet.layout)
        for name, tensor in trained.named_tensors():
            torch.testing.assert_close(tensor, tensors[name].detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("track", [False, True])
def test_a_lane_equals_stand_alone_training_bit_for_bit(track):
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=True, track=track
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=generator)
    image_set = ImageSet(images, torch.arange(32) % 4, "random", 4, (0.5,), (0.25,))
    loader = TrainLoader(image_set, 8, seed=3)
    alone = Supernet.create(config, seed=2)
    start = alone.copy()
    settings = TrainSettings(epochs=1, lr=0.1, schedule="constant", clip=1.0)
    (record,) = train(alone, loader, FixedSampler(ARCHS[1]), settings, backend="reference")
    states, records = train_all(
        cut_of(config, ARCHS[1:2]), [start], Sgd(clip=1.0), list(loader.epoch(0)), 0.1
    )
    assert torch.equal(states[0]["weights"], alone.arena)
    assert records[0]["loss"].mean() == record.loss
    assert records[0]["correct"].sum() == round(record.accuracy * 32)


def test_weights_off_the_path_rest_and_cancelled_biases_only_decay():
    supernet = Supernet.create(CONFIG, seed=1)
    cut = cut_of(CONFIG, ARCHS[:1])
    sgd = Sgd(momentum=0.0, nesterov=False, weight_decay=0.5)
    states, _ = train_all(cut, [supernet], sgd, stream(3), 0.1)
    trained = Supernet(CONFIG, states[0]["weights"], supernet.layout)
    after, start = trained.state_dict(), supernet.state_dict()
    for name in start:
        if name.startswith(("cells.0.edges.2<-0", "cells.0.edges.1<-0.2.")):
            assert torch.equal(after[name], start[name]), name
    bias = "cells.0.edges.1<-0.3.op.1.bias"
    torch.testing.assert_close(after[bias], start[bias] * 0.95**3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_call_equals_several(momentum):
    supernet = Supernet.create(CONFIG, seed=1)
    batches, cut = stream(4), cut_of(CONFIG, ARCHS)
    sgd = Sgd(momentum=momentum, nesterov=momentum > 0)
    once = train_all(cut, [supernet], sgd, batches, 0.1, gradient_sums=True)
    calls = [batches[:1], batches[1:3], batches[3:]]
    several = train_all(cut, [supernet], sgd, batches, 0.1, calls, gradient_sums=True)
    for one, other in zip(once, several, strict=True):
        for lane in one:
            same(one[lane], other[lane])


def test_a_lane_depends_on_nothing_else():
    supernets = [Supernet.create(CONFIG, seed=k) for k in range(2)]
    sets = np.array([0, 1, 0, 1, 1, 0], dtype=np.int32)
    archs = [*ARCHS, ARCHS[1], ARCHS[3]]
    batches = stream(3)
    cut = cut_of(CONFIG, archs, sets)
    together = train_all(cut, supernets, Sgd(), batches, 0.1)
    small = cut_of(CONFIG, archs, sets, max_chunk_lanes=1)
    assert small.num_chunks > cut.num_chunks
    apart = train_all(small, supernets, Sgd(), batches, 0.1)
    for lane in together[0]:
        for k in (0, 1):
            same(together[k][lane], apart[k][lane])
    for request, arch in enumerate(archs):
        lane = cut.program.lane_of_request[request]
        alone = train_all(cut_of(CONFIG, [arch]), [supernets[sets[request]]], Sgd(), batches, 0.1)
        for k in (0, 1):
            same(together[k][lane], alone[k][0])


def test_learning_rates_are_by_lane_and_step():
    supernet = Supernet.create(CONFIG, seed=1)
    cut, batches = cut_of(CONFIG, ARCHS[:2]), stream(3)
    trainer = ReferenceLanes(cut, [supernet], Sgd())
    state = trainer.start(0)
    rates = np.array([[0.1, 0.2, 0.3], [0.05, 0.05, 0.05]])
    records = trainer.step(0, state, batches, rates)
    for row, lane in enumerate(cut.lanes_of(0).tolist()):
        arch = ARCHS[cut.program.lane_of_request.tolist().index(lane)]
        alone = ReferenceLanes(cut_of(CONFIG, [arch]), [supernet], Sgd())
        own = alone.start(0)
        losses = [
            alone.step(0, own, [batch], rates[row : row + 1, k : k + 1]).loss.item()
            for k, batch in enumerate(batches)
        ]
        assert records.loss[row].tolist() == losses
        assert torch.equal(state.weights[row], own.weights[0])
    with pytest.raises(ValueError, match=r"lr: wanted \[2, 1\] .*, got \[2, 3\]"):
        trainer.step(0, state, batches[:1], rates)


def test_a_diverging_lane_is_marked_and_the_others_go_on():
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=True, track=True
    )
    supernet = Supernet.create(config, seed=1)
    cut, batches = cut_of(config, ARCHS), stream(4)
    healthy = train_all(cut, [supernet], Sgd(), batches, 0.1)
    sick_lane = int(cut.program.lane_of_request[1])
    trainer = ReferenceLanes(cut, [supernet], Sgd(), gradient_sums=True)
    state = trainer.start(0)
    row = cut.lanes_of(0).tolist().index(sick_lane)
    rates = np.full((len(ARCHS), 4), 0.1)
    rates[row, 1] = 1e38
    trainer.step(0, state, batches[:1], rates[:, :1])
    records = trainer.step(0, state, batches[1:3], rates[:, 1:3])
    assert state.diverged_at[row] == 2
    kept = state.weights[row].clone()
    last = trainer.step(0, state, batches[3:], rates[:, 3:])
    assert not np.isfinite(records.loss[row, 1])
    assert np.isnan(last.loss[row]).all()
    assert records.correct[row, 1] == last.correct[row, 0] == 0
    assert np.isnan(records.gradient_l1[row, 1]) and np.isnan(last.gradient_sum_l1[row, 0])
    assert torch.equal(state.weights[row].nan_to_num(), kept.nan_to_num())
    for other, lane in enumerate(cut.lanes_of(0).tolist()):
        if lane != sick_lane:
            assert state.diverged_at[other] == -1
            assert torch.equal(state.weights[other], healthy[0][lane]["weights"])
            np.testing.assert_array_equal(records.loss[other], healthy[1][lane]["loss"][1:3])


def test_a_step_that_diverges_changes_nothing():
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=True, track=True
    )
    supernet = Supernet.create(config, seed=1)
    supernet.arena[supernet.layout.by_name["classifier.weight"].offset] = float("inf")
    states, records = train_all(cut_of(config, ARCHS[:1]), [supernet], Sgd(), stream(2), 0.1)
    assert torch.equal(states[0]["weights"], supernet.arena)
    assert states[0]["diverged_at"] == 0
    assert not np.isfinite(records[0]["loss"]).any()


@pytest.mark.parametrize("bn", ["batch", "running", "recalibrate", "recalibrate/running/batch"])
def test_evaluation_is_that_of_the_trained_weights(bn):
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=True, track=True
    )
    supernet = Supernet.create(config, seed=1)
    cut, batches = cut_of(config, ARCHS), stream(3)
    trainer = ReferenceLanes(cut, [supernet], Sgd())
    state = trainer.start(0)
    trainer.step(0, state, batches, np.full((len(ARCHS), 3), 0.1))
    before = state.weights.clone()
    valid = stream(2, seed=9)
    loss, correct = trainer.evaluate(0, state, valid, BatchNorm.parse(bn))
    assert torch.equal(state.weights, before)
    assert loss.shape == correct.shape == (len(ARCHS), 16)
    for row, lane in enumerate(cut.lanes_of(0).tolist()):
        arch = ARCHS[cut.program.lane_of_request.tolist().index(lane)]
        own = Supernet(config, state.weights[row], supernet.layout)
        scores = evaluate(own, [arch], valid, bn=bn, backend="reference")
        np.testing.assert_array_equal(loss[row], scores.lane_loss[0])
        np.testing.assert_array_equal(correct[row], scores.lane_correct[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(momentum=-0.1), "momentum: wanted a finite number of at least 0, got -0.1"),
        (dict(weight_decay=float("nan")), "weight_decay: wanted a finite number"),
        (dict(clip=float("inf")), "clip: wanted a finite number"),
        (dict(momentum=0.0), "nesterov: needs a momentum above 0, got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Sgd(**options)
