# SPDX-License-Identifier: MIT
"""The torch operators of training: registration (opcheck, compile), paths, refused arguments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engine_gradients import mixing_of, randomised, reference_gradients

from nasfast import Mode, SupernetConfig, compile_archs, ops
from nasfast.data import Batch
from nasfast.lane_training import Sgd
from nasfast.plan import plan
from nasfast.program import build_joint
from nasfast.spaces import NB201

CONFIG = SupernetConfig(channels=3, cells_per_stage=1, classes=4, track=True, affine=True)
SUPERNET = randomised(CONFIG)
PROGRAM = compile_archs(SUPERNET, NB201.sample(5, seed=1))
SIZE = dict(batch=5, height=8, width=7)
TABLE = torch.from_numpy(plan(PROGRAM, workers=1, **SIZE).table())
LANES = PROGRAM.num_lanes
OWN = np.array([[k, k, 0] for k in range(LANES)], dtype=np.int32)  # a weight set for each lane
ALONE = torch.from_numpy(plan(replace(PROGRAM, lanes=OWN), max_chunk_lanes=1, **SIZE).table())
JOINT = build_joint(SUPERNET.layout, mode=Mode("batch", affine=True))
JOINT_TABLE = torch.from_numpy(plan(JOINT, **SIZE).table())
MIXING = mixing_of(3).reshape(3, 30)
IMAGES = torch.randn(5, 3, 8, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0])
WEIGHTS = SUPERNET.arena.repeat(LANES, 1)
SGD = Sgd(weight_decay=0.01)


def score_lanes(**changes):
    arguments = dict(table=ALONE, weights=WEIGHTS, images=IMAGES, labels=LABELS, sizes=[5])
    return ops.score_lanes(**(arguments | changes))


def train_lanes(**changes):
    arguments = dict(
        table=TABLE, weights=WEIGHTS.clone(), momenta=torch.zeros_like(WEIGHTS),
        gradient_sums=torch.zeros_like(WEIGHTS),
        diverged_at=torch.full((LANES,), -1, dtype=torch.int32), images=IMAGES, labels=LABELS,
        sizes=[3, 2], lr=torch.full((LANES, 2), 0.1, dtype=torch.float64), chunk=0, first_step=0,
        sgd=SGD,
    )  # fmt: skip
    return ops.train_lanes(**(arguments | changes))


def train_paths(**changes):
    arguments = dict(
        table=TABLE, weights=WEIGHTS[0].clone(), momenta=torch.zeros_like(WEIGHTS[0]),
        images=IMAGES, labels=LABELS, sizes=[3, 2], lanes=[0, 1, 2, 0], paths=2, lr=0.1, sgd=SGD,
    )  # fmt: skip
    return ops.train_paths(**(arguments | changes))


def program_gradients(**changes):
    arguments = dict(table=TABLE, arena=WEIGHTS[0], images=IMAGES, labels=LABELS, classes=4)
    return ops.program_gradients(**(arguments | changes))


def joint_gradients(**changes):
    return program_gradients(**(dict(table=JOINT_TABLE, mixing=MIXING) | changes))


# Registration.

MUTABLE = {
    "score_lanes": set(),
    "train_lanes": {"weights", "momenta", "gradient_sums", "diverged_at"},
    "train_paths": {"weights", "momenta"},
    "program_gradients": {"running"},
}


@pytest.mark.parametrize("name", MUTABLE)
def test_the_schema_says_what_changes(name):
    schema = getattr(torch.ops.nasfast, name).default._schema
    changed = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
    assert changed == MUTABLE[name]
    assert not any(result.alias_info for result in schema.returns)


@pytest.mark.parametrize("keeps", [False, True])
def test_opcheck_training(keeps):
    momentum = 0.9 if keeps else 0.0
    row, rows = (torch.zeros_like(w) if keeps else None for w in (WEIGHTS[0], WEIGHTS))
    sums = torch.zeros_like(WEIGHTS) if keeps else None
    diverged_at = torch.full((LANES,), -1, dtype=torch.int32)
    lr = torch.full((LANES, 2), 0.1, dtype=torch.float64)
    sgd = (momentum, keeps, 0.01, 1.0, "fp32", 1)
    torch.library.opcheck(
        torch.ops.nasfast.train_lanes.default,
        (TABLE, WEIGHTS.clone(), rows, sums, diverged_at, IMAGES, LABELS, [3, 2], lr, 0, 0, *sgd),
    )
    torch.library.opcheck(
        torch.ops.nasfast.train_paths.default,
        (TABLE, WEIGHTS[0].clone(), row, IMAGES, LABELS, [3, 2], [0, 1, 2, 0], 2, 0.1, *sgd),
    )


def test_opcheck_scores_and_gradients():
    torch.library.opcheck(
        torch.ops.nasfast.score_lanes.default,
        (ALONE, WEIGHTS, IMAGES, LABELS, [3, 2], "bf16", "batch", "batch", 1),
    )
    seeds = torch.ones(5, 4)
    for table, labels, direction, mixing in (
        (TABLE, LABELS, None, None),
        (TABLE, None, seeds, None),
        (TABLE, None, None, None),
        (JOINT_TABLE, LABELS, None, MIXING),
        (JOINT_TABLE, None, None, MIXING),
    ):
        torch.library.opcheck(
            torch.ops.nasfast.program_gradients.default,
            (table, WEIGHTS[0].clone(), IMAGES, labels, direction, mixing, 0, 4, "fp32", 1, None),
        )


def test_they_compile_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weights, momenta):
        loss, correct, taken = torch.ops.nasfast.train_paths(
            TABLE, weights, momenta, IMAGES, LABELS, [3, 2], [0, 1, 2, 0], 2, 0.1, 0.9, True, 0.01,
            0.0, "fp32", 1,
        )  # fmt: skip
        return loss.sum(), correct, taken, weights * 2

    weights, momenta = WEIGHTS[0].clone(), torch.zeros_like(WEIGHTS[0])
    loss, correct, taken, doubled = step(weights, momenta)
    own = WEIGHTS[0].clone()
    eager_loss, eager_correct, steps = train_paths(weights=own)
    assert torch.equal(weights, own) and torch.equal(doubled, own * 2)
    assert loss == eager_loss.sum() and torch.equal(correct, eager_correct) and taken == steps == 2


# Paths.


def test_gradients_of_paths_are_added():
    weights = WEIGHTS[0].clone()
    loss, correct, steps = train_paths(
        weights=weights, momenta=None, sizes=[5], lanes=[0, 2, 2], paths=3,
        sgd=Sgd(momentum=0.0, nesterov=False, weight_decay=0.0),
    )  # fmt: skip
    assert steps == 1 and loss.shape == correct.shape == (3,)
    exact = WEIGHTS[0].double()
    for row, lane in enumerate((0, 2, 2)):
        network = int(PROGRAM.lanes[lane, 0])
        batch = Batch(IMAGES, LABELS)
        value, gradient = reference_gradients(PROGRAM, SUPERNET, network, batch, torch.float64)
        assert loss[row].item() == pytest.approx(value, rel=1e-5)
        exact -= 0.1 * gradient
    for param in SUPERNET.layout.params:
        own, wanted = (w[param.offset : param.offset + param.size] for w in (weights, exact))
        if not param.is_buffer:
            torch.testing.assert_close(own.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_path_that_diverges_stops_before_its_step():
    weights = WEIGHTS[0].clone()
    weights[SUPERNET.layout.by_name["classifier.bias"].offset] = float("inf")
    before, momenta = weights.clone(), torch.zeros_like(weights)
    loss, _, steps = train_paths(weights=weights, momenta=momenta)
    assert steps == 0 and not loss[0].isfinite()
    assert torch.equal(weights, before) and not momenta.any()


# Refused arguments: in words that name operator, argument, what was wanted and what came.

WEIGHT_ERRORS = [
    (dict(table=TABLE.long()), "table: wanted dtype int32, got int64"),
    (dict(table=TABLE[:-1]), "program table: "),
    (dict(weights=WEIGHTS.double()), "weights: wanted dtype float32, got float64"),
    (dict(weights=WEIGHTS[:, :-1].contiguous()), r"weights: wanted shape \[\d.*\], got \["),
    (dict(images=IMAGES.double()), "images: wanted dtype float32"),
    (dict(images=IMAGES[:, :2].contiguous()), r"images: wanted shape \[5, 3, any, any\]"),
    (dict(images=IMAGES.transpose(2, 3)), "images: wanted a contiguous tensor"),
    (dict(images=torch.zeros(5, 3, 9, 7)), "the table was made for images of at most 8x7"),
    (dict(labels=LABELS.int()), "labels: wanted dtype int64"),
    (dict(labels=LABELS[:4]), r"labels: wanted shape \[5\], got \[4\]"),
    (dict(labels=LABELS + 1), "labels: wanted 0..3, got 4"),
    (dict(sizes=[3, 1]), r"images: wanted shape \[4, 3"),
    (dict(sizes=[5, 0]), "sizes: wanted minibatches of 1 to"),
    (dict(precision="fp64"), "precision: wanted fp32 or bf16, got fp64"),
    (dict(threads=0), "threads: wanted 1..4096, got 0"),
]
ZEROS = torch.zeros_like(WEIGHTS)
LANE_ERRORS = [
    (dict(table=JOINT_TABLE), "table: wanted single paths, got mixed operations"),
    (dict(weights=WEIGHTS[:2]), rf"weights: wanted shape \[{LANES}, \d+\], got \[2, "),
    (dict(momenta=ZEROS[:2]), "momenta: wanted shape"),
    (dict(momenta=ZEROS.double()), "momenta: wanted dtype float32"),
    (dict(momenta=None), "momenta: wanted exactly where momentum is above 0"),
    (dict(gradient_sums=ZEROS[:, ::2]), "gradient_sums: wanted a contiguous tensor"),
    (dict(diverged_at=torch.zeros(LANES)), "diverged_at: wanted dtype int32"),
    (dict(diverged_at=torch.zeros(2, dtype=torch.int32)), "diverged_at: wanted shape"),
    (dict(lr=torch.zeros(LANES, 2)), "lr: wanted dtype float64, got float32"),
    (dict(lr=torch.zeros(LANES, 1).double()), rf"lr: wanted shape \[{LANES}, 2\]"),
    (dict(chunk=1), "chunk: wanted 0..0, got 1"),
    (dict(chunk=-1), "chunk: wanted 0..0, got -1"),
    (dict(sizes=[3, 1, 1], images=IMAGES[:, :, :2, :2].contiguous(),
          lr=torch.zeros(LANES, 3).double()),
     "running statistics need more than one element a channel"),
]  # fmt: skip
PATH_ERRORS = [
    (dict(table=JOINT_TABLE), "table: wanted single paths, got mixed operations"),
    (dict(weights=WEIGHTS), r"weights: wanted shape \[\d+\], got \["),
    (dict(momenta=ZEROS), "momenta: wanted shape"),
    (dict(momenta=None), "momenta: wanted exactly where momentum is above 0"),
    (dict(lanes=[0, 1, 2]), "lanes: wanted 2 minibatches times paths, got 3"),
    (dict(lanes=[0, 1, 2, LANES]), f"lanes: wanted 0..{LANES - 1}, got {LANES}"),
    (dict(lanes=[0, 1, 2, -1]), f"lanes: wanted 0..{LANES - 1}, got -1"),
    (dict(paths=0), "lanes: wanted 2 minibatches times paths"),
]
SCORE_ERRORS = [
    (dict(table=TABLE), "table: wanted one lane a chunk"),
    (dict(weights=WEIGHTS[:2]), rf"weights: wanted shape \[{LANES}, \d+\], got \[2, "),
    (dict(fixed="eval"), "fixed: wanted batch, running or recalibrate, got eval"),
    (dict(last=""), "last: wanted batch, running or recalibrate, got "),
]
GRADIENT_ERRORS = [
    (dict(table=TABLE.long()), "table: wanted dtype int32, got int64"),
    (dict(arena=WEIGHTS), r"arena: wanted shape \[\d+\], got \["),
    (dict(arena=WEIGHTS[0].double()), "arena: wanted dtype float32"),
    (dict(images=IMAGES[:0], labels=LABELS[:0]), "images: wanted images, got none"),
    (dict(labels=LABELS + 1), "labels: wanted 0..3, got 4"),
    (dict(labels=LABELS[:4]), r"labels: wanted shape \[5\], got \[4\]"),
    (dict(labels=None, grad_logits=torch.zeros(5, 3)), r"grad_logits: wanted shape \[5, 4\]"),
    (dict(labels=None, grad_logits=torch.zeros(5, 4).double()), "grad_logits: wanted dtype"),
    (dict(lane=LANES), f"lane: wanted 0..{LANES - 1}, got {LANES}"),
    (dict(lane=-1), f"lane: wanted 0..{LANES - 1}, got -1"),
    (dict(classes=5), "classes: the table has 4, got 5"),
    (dict(table=JOINT_TABLE), "mixing: wanted weights"),
    (dict(table=JOINT_TABLE, mixing=MIXING[:2]), r"mixing: wanted shape \[3, 30\], got \[2, 30\]"),
    (dict(table=JOINT_TABLE, mixing=MIXING.double()), "mixing: wanted dtype float32"),
    (dict(mixing=MIXING), r"mixing: wanted shape \[3, 0\], got \[3, 30\]"),
    (dict(precision="fp64"), "precision: wanted fp32 or bf16, got fp64"),
    (dict(threads=0), "threads: wanted 1..4096, got 0"),
]
REFUSED = [
    *((train_lanes, *row) for row in [*WEIGHT_ERRORS, *LANE_ERRORS]),
    *((train_paths, *row) for row in PATH_ERRORS),
    *((score_lanes, *row) for row in [*WEIGHT_ERRORS, *SCORE_ERRORS]),
    *((program_gradients, *row) for row in GRADIENT_ERRORS),
]


@pytest.mark.parametrize(("operator", "changes", "message"), REFUSED)
def test_bad_arguments_are_refused(operator, changes, message):
    with pytest.raises(RuntimeError, match=message) as refused:
        operator(**changes)
    assert operator.__name__ in str(refused.value)


@pytest.mark.parametrize("operator", [train_lanes, train_paths, program_gradients])
def test_weights_that_convolutions_share_are_refused(operator):
    """Only one of them would be trained."""
    supernet = randomised(replace(CONFIG, weights_on="node"))
    program = compile_archs(supernet, [NB201.arch([3] * 6)])
    own = dict(table=torch.from_numpy(plan(program, workers=1, **SIZE).table()))
    row = supernet.arena
    if operator is program_gradients:
        own["arena"] = row
    elif operator is train_paths:
        own |= dict(weights=row.clone(), momenta=torch.zeros_like(row), lanes=[0, 0], paths=1)
    else:
        own |= dict(weights=row[None].clone(), momenta=torch.zeros_like(row)[None])
        own |= dict(gradient_sums=None, lr=torch.zeros(1, 2).double())
        own |= dict(diverged_at=torch.full((1,), -1, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="wanted weights that one convolution"):
        operator(**own)


@pytest.mark.parametrize("operator", [train_lanes, train_paths])
@pytest.mark.parametrize("name", ["momentum", "weight_decay", "clip"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_settings_of_sgd_are_refused(operator, name, value):
    class Settings:
        momentum, nesterov, weight_decay, clip = 0.9, False, 0.0, 0.0

    sgd = Settings()
    setattr(sgd, name, value)
    with pytest.raises(RuntimeError, match=f"{operator.__name__}: {name}: wanted a finite"):
        operator(sgd=sgd)


def test_what_is_refused_changes_nothing():
    weights = WEIGHTS.clone()
    with pytest.raises(RuntimeError, match="labels"):
        train_lanes(weights=weights, labels=LABELS + 1)
    assert torch.equal(weights, WEIGHTS)
    row = WEIGHTS[0].clone()
    with pytest.raises(RuntimeError, match="lanes"):
        train_paths(weights=row, lanes=[0, 1, 2, LANES])
    assert torch.equal(row, WEIGHTS[0])
