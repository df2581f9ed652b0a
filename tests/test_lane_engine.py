# SPDX-License-Identifier: MIT
"""Training lanes on the CPU engine: against the definition, alone and together, diverging."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import ISAS, THREADS, batch_of
from test_engine_gradients import ARCHS, randomised

from nasfast import BatchNorm, SupernetConfig, evaluate
from nasfast.data import Batch
from nasfast.lane_engine import EngineLanes
from nasfast.lane_training import ReferenceLanes, Sgd
from nasfast.lower import Merge, Mode
from nasfast.plan import plan
from nasfast.program import build, request_array
from nasfast.spaces import NB201

CONFIG = SupernetConfig(channels=4, cells_per_stage=1, affine=True, track=True)
SUPERNET = randomised(CONFIG)
NESTEROV = Sgd(weight_decay=0.01)
FIELDS = ("loss", "correct", "gradient_l1", "gradient_sum_l1")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", request.param)
    return request.param


def stream(sizes, side=8, seed=0):
    return [batch_of(size, side, seed=seed + k) for k, size in enumerate(sizes)]


def cut_of(archs, config=CONFIG, sets=0, merge=Merge.LINEAR, **options):
    layout = (SUPERNET if config is CONFIG else randomised(config)).layout
    program = build(
        layout, request_array(layout, archs), mode=Mode("batch", config.affine), merge=merge,
        weight_set=sets,
    )  # fmt: skip
    return plan(program, batch=64, height=8, width=8, **options)


def train_all(trainer, cut, batches, lr, calls=None):
    """All lanes in the order of the program: states by lane, records by lane."""
    states, records = {}, {}
    for chunk in range(cut.num_chunks):
        state, done = trainer.start(chunk), []
        lanes = cut.lanes_of(chunk).tolist()
        for part in calls or [batches]:
            done.append(trainer.step(chunk, state, part, np.full((len(lanes), len(part)), lr)))
        for row, lane in enumerate(lanes):
            states[lane] = {
                name: None if own is None else own[row]
                for name, own in vars(state).items()
                if name != "step"
            }
            records[lane] = {
                name: np.concatenate([getattr(r, name)[row] for r in done]) for name in FIELDS
            }
    return states, records


def reference(cut, supernet, sgd, batches, lr, dtype):
    trainer = ReferenceLanes(cut, [supernet], sgd, dtype=dtype, gradient_sums=True)
    own = [Batch(batch.images.to(dtype), batch.labels) for batch in batches]
    return train_all(trainer, cut, own, lr)


def engine(cut, supernet, sgd, batches, lr, calls=None, **options):
    trainer = EngineLanes(cut, [supernet], sgd, gradient_sums=True, **options)
    return train_all(trainer, cut, batches, lr, calls)


# Against the definition.

SGDS = {
    "plain": Sgd(momentum=0.0, nesterov=False, weight_decay=0.0),
    "momentum": Sgd(momentum=0.9, nesterov=False, weight_decay=0.01),
    "nesterov": NESTEROV,
    "clipped": Sgd(weight_decay=0.01, clip=0.5),
}


@functools.cache
def few_steps(name, affine):
    config = CONFIG if affine else SupernetConfig(channels=5, cells_per_stage=1)
    supernet = randomised(config)
    cut = cut_of(ARCHS[:11], config)
    batches = stream((18, 16, 5), seed=3)
    runs = [
        reference(cut, supernet, SGDS[name], batches, 0.02, dtype)
        for dtype in (torch.float64, torch.float32)
    ]
    return supernet, cut, batches, runs


def distance(ours, exact=0.0):
    return np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(exact)).max(initial=0.0)


@pytest.mark.parametrize("name", SGDS)
@pytest.mark.parametrize("affine", [False, True])
def test_a_few_steps_are_as_exact_as_pytorch(isa, name, affine):
    """Weights with their running statistics, momentum, sums of gradients, and all records."""
    supernet, cut, batches, ((exact, records), (theirs, their_records)) = few_steps(name, affine)
    states, own_records = engine(cut, supernet, SGDS[name], batches, 0.02, threads=THREADS[-1])
    for lane, wanted in exact.items():
        pairs = [
            (own_records[lane][field], records[lane][field], their_records[lane][field])
            for field in ("loss", "gradient_l1", "gradient_sum_l1")
        ]
        pairs += [
            (states[lane][field], wanted[field], theirs[lane][field])
            for field in ("weights", "momentum", "gradient_sum")
            if wanted[field] is not None
        ]
        for ours, true, other in pairs:
            # Three steps apart: what rounding does to the first gradient grows in the next ones.
            allowed = max(8 * distance(other, true), 1e-5 * max(1.0, distance(true)))
            assert distance(ours, true) <= allowed
        assert distance(own_records[lane]["correct"], records[lane]["correct"]) <= 1
        assert states[lane]["diverged_at"] == -1


def test_loss_curves_of_fifty_steps_are_those_of_the_definition():
    """Where float32 itself stays with float64: elsewhere a ReLU that flips leads another way."""
    config = SupernetConfig(channels=4, cells_per_stage=1)
    supernet, cut = randomised(config), cut_of(ARCHS[3:11], config)
    batches = stream([16] * 50, seed=50)
    exact, theirs = (
        reference(cut, supernet, Sgd(), batches, 0.01, dtype)[1]
        for dtype in (torch.float64, torch.float32)
    )
    steady = [k for k in exact if distance(theirs[k]["loss"], exact[k]["loss"]) <= 1e-4]
    assert len(steady) >= 4
    ours = engine(cut, supernet, Sgd(), batches, 0.01)[1]
    for lane in steady:
        assert distance(ours[lane]["loss"], exact[lane]["loss"]) <= 1e-3
    assert all(np.isfinite(own["loss"]).all() for own in ours.values())
    narrow = engine(cut, supernet, Sgd(), batches, 0.01, precision="bf16")[1]
    for lane in exact:  # learns as much
        begin, end = exact[lane]["loss"][:10].mean(), exact[lane]["loss"][-10:].mean()
        assert abs(narrow[lane]["loss"][-10:].mean() - end) <= max(0.1, 0.2 * abs(begin - end))


def test_weights_off_the_path_rest_and_cancelled_biases_only_decay():
    config = SupernetConfig(channels=4, cells_per_stage=1)
    supernet = randomised(config)
    arch = NB201.arch((3, 0, 2, 1, 0, 4))
    sgd = Sgd(momentum=0.0, nesterov=False, weight_decay=0.5)
    nans = supernet.copy()
    used = reference(cut_of([arch], config), supernet, sgd, stream([8]), 0.1, torch.float32)[0][0]
    for param in supernet.layout.params:
        if torch.equal(
            used["weights"][param.offset : param.offset + param.size],
            supernet.arena[param.offset : param.offset + param.size],
        ):
            nans.view(param).fill_(float("nan"))
    assert nans.arena.isnan().any()
    cut, batches = cut_of([arch], config), stream([8] * 3)
    (state,) = engine(cut, nans, sgd, batches, 0.1)[0].values()
    assert torch.equal(state["weights"].isnan(), nans.arena.isnan())
    (whole,) = engine(cut, supernet, sgd, batches, 0.1)[0].values()
    kept = ~nans.arena.isnan()
    assert torch.equal(state["weights"][kept], whole["weights"][kept])
    bias = supernet.layout.by_name["cells.0.edges.1<-0.3.op.1.bias"]
    own = whole["weights"][bias.offset : bias.offset + bias.size]
    torch.testing.assert_close(own, supernet.view(bias) * 0.95**3)


# The same bits in every setting.

LANES = ARCHS[:14]
BATCHES = stream((18, 16, 33, 7), seed=7)
WHOLE = {
    precision: engine(cut_of(LANES), SUPERNET, NESTEROV, BATCHES, 0.05, precision=precision)
    for precision in ("fp32", "bf16")
}


def same(one, other):
    for name, own in one.items():
        if isinstance(own, torch.Tensor):
            assert torch.equal(own, other[name]), name
        else:
            np.testing.assert_array_equal(own, other[name])


@settings(max_examples=30)
@given(
    chosen=st.lists(st.integers(0, len(LANES) - 1), min_size=1, max_size=10),
    lanes=st.integers(1, 8),
    threads=st.sampled_from([1, 2, 3]),
    ends=st.lists(st.integers(1, 3), max_size=2),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_a_lane_depends_on_nothing_else(chosen, lanes, threads, ends, precision):
    cut = cut_of([LANES[k] for k in chosen], max_chunk_lanes=lanes)
    edges = [0, *sorted(set(ends)), 4]
    calls = [BATCHES[a:b] for a, b in pairwise(edges)]
    own = engine(
        cut, SUPERNET, NESTEROV, BATCHES, 0.05, calls, precision=precision, threads=threads
    )
    whole_of = cut_of(LANES).program.lane_of_request
    for request, lane in enumerate(cut.program.lane_of_request.tolist()):
        for mine, whole in zip(own, WHOLE[precision], strict=True):
            same(mine[lane], whole[whole_of[chosen[request]]])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_change_nothing(isa, precision):
    """With fewer lanes than threads they share the images of each."""
    for archs in (LANES[4:6], LANES[7:12]):
        one, *others = (
            engine(
                cut_of(archs), SUPERNET, NESTEROV, BATCHES[:2], 0.05, precision=precision,
                threads=threads,
            )
            for threads in (1, 3)
        )  # fmt: skip
        for other in others:
            for a, b in zip(one, other, strict=True):
                for lane in a:
                    same(a[lane], b[lane])


def test_lanes_start_from_their_weight_sets():
    supernets = [SUPERNET, randomised(CONFIG, seed=2)]
    sets = np.array([1, 0, 1], dtype=np.int32)
    archs = [ARCHS[8], ARCHS[8], ARCHS[9]]
    cut = cut_of(archs, sets=sets)
    trainer = EngineLanes(cut, supernets, NESTEROV, gradient_sums=True)
    own, _ = train_all(trainer, cut, BATCHES, 0.05)
    for request, lane in enumerate(cut.program.lane_of_request.tolist()):
        supernet = supernets[sets[request]]
        alone = engine(cut_of([archs[request]]), supernet, NESTEROV, BATCHES, 0.05)[0][0]
        same(own[lane], alone)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", THREADS)
def test_a_diverging_lane_is_marked_and_the_others_go_on(precision, threads):
    cut = cut_of(LANES)
    lanes = cut.lanes_of(0).tolist()
    sick = lanes.index(cut.program.lane_of_request[4])
    trainer = EngineLanes(
        cut, [SUPERNET], NESTEROV, precision=precision, threads=threads, gradient_sums=True
    )
    state = trainer.start(0)
    rates = np.full((len(lanes), 4), 0.05)
    rates[sick, 1] = 1e38
    first = trainer.step(0, state, BATCHES[:2], rates[:, :2])
    kept = state.weights[sick].clone()
    middle = trainer.step(0, state, BATCHES[2:3], rates[:, 2:3])
    assert state.diverged_at[sick] == 2
    assert torch.equal(state.weights[sick].nan_to_num(), kept.nan_to_num())
    last = trainer.step(0, state, BATCHES[3:], rates[:, 3:])
    assert np.isfinite(first.loss[sick]).all() and not np.isfinite(middle.loss[sick, 0])
    assert np.isnan(last.loss[sick, 0]) and last.correct[sick, 0] == 0
    assert np.isnan(middle.gradient_l1[sick, 0]) and np.isnan(last.gradient_sum_l1[sick, 0])
    states, records = WHOLE[precision]
    for row, lane in enumerate(lanes):
        if row == sick:
            continue
        assert torch.equal(state.weights[row], states[lane]["weights"])
        assert state.diverged_at[row] == -1
        own = np.concatenate([part.loss[row] for part in (first, middle, last)])
        np.testing.assert_array_equal(own, records[lane]["loss"])


def test_a_step_that_diverges_changes_nothing():
    supernet = SUPERNET.copy()
    supernet.arena[supernet.layout.by_name["classifier.weight"].offset] = float("inf")
    states, records = engine(cut_of(ARCHS[4:6]), supernet, NESTEROV, BATCHES[:2], 0.05)
    for lane, state in states.items():
        assert torch.equal(state["weights"], supernet.arena)
        assert not state["momentum"].any() and state["diverged_at"] == 0
        assert not state["gradient_sum"].any()
        assert not np.isfinite(records[lane]["loss"]).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_a_lane_too(precision):
    """The loss is finite; the deviations that a gradient is divided by are small."""
    supernet = SUPERNET.copy()
    for param in supernet.layout.params:
        if param.name == "classifier.weight":
            supernet.view(param).mul_(1e37)
        elif param.name.startswith(("stem.0", "cells.1.conv", "cells.3.conv")) and param.size > 12:
            supernet.view(param).mul_(1e-5)
    cut, batches = cut_of(ARCHS[1:2]), BATCHES[:2]
    (state,), (record,) = (
        own.values() for own in engine(cut, supernet, NESTEROV, batches, 0.05, precision=precision)
    )
    assert state["diverged_at"] == 0 and np.isfinite(record["loss"][0])
    assert np.isnan(record["loss"][1]) and np.isnan(record["gradient_l1"]).all()
    assert torch.equal(state["weights"], supernet.arena)
    assert not state["momentum"].any() and not state["gradient_sum"].any()


@pytest.mark.parametrize("bn", ["batch", "running", "recalibrate", "recalibrate/running/batch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", THREADS)
def test_evaluation_is_that_of_the_trained_weights(bn, precision, threads):
    cut = cut_of(LANES[:6])
    trainer = EngineLanes(cut, [SUPERNET], NESTEROV, precision=precision, threads=threads)
    state = trainer.start(0)
    trainer.step(0, state, BATCHES, np.full((len(cut.lanes_of(0)), 4), 0.05))
    before, valid = state.weights.clone(), stream((16, 9), seed=90)
    loss, correct = trainer.evaluate(0, state, valid, BatchNorm.parse(bn))
    assert torch.equal(state.weights, before)
    for row, lane in enumerate(cut.lanes_of(0).tolist()):
        arch = LANES[cut.program.lane_of_request.tolist().index(lane)]
        own = type(SUPERNET)(CONFIG, state.weights[row], SUPERNET.layout)
        scores = evaluate(own, [arch], valid, bn=bn, precision=precision, threads=1)
        np.testing.assert_array_equal(loss[row], scores.lane_loss[0])
        np.testing.assert_array_equal(correct[row], scores.lane_correct[0])


def test_rates_must_fit():
    cut = cut_of(LANES[:2])
    trainer = EngineLanes(cut, [SUPERNET], NESTEROV)
    with pytest.raises(ValueError, match=r"lr: wanted \[2, 1\] .*, got \[2, 3\]"):
        trainer.step(0, trainer.start(0), BATCHES[:1], np.zeros((2, 3)))
