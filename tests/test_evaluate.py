# SPDX-License-Identifier: MIT
"""Scores: batch invariance, the three batch-norm modes, marked lanes, refused input."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasfast import BatchNorm, Merge, Supernet, SupernetConfig, compile_archs, evaluate, spaces
from nasfast.backends import calibrate
from nasfast.data import Batch
from nasfast.evaluate import run
from nasfast.plan import plan
from nasfast.primitives import batch_statistics
from nasfast.reference import Executor, Normaliser, Weights
from nasfast.spaces import NB201, CellSpec, OpKind, OpSpec

CONFIG = SupernetConfig(channels=3, cells_per_stage=1, classes=4)
ARCHS = NB201.sample(40, seed=8)


def make_batches(count=3, size=5, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, 3, 8, 8, dtype=dtype, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


SUPERNET = Supernet.create(CONFIG, seed=0)
BATCHES = make_batches()
WHOLE = evaluate(SUPERNET, ARCHS, BATCHES)
REFERENCE = evaluate(SUPERNET, ARCHS, BATCHES, backend="reference")


def test_scores_have_the_order_of_the_request():
    assert WHOLE.loss.shape == WHOLE.accuracy.shape == (40,)
    assert WHOLE.lane_loss.shape == WHOLE.lane_correct.shape == (WHOLE.program.num_lanes, 15)
    for k in (0, 17, 39):
        alone = evaluate(SUPERNET, [ARCHS[k]], BATCHES)
        assert alone.loss[0] == WHOLE.loss[k] and alone.accuracy[0] == WHOLE.accuracy[k]
        assert np.array_equal(alone.lane_loss[0], WHOLE.lane_loss[WHOLE.lane_of_arch[k]])


def test_means_are_over_images():
    row = WHOLE.lane_of_arch[3]
    assert WHOLE.loss[3] == np.mean(WHOLE.lane_loss[row])
    assert WHOLE.accuracy[3] == WHOLE.lane_correct[row].sum() / 15


@settings(max_examples=25)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=40), st.integers(70, 400))
def test_a_lane_of_the_reference_is_the_same_whatever_else_is_in_the_call(chosen, kib):
    scores = evaluate(
        SUPERNET, [ARCHS[k] for k in chosen], BATCHES, memory=kib * 1024, backend="reference"
    )
    assert np.array_equal(scores.loss, REFERENCE.loss[chosen])
    assert np.array_equal(
        scores.lane_correct[scores.lane_of_arch],
        REFERENCE.lane_correct[REFERENCE.lane_of_arch[chosen]],
    )


def test_chunks_give_every_lane_once():
    program = compile_archs(SUPERNET, ARCHS)
    lanes = [
        c.lanes for c in run(program, [SUPERNET], [BATCHES], memory=80 * 1024, backend="reference")
    ]
    assert len(lanes) > 1
    assert sorted(np.concatenate(lanes).tolist()) == list(range(program.num_lanes))


def test_lanes_of_other_weights_and_data_orders():
    other, reversed_order = Supernet.create(CONFIG, seed=9), BATCHES[::-1]
    program = compile_archs(SUPERNET, [ARCHS[0]] * 4)
    columns = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], dtype=np.int32)
    program = dataclasses.replace(
        program, lanes=columns, lane_of_request=np.arange(4, dtype=np.int32)
    )
    rows = {}
    for chunk in run(program, [SUPERNET, other], [BATCHES, reversed_order]):
        rows |= dict(zip(chunk.lanes.tolist(), chunk.loss, strict=True))
    for lane, (_, weights, order) in enumerate(columns.tolist()):
        stream = (BATCHES, reversed_order)[order]
        alone = evaluate((SUPERNET, other)[weights], [ARCHS[0]], stream)
        assert np.array_equal(rows[lane], alone.lane_loss[0])


def test_one_image_with_batch_statistics_is_defined():
    batch = Batch(torch.randn(1, 3, 4, 4), torch.tensor([2]))
    scores = evaluate(SUPERNET, ARCHS, [batch], bn="batch")
    assert np.isfinite(scores.loss).all()


def test_running_statistics_do_not_depend_on_the_minibatch():
    config = SupernetConfig(channels=3, cells_per_stage=1, classes=4, affine=True, track=True)
    supernet = Supernet.create(config, seed=0)
    images = torch.cat([b.images for b in BATCHES])
    labels = torch.cat([b.labels for b in BATCHES])
    split = evaluate(supernet, ARCHS, BATCHES, bn="running", precision="fp64")
    whole = evaluate(supernet, ARCHS, [Batch(images, labels)], bn="running", precision="fp64")
    np.testing.assert_allclose(split.lane_loss, whole.lane_loss, rtol=1e-9)
    batch = evaluate(supernet, ARCHS, BATCHES, bn="batch", precision="fp64")
    assert np.abs(batch.loss - split.loss).max() > 1e-3


def test_recalibration_pools_all_images():
    images = torch.cat([b.images for b in BATCHES])
    labels = torch.cat([b.labels for b in BATCHES])
    pooled = evaluate(SUPERNET, ARCHS, [Batch(images, labels)], bn="batch", precision="fp64")
    own = evaluate(SUPERNET, ARCHS, BATCHES, bn="recalibrate", precision="fp64")
    np.testing.assert_allclose(own.lane_loss, pooled.lane_loss, rtol=1e-9)
    given = evaluate(
        SUPERNET, ARCHS, BATCHES[:1], bn="recalibrate", calibration=BATCHES, precision="fp64"
    )
    np.testing.assert_allclose(given.lane_loss, pooled.lane_loss[:, :5], rtol=1e-9)
    cells = evaluate(SUPERNET, ARCHS, BATCHES, bn="recalibrate/batch")
    assert np.abs(cells.loss - own.loss).max() > 1e-3


@pytest.mark.parametrize("merge", list(Merge))
def test_merging_does_not_change_scores(merge):
    exact = evaluate(SUPERNET, ARCHS, BATCHES, precision="fp64", merge=Merge.NONE)
    scores = evaluate(SUPERNET, ARCHS, BATCHES, precision="fp64", merge=merge)
    np.testing.assert_allclose(scores.loss, exact.loss, rtol=1e-9)
    assert np.array_equal(scores.accuracy, exact.accuracy)


class Watching(Normaliser):
    """Keeps what is normalised at each place of a part that recalibrates."""

    def __call__(self, x, unit, part, place):
        if self.modes.recalibrates and getattr(self.modes, part) == "recalibrate":
            self.__dict__.setdefault("seen", {}).setdefault(place, []).append(x)
        return super().__call__(x, unit, part, place)


@pytest.mark.parametrize("bn", ["recalibrate", "recalibrate/batch", "batch/recalibrate"])
def test_pooled_statistics_are_those_of_what_is_normalised(bn):
    modes = BatchNorm.parse(bn)
    program = compile_archs(SUPERNET, [NB201.arch((3, 2, 3, 1, 4, 2))], bn=modes)
    double = SUPERNET.copy(torch.float64)
    executor = Executor(program, Weights(double.layout, dict(double.named_tensors())))
    stream = make_batches(dtype=torch.float64)
    common, (own,) = calibrate(executor, [0], [], stream, modes)
    watching = Watching(modes, pooled={**common.pooled, **own.pooled})
    for batch in stream:
        executor.logits(0, executor.stem(batch.images, watching), {}, watching)
    assert set(watching.seen) == set(watching.pooled)
    for place, minibatches in watching.seen.items():
        assert len(minibatches) == 3
        mean, variance = batch_statistics(torch.cat(minibatches))
        torch.testing.assert_close(watching.pooled[place][0], mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(watching.pooled[place][1], variance, rtol=1e-9, atol=1e-12)


def test_recalibration_of_all_images_is_within_the_budget_or_refused():
    for backend, kib in (("reference", 70), ("cpu", 1000)):
        options = dict(memory=kib * 1024, backend=backend, threads=1)
        evaluate(SUPERNET, ARCHS[:3], BATCHES, bn="batch", **options)
        with pytest.raises(ValueError, match="minibatches of 500 images"):
            evaluate(
                SUPERNET, ARCHS[:3], BATCHES, bn="recalibrate", calibration=make_batches(100),
                **options,
            )  # fmt: skip


def test_threads_and_layout_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scores = evaluate(SUPERNET, ARCHS, BATCHES)
            assert np.array_equal(scores.lane_loss, WHOLE.lane_loss)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    last = [Batch(b.images.contiguous(memory_format=torch.channels_last), b.labels)
            for b in BATCHES]  # fmt: skip
    assert np.array_equal(evaluate(SUPERNET, ARCHS, last).lane_loss, WHOLE.lane_loss)


def test_images_need_not_be_kept():
    scores = evaluate(SUPERNET, ARCHS, BATCHES, keep_images=False)
    assert np.array_equal(scores.loss, WHOLE.loss)
    assert np.array_equal(scores.accuracy, WHOLE.accuracy)
    assert scores.lane_loss.shape == (WHOLE.program.num_lanes, 0)


@pytest.mark.parametrize("merge", list(Merge))
def test_a_registered_space_runs_through_everything(merge, monkeypatch):
    monkeypatch.setattr(spaces, "_SPACES", dict(spaces._SPACES))  # forgotten after the test
    spec = CellSpec(
        name=f"test-{merge.name.lower()}",
        title="Other operations, one stage",
        num_nodes=4,
        edges=((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)),
        ops=(
            OpSpec("conv5", OpKind.CONV, 5),
            OpSpec("max3", OpKind.MAX_POOL, 3),
            OpSpec("avg3", OpKind.AVG_POOL, 3),
            OpSpec("avg5", OpKind.AVG_POOL, 5),
            OpSpec("nothing", OpKind.ZERO),
        ),
        stage_widths=(1, 3),
    )
    assert spaces.get(spaces.register(spec).name) is spec
    config = SupernetConfig(space=spec.name, channels=2, cells_per_stage=2, classes=4)
    supernet = Supernet.create(config, seed=1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 9, 7, generator=generator)  # odd: reductions halve upwards
    stream = [Batch(images, torch.tensor([0, 1, 2, 3]))]
    archs = spec.sample(40, seed=2)
    plain = evaluate(supernet, archs, stream, precision="fp64", merge=Merge.DEAD)
    scores = evaluate(supernet, archs, stream, precision="fp64", merge=merge)
    np.testing.assert_allclose(scores.loss, plain.loss, rtol=1e-9)
    with pytest.raises(ValueError, match="another search space is called"):
        spaces.register(dataclasses.replace(spec, title="x"))


def test_weights_that_are_not_finite_mark_their_lanes_alone():
    poisoned = SUPERNET.copy()
    name = "cells.0.edges.3<-0.3.op.1.weight"  # edge 3, operation 3, of the first cell
    poisoned.view(poisoned.layout.by_name[name])[0, 0, 0, 0] = float("inf")
    scores = evaluate(poisoned, ARCHS, BATCHES)
    hit = np.array([arch.op_indices[3] == 3 for arch in ARCHS])
    assert hit.any() and not hit.all()
    assert np.isnan(scores.loss[hit]).all() and (scores.accuracy[hit] == 0).all()
    assert np.array_equal(scores.loss[~hit], WHOLE.loss[~hit])


def _images(change):
    batch = make_batches(1)[0]
    change(batch.images)
    return [batch]


BAD_LABEL = torch.tensor([0, 1, 2, 4, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(archs=[]), "archs: wanted at least one"),
        (dict(batches=[]), r"data_orders\[0\]: wanted at least one minibatch"),
        (dict(batches=_images(lambda x: x[3].fill_(float("nan")))), "image 3 holds NaN"),
        (dict(batches=[Batch(BATCHES[0].images[:, :1], BATCHES[0].labels)]),
         r"wanted floating point \[batch, 3, 8, 8\], got torch.float32 \[5, 1, 8, 8\]"),
        (dict(batches=[BATCHES[0], Batch(torch.randn(5, 3, 4, 4), BATCHES[0].labels)]),
         r"data_orders\[0\]\[1\].images: wanted floating point \[batch, 3, 8, 8\]"),
        (dict(batches=[Batch(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), BATCHES[0].labels)]),
         "got torch.uint8"),
        (dict(batches=[Batch(torch.zeros(0, 3, 8, 8), BATCHES[0].labels[:0])]),
         r"got torch.float32 \[0,"),
        (dict(batches=[Batch(BATCHES[0].images, BAD_LABEL)]), "label 3 is 4, wanted 0..3"),
        (dict(batches=[Batch(BATCHES[0].images, BAD_LABEL - 1)]), "label 0 is -1"),
        (dict(batches=[Batch(BATCHES[0].images, BAD_LABEL[:4])]), r"wanted int64 \[5\]"),
        (dict(batches=[Batch(BATCHES[0].images, BAD_LABEL.int())]), "got torch.int32"),
        (dict(bn="running"), r"running statistics asked for cells.*track=False"),
        (dict(bn="eval"), "bn: wanted cells"),
        (dict(calibration=BATCHES), "calibration: no part of bn='batch/batch/batch' recalibrates"),
        (dict(archs=ARCHS[0]), "archs: wanted a sequence of architectures, got Architecture"),
        (dict(archs=str(ARCHS[0])), "archs: wanted a sequence of architectures, got str"),
        (dict(archs=[str(ARCHS[0])]), r"archs\[0\]: wanted an Architecture \(spaces have"),
        (dict(archs=[7]), r"archs\[0\]: wanted an Architecture.*got 7"),
        (dict(archs=[ARCHS[:2]]), r"archs\[0\]: wanted one architecture for each of 3 cells"),
        (dict(merge=99), "99 is not a valid Merge"),
        (dict(batches=[Batch(BATCHES[0].images.double() * 1e300, BATCHES[0].labels)]),
         "image 0 holds NaN or infinity"),
        (dict(precision="bf16", backend="reference"),
         "backend 'reference' has fp32, fp64, got 'bf16'"),
        (dict(precision="fp64", backend="cpu"), "backend 'cpu' has fp32, bf16, got 'fp64'"),
        (dict(precision="fp64", backend="cuda"), "backend 'cuda' has fp32, tf32, bf16, got 'fp64'"),
        (dict(bn="recalibrate", backend="cuda"), "backend: 'cuda' does not recalibrate, got bn="),
        (dict(precision="fp16"), "precision: wanted one of fp32, tf32, bf16, fp64, got 'fp16'"),
        (dict(backend="gpu"), "backend: wanted one of auto, cpu, cuda, reference, got 'gpu'"),
        (dict(threads=0), r"threads: wanted 1\.\.\d+ \(processors of this machine\), got 0"),
        (dict(threads=100_000), "threads: wanted 1.*got 100000"),
        (dict(threads=True), "threads: wanted 1.*got True"),
        (dict(memory=1000), "memory: the values of one lane need 1 MiB"),
        (dict(bn="recalibrate", calibration=[]), "calibration: wanted at least one minibatch"),
    ],
)  # fmt: skip
def test_bad_input(options, message):
    arguments = dict(supernet=SUPERNET, archs=ARCHS, batches=BATCHES) | options
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


def test_a_misspelt_mode_is_refused():
    for modes in (("batch", "eval", "batch"), ("batch", "batch", "none"), ("train",) * 3):
        with pytest.raises(ValueError, match="bn: wanted cells"):
            BatchNorm(*modes)


@pytest.mark.parametrize(("column", "value"), [(1, -1), (1, 1), (2, -1), (2, 1)])
def test_lanes_of_weights_or_orders_that_are_not_there(column, value):
    program = compile_archs(SUPERNET, ARCHS[:1])
    lanes = program.lanes.copy()
    lanes[0, column] = value
    name = ("supernets", "data_orders")[column - 1]
    with pytest.raises(ValueError, match=rf"{name}: the program's lanes name {value}..{value}"):
        next(run(dataclasses.replace(program, lanes=lanes), [SUPERNET], [BATCHES]))


def test_data_orders_of_other_sizes_are_refused():
    program = compile_archs(SUPERNET, ARCHS[:1])
    with pytest.raises(ValueError, match=r"data_orders\[1\]: wanted the images"):
        next(run(program, [SUPERNET], [BATCHES, BATCHES[:2]]))


def test_a_program_of_another_mode_is_refused():
    program = compile_archs(SUPERNET, ARCHS, bn="batch")
    with pytest.raises(ValueError, match="the program was built for"):
        next(run(program, [SUPERNET], [BATCHES], bn="recalibrate"))
    other = Supernet.create(SupernetConfig(channels=5, cells_per_stage=1, classes=4), 0)
    with pytest.raises(ValueError, match=r"supernets\[0\]: wanted a supernet of"):
        next(run(program, [other], [BATCHES]))


def test_architectures_for_each_cell():
    networks = [ARCHS[k : k + 3] for k in range(5)]
    scores = evaluate(SUPERNET, [*networks, [ARCHS[0]] * 3], BATCHES)
    assert scores.loss[5] == WHOLE.loss[0]
    assert len(set(scores.loss)) > 1


def test_the_least_memory_that_works_works():
    program = compile_archs(SUPERNET, ARCHS)
    size = dict(batch=5, height=8, width=8)
    with pytest.raises(ValueError, match="memory"):
        plan(program, **size, memory=1)
    assert plan(program, **size, memory=2**20).num_chunks >= 1


def test_modes_are_objects_too():
    scores = evaluate(SUPERNET, ARCHS[:3], BATCHES, bn=BatchNorm("batch", "running", "running"))
    text = evaluate(SUPERNET, ARCHS[:3], BATCHES, bn="batch/running")
    assert np.array_equal(scores.loss, text.loss)
