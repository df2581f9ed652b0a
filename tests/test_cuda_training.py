# SPDX-License-Identifier: MIT
"""Training lanes on a card: against the CPU engine, and the same bits in every setting."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_samples import batch_of

from nasfast import (
    BatchNorm,
    Mode,
    Sgd,
    Supernet,
    SupernetConfig,
    compile_archs,
    cuda_device,
    finetune,
    ops,
)
from nasfast.data import Batch
from nasfast.lane_engine import EngineLanes
from nasfast.lane_training import ReferenceLanes
from nasfast.plan import plan
from nasfast.program import build, request_array
from nasfast.spaces import NB201

MISSING = cuda_device.why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
PRECISIONS = cuda_device.PRECISIONS
TOLERANCE = 2e-3  # of float32 over a few steps, where batch norm magnifies rounding
FIELDS = ("loss", "correct", "gradient_l1", "gradient_sum_l1")
STATE = ("weights", "momentum", "gradient_sum", "diverged_at")

CONFIG = SupernetConfig(channels=4, cells_per_stage=1, affine=True, track=True)
SUPERNET = Supernet.create(CONFIG, seed=1)
ARCHS = NB201.sample(10, seed=1)
BATCHES = [batch_of(size, 8, seed=k) for k, size in enumerate((6, 4, 6))]
SGD = Sgd(weight_decay=0.01, clip=2.0)


def cut_of(archs=ARCHS, supernet=SUPERNET, **options):
    config = supernet.config
    program = build(
        supernet.layout, request_array(supernet.layout, archs), mode=Mode("batch", config.affine)
    )
    return plan(program, batch=6, height=8, width=8, **options)


def train(
    cut, device="cuda", batches=BATCHES, supernet=SUPERNET, lr=0.05, calls=None, memory=0,
    precision="fp32", spoil=None,
):  # fmt: skip
    """All lanes in the order of the program, on the CPU: what they are, what was recorded."""
    if device == "exact":
        trainer = ReferenceLanes(cut, [supernet], SGD, dtype=torch.float64, gradient_sums=True)
        batches = [Batch(batch.images.double(), batch.labels) for batch in batches]
    else:
        trainer = EngineLanes(
            cut, [supernet], SGD, precision=precision, gradient_sums=True, device=device,
            memory=memory,
        )  # fmt: skip
    lanes = {}
    for chunk in range(cut.num_chunks):
        state = trainer.start(chunk)
        assert state.weights.is_cuda == (device == "cuda")
        members = cut.lanes_of(chunk).tolist()
        if spoil in members:
            state.weights[members.index(spoil)] = float("nan")
        rates = np.array([[lr / (1 + lane)] for lane in members])
        records = [
            trainer.step(chunk, state, part, np.repeat(rates, len(part), axis=1))
            for part in calls or [batches]
        ]
        for row, lane in enumerate(members):
            own = {name: np.asarray(getattr(state, name)[row].tolist()) for name in STATE}
            for name in FIELDS:
                own[name] = np.concatenate([getattr(record, name)[row] for record in records])
            lanes[lane] = own
    return [lanes[lane] for lane in range(cut.program.num_lanes)]


def same(ours, others):
    return len(ours) == len(others) and all(
        np.array_equal(mine[name], theirs[name], equal_nan=True)
        for mine, theirs in zip(ours, others, strict=True)
        for name in (*STATE, *FIELDS)
    )


# Against the CPU engine.


@pytest.mark.parametrize("space", ["nb201", "nb1shot1-1", "nb1shot1-3"])
def test_fp32_is_as_exact_as_on_the_cpu(space):
    supernet, archs, batches = SUPERNET, ARCHS, BATCHES
    if space != "nb201":
        supernet = Supernet.create(SupernetConfig.published(space), seed=0)
        archs, channels = supernet.config.spec.sample(3, seed=0), supernet.config.in_channels
        batches = [batch_of(4, 8, seed=k, channels=channels) for k in range(2)]
    cut = cut_of(archs, supernet)
    call = dict(batches=batches, supernet=supernet)
    sides = [train(cut, device, **call) for device in ("cuda", "cpu", "exact")]
    for name in (*STATE, *FIELDS):
        ours, theirs, exact = (np.stack([lane[name] for lane in side]) for side in sides)
        if name == "correct":
            assert np.abs(ours - theirs).sum() <= max(1, exact.size // 20)
        else:
            allowed = max(TOLERANCE * np.linalg.norm(exact), 4 * np.linalg.norm(theirs - exact))
            assert np.linalg.norm(ours - exact) <= allowed, name


def test_bf16_stays_near_the_cpu():
    ours, theirs = (train(cut_of(), device, precision="bf16") for device in ("cuda", "cpu"))
    mine, expected = (np.stack([lane["loss"] for lane in side]) for side in (ours, theirs))
    assert np.isfinite(mine).all()
    assert np.linalg.norm(mine - expected) <= 0.1 * np.linalg.norm(expected)


def test_tf32_rounds_less_than_bf16():
    """Gradients are farther off than in fp32, and nearer than in bf16."""
    sums = [
        np.stack([lane["gradient_sum"] for lane in train(cut_of(), device, precision=precision)])
        for device, precision in (("cuda", "tf32"), ("cpu", "bf16"), ("cpu", "fp32"))
    ]
    errors = [np.linalg.norm(own - sums[2]) / np.linalg.norm(sums[2]) for own in sums]
    assert TOLERANCE < errors[0] <= 0.5 * errors[1]


def test_curves_of_finetune():
    call = dict(steps=3, lr=0.02, sgd=SGD, validation=BATCHES[:2], mini_at=(1,))
    ours, theirs = (
        finetune(SUPERNET, ARCHS, BATCHES, backend=backend, **call) for backend in ("cuda", "cpu")
    )
    for name in ("loss", "gradient_l1", "gradient_sum_l1", "valid_loss", "mini_loss"):
        mine, expected = getattr(ours.curves, name), getattr(theirs.curves, name)
        assert np.linalg.norm(mine - expected) <= TOLERANCE * np.linalg.norm(expected), name
    assert np.array_equal(ours.curves.diverged_at, theirs.curves.diverged_at)


# Lanes that stop.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lane_that_stops_changes_no_other(precision):
    cut = cut_of()
    whole, broken = (train(cut, precision=precision, spoil=lane) for lane in (None, 2))
    assert same(broken[:2] + broken[3:], whole[:2] + whole[3:])
    lane = broken[2]
    assert lane["diverged_at"] == 0
    assert not np.isfinite(lane["loss"]).any() and np.isnan(lane["gradient_l1"]).all()
    assert (lane["correct"] == 0).all() and np.isnan(lane["weights"]).all()
    assert (lane["momentum"] == 0).all() and (lane["gradient_sum"] == 0).all()


def test_a_lane_that_stopped_rests():
    """A huge rate leads all of them astray; the steps after that are not taken."""
    cut = cut_of()
    lanes = train(cut, lr=1e30, calls=[BATCHES, BATCHES])
    for lane in lanes:
        at = int(lane["diverged_at"])
        assert 1 <= at < 6
        assert np.isfinite(lane["loss"][:at]).all()
        assert np.isnan(lane["loss"][at + 1 :]).all()
        assert np.isnan(lane["gradient_l1"][at:]).all()
        assert (lane["correct"][at + 1 :] == 0).all()


# The same bits in every setting.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_twice_the_same_bits(precision):
    cut = cut_of()
    assert same(train(cut, precision=precision), train(cut, precision=precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_calls_and_chunks_change_nothing(precision):
    whole = train(cut_of(), precision=precision)
    assert same(train(cut_of(), precision=precision, calls=[[b] for b in BATCHES]), whole)
    assert same(train(cut_of(max_chunk_lanes=3), precision=precision, lr=0.05), whole)


def least_memory(cut, precision):
    """What is kept of all lanes and the largest needs, by what is said when there is less."""
    kept = 3 * 4 * cut.program.num_lanes * cut.program.layout.arena_size
    memory = kept + 1000
    while True:
        try:
            train(cut, precision=precision, memory=memory)
            return memory, memory - kept
        except RuntimeError as error:
            needed = re.search(r"memory: lane \d+ needs (\d+) bytes", str(error))
            assert needed and kept + int(needed[1]) > memory, error
            memory = kept + int(needed[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_memory_gives_the_same_bits(precision):
    """From the largest lane at a time to all of them."""
    cut = cut_of()
    whole = train(cut, precision=precision)
    least, lane = least_memory(cut, precision)
    for memory in (least, least + lane // 2, least + 3 * lane):
        assert same(train(cut, precision=precision, memory=memory), whole)


# The operators.

PROGRAM = compile_archs(SUPERNET, ARCHS[:5])
LANES = PROGRAM.num_lanes
SIZE = dict(batch=6, height=8, width=8)
TABLE = torch.from_numpy(plan(PROGRAM, **SIZE).table())
OWN = np.array([[k, k, 0] for k in PROGRAM.lanes[:, 0]], dtype=np.int32)
OWN[:, 1] = np.arange(LANES)
ALONE = torch.from_numpy(plan(replace(PROGRAM, lanes=OWN), max_chunk_lanes=1, **SIZE).table())
IMAGES, LABELS = BATCHES[0].images, BATCHES[0].labels
WEIGHTS = SUPERNET.arena.repeat(LANES, 1)


def arguments(**changes):
    rows = WEIGHTS.cuda()
    return dict(
        table=TABLE, weights=rows.clone(), momenta=torch.zeros_like(rows),
        gradient_sums=torch.zeros_like(rows),
        diverged_at=torch.full((LANES,), -1, dtype=torch.int32, device="cuda"),
        images=IMAGES.cuda(), labels=LABELS.cuda(), sizes=[3, 3],
        lr=torch.full((LANES, 2), 0.1, dtype=torch.float64, device="cuda"), chunk=0, first_step=0,
        sgd=SGD,
    ) | changes  # fmt: skip


REFUSED = {
    "table": (lambda: dict(table=TABLE.cuda()), "table: wanted a CPU tensor"),
    "weights": (lambda: dict(weights=WEIGHTS.clone()), "weights: wanted a CUDA tensor"),
    "momenta": (lambda: dict(momenta=torch.zeros_like(WEIGHTS)), "momenta: wanted a CUDA tensor"),
    "no momenta": (lambda: dict(momenta=None), "momenta: wanted exactly where momentum is above 0"),
    "sums": (
        lambda: dict(gradient_sums=WEIGHTS.cuda()[:2]), "gradient_sums: wanted shape",
    ),
    "diverged_at": (
        lambda: dict(diverged_at=torch.zeros(LANES, device="cuda")),
        "diverged_at: wanted dtype int32",
    ),
    "lr": (lambda: dict(lr=torch.zeros(LANES, 2).double()), "lr: wanted a CUDA tensor"),
    "images": (lambda: dict(images=IMAGES), "images: wanted a CUDA tensor"),
    "label": (lambda: dict(labels=LABELS.cuda() + 10), r"labels: wanted 0\.\.9, got 1\d"),
    "memory": (lambda: dict(memory=1000), r"memory: lane \d+ needs \d+ bytes for .*got 1000"),
    "element": (
        lambda: dict(sizes=[5, 1], images=IMAGES[:, :, :2, :2].contiguous().cuda()),
        "running statistics need more than one element a channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_train_lanes_refuses(case):
    changes, message = REFUSED[case]
    given = arguments()
    before = given["weights"].clone()
    with pytest.raises(RuntimeError, match=message):
        ops.train_lanes(**(given | changes()))
    assert torch.equal(given["weights"], before)
    ops.train_lanes(**given)  # nothing is left behind


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_scores_of_private_weights_are_those_of_shared_ones(precision, mode):
    options = dict(precision=precision, fixed=mode, last=mode)
    images, labels = IMAGES.cuda(), LABELS.cuda()
    loss, correct = ops.score_lanes(ALONE, WEIGHTS.cuda(), images, labels, [4, 2], **options)
    shared_loss, shared_correct = ops.run_program(
        TABLE, SUPERNET.arena[None].cuda(), images, labels, sizes=[4, 2], chunk=0, lanes=LANES,
        **options,
    )  # fmt: skip
    order = torch.from_numpy(plan(PROGRAM, **SIZE).lanes_of(0).astype(np.int64)).cuda()
    assert torch.equal(loss[order], shared_loss)
    assert torch.equal(correct[order], shared_correct)


def test_scores_read_the_row_of_their_lane():
    rows = WEIGHTS.cuda()
    whole, _ = ops.score_lanes(ALONE, rows, IMAGES.cuda(), LABELS.cuda(), [6])
    rows[1] = float("nan")
    loss, correct = ops.score_lanes(ALONE, rows, IMAGES.cuda(), LABELS.cuda(), [6])
    assert not torch.isfinite(loss[1]).any() and not correct[1].any()
    others = [lane for lane in range(LANES) if lane != 1]
    assert torch.equal(loss[others], whole[others])


def test_opcheck():
    given = arguments()
    sgd = (SGD.momentum, SGD.nesterov, SGD.weight_decay, SGD.clip, "fp32", 1, 0)
    torch.library.opcheck(torch.ops.nasfast.train_lanes.default, (*list(given.values())[:-1], *sgd))
    torch.library.opcheck(
        torch.ops.nasfast.score_lanes.default,
        (ALONE, given["weights"], given["images"], given["labels"], [3, 3], "bf16", "batch",
         "batch", 1, 0),
    )  # fmt: skip


def test_evaluations_run_in_every_mode_they_can():
    trainer = EngineLanes(cut_of(), [SUPERNET], SGD, device="cuda")
    state = trainer.start(0)
    for modes in ("batch", "running", "batch/running"):
        loss, correct = trainer.evaluate(0, state, BATCHES, BatchNorm.parse(modes))
        assert np.isfinite(loss).all() and correct.shape == loss.shape
