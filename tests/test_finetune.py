# SPDX-License-Identifier: MIT
"""Fine-tuning: against deep copies of a straight-line network, grids, invariance, bad input."""

import copy
import logging
import math

import numpy as np
import pytest
import straight_line
import torch
import torch.nn.functional as F

import nasfast
from nasfast import Sgd, Supernet, SupernetConfig, Trainings, estimators, evaluate, finetune
from nasfast.curves import Curves
from nasfast.data import Batch
from nasfast.spaces import NB201

CONFIG = SupernetConfig(channels=4, cells_per_stage=1, classes=4, in_channels=1)
SUPERNET = Supernet.create(CONFIG, seed=1)
ARCHS = NB201.sample(6, seed=2)
CURVES = [name for name in Curves.__dataclass_fields__]


def stream(count=4, size=8, seed=0, side=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, 1, side, side, generator=generator).to(dtype),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


BATCHES, VALID = stream(), stream(2, seed=9)
LEAST = 2**21  # room for few of these lanes


def rows_equal(one, row, other, other_row):
    for name in CURVES:
        a, b = getattr(one.curves, name)[row], getattr(other.curves, name)[other_row]
        np.testing.assert_array_equal(a, b, err_msg=name)


def deep_copied_loop(supernet, arch, batches, valid, steps, lr, points):
    """What peers do: copy, train, evaluate in train mode; float64."""
    tensors = {n: t.detach().clone().requires_grad_() for n, t in supernet.named_tensors()}

    def logits(images):
        return straight_line.logits(
            tensors, [arch.op_indices] * 3, images, cells_per_stage=1, structural_zeros="plain"
        )

    optimizer = torch.optim.SGD(
        tensors.values(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    losses, scores = [], {}

    def validate(step):
        with torch.no_grad():
            out = [(logits(b.images), b.labels) for b in valid]
        loss = [F.cross_entropy(x, y).item() for x, y in out]
        right = [(x.argmax(1) == y).double().mean().item() for x, y in out]
        scores[step] = (loss[0], right[0], np.mean(loss), np.mean(right))

    for step in range(steps):
        if step in points:
            validate(step)
        batch = batches[step % len(batches)]
        loss = F.cross_entropy(logits(batch.images), batch.labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if steps in points:
        validate(steps)
    return losses, scores


def test_curves_are_those_of_deep_copies():
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, fixed_track=False,
        last_track=False,
    )  # fmt: skip
    supernet = Supernet.create(config, seed=1).copy(torch.float64)
    before = supernet.arena.clone()
    batches, valid = stream(dtype=torch.float64), stream(2, seed=9, dtype=torch.float64)
    result = finetune(
        supernet, ARCHS, batches, steps=3, lr=0.05, validation=valid, validate_at=(3, 1),
        mini_at=(0, 1), precision="fp64",
    )  # fmt: skip
    assert torch.equal(supernet.arena, before)
    assert (result.mini_steps, result.valid_steps) == ((0, 1, 3), (1, 3))
    curves = result.curves
    for row, arch in enumerate(ARCHS):
        losses, scores = deep_copied_loop(supernet, arch, batches, valid, 3, 0.05, (0, 1, 3))
        np.testing.assert_allclose(result.loss[row], losses, rtol=1e-9)
        mini = [scores[step][:2] for step in (0, 1, 3)]
        whole = [scores[step][2:] for step in (1, 3)]
        np.testing.assert_allclose(curves.mini_loss[row], [m[0] for m in mini], rtol=1e-9)
        np.testing.assert_allclose(curves.mini_accuracy[row], [m[1] for m in mini])
        np.testing.assert_allclose(curves.valid_loss[row], [w[0] for w in whole], rtol=1e-9)
        np.testing.assert_allclose(curves.valid_accuracy[row], [w[1] for w in whole])


def test_estimators_are_those_of_the_curves():
    result = finetune(SUPERNET, ARCHS, BATCHES, steps=4, lr=0.05, validation=VALID)
    curves = result.curves
    pairs = [
        (result.sotl(window=2), -curves.loss[:, 2:].sum(axis=1)),
        (result.sotl(at=3), -curves.loss[:, :3].sum(axis=1)),
        (result.tl_mini(), -curves.loss[:, 0]),
        (result.val_acc_mini(), curves.mini_accuracy[:, 0]),
        (result.val_acc_mini(at=4), curves.mini_accuracy[:, 1]),
        (result.val_acc(at=4), curves.valid_accuracy[:, 1]),
        (result.sovl(), -curves.mini_loss.sum(axis=1)),
        (result.tse_e(epoch_steps=2), -curves.loss[:, 2:].mean(axis=1)),
        (result.tse_e(), -curves.loss.mean(axis=1)),  # an epoch is 4 minibatches
        (result.tse_ema(epoch_steps=1), estimators.tse_ema(curves.loss, 1)),
        (result.sog(), curves.gradient_sum_l1[:, 3]),
        (result.sogn(), curves.gradient_l1.sum(axis=1)),
    ]
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted)
    np.testing.assert_allclose(
        evaluate(SUPERNET, ARCHS, VALID, backend="reference").accuracy, result.val_acc()
    )


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_training_depends_on_nothing_else_in_the_call(backend):
    call = dict(steps=3, lr=0.05, validation=VALID, backend=backend)
    together = finetune(SUPERNET, ARCHS, BATCHES, **call)
    for memory in (LEAST, 2**31):
        some = finetune(SUPERNET, ARCHS[2:4], BATCHES, memory=memory, **call)
        rows_equal(some, 0, together, 2)
        rows_equal(some, 1, together, 3)


def test_equal_functions_are_trained_once():
    same = ["|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
            "|nor_conv_1x1~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"]  # fmt: skip
    archs = [NB201.from_string(text) for text in same]
    result = finetune(SUPERNET, archs, BATCHES, steps=2, lr=0.05)
    assert result.lane_of_training.tolist() == [0, 0]
    rows_equal(result, 0, result, 1)


def test_a_grid_names_every_combination():
    supernets = [SUPERNET, Supernet.create(CONFIG, seed=5)]
    orders = [stream(2), stream(3, size=4, seed=1)]
    rates = [0.1, 0.01, 0.003]
    result = finetune(supernets, ARCHS[:2], orders, steps=2, lr=rates)
    shape = (2, 3, 2, 2)  # weight sets, rates, data orders, architectures
    assert result.epoch_steps == (2, 3)
    t = result.trainings
    assert t.lr.reshape(shape)[:, 1].tolist() == np.full((2, 2, 2), 0.01).tolist()
    assert t.weight_set.reshape(shape)[1].tolist() == np.ones((3, 2, 2)).tolist()
    assert t.data_order.reshape(shape)[:, :, 1].tolist() == np.ones((2, 3, 2)).tolist()
    assert [t.archs[k] for k in (0, 1, 22, 23)] == [*ARCHS[:2], *ARCHS[:2]]
    for row in (0, 5, 14, 23):
        alone = finetune(
            supernets[t.weight_set[row]], [t.archs[row]], orders[t.data_order[row]], steps=2,
            lr=float(t.lr[row]),
        )  # fmt: skip
        rows_equal(alone, 0, result, row)
        np.testing.assert_array_equal(alone.tse_e(), result.tse_e()[row : row + 1])


def test_trainings_may_be_listed_one_by_one():
    archs = [ARCHS[0], ARCHS[0], ARCHS[1]]
    chosen = Trainings(
        archs, np.array([0.1, 0.01, 0.1]), np.zeros(3, dtype=np.int32),
        np.array([0, 0, 1], dtype=np.int32),
    )  # fmt: skip
    orders = [BATCHES, stream(seed=4)]
    result = finetune(SUPERNET, chosen, orders, steps=2)
    for row in range(3):
        alone = finetune(
            SUPERNET, archs[row : row + 1], orders[chosen.data_order[row]], steps=2,
            lr=float(chosen.lr[row]),
        )  # fmt: skip
        rows_equal(alone, 0, result, row)


def test_from_scratch_starts_from_fresh_weights():
    other = Supernet.create(CONFIG, seed=8)
    scratch = finetune([SUPERNET, other], ARCHS[:2], BATCHES, steps=2, lr=0.05, from_scratch=30)
    for k in range(2):
        fresh = Supernet.create(CONFIG, seed=30 + k)
        given = finetune(fresh, ARCHS[:2], BATCHES, steps=2, lr=0.05)
        for row in range(2):
            rows_equal(scratch, 2 * k + row, given, row)


def test_one_architecture_for_each_cell():
    network = ARCHS[:3]
    mixed = finetune(SUPERNET, [network, [ARCHS[0]] * 3], BATCHES, steps=2, lr=0.05)
    same = finetune(SUPERNET, ARCHS[:1], BATCHES, steps=2, lr=0.05)
    rows_equal(mixed, 1, same, 0)
    assert not np.array_equal(mixed.loss[0], mixed.loss[1])


def test_more_steps_than_data_cycle_and_say_so_once(caplog):
    with caplog.at_level(logging.WARNING):
        result = finetune(SUPERNET, ARCHS, BATCHES[:2], steps=5, lr=0.05, memory=LEAST)
    assert [r.getMessage() for r in caplog.records] == [
        "batches[0]: 2 minibatches for 5 steps, so they are used again from the first"
    ]
    longer = [BATCHES[k % 2] for k in range(5)]
    rows_equal(result, 0, finetune(SUPERNET, ARCHS[:1], longer, steps=5, lr=0.05), 0)


def test_a_diverging_training_is_marked_and_the_others_go_on():
    sick = copy.deepcopy(SUPERNET)
    conv = [p for p in sick.layout.params if p.name.endswith("edges.3<-2.3.op.1.weight")]
    with torch.no_grad():
        for param in conv:
            sick.view(param).fill_(1e38)
    texts = ["|skip_connect~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_3x3~2|",
             "|skip_connect~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"]  # fmt: skip
    archs = [NB201.from_string(text) for text in texts]
    settings = dict(steps=3, lr=0.05, validation=VALID)
    result = finetune(sick, archs, BATCHES, **settings)
    assert result.diverged_at.tolist() == [0, -1]
    rows_equal(result, 1, finetune(SUPERNET, archs[1:], BATCHES, **settings), 0)
    curves = result.curves
    assert not np.isfinite(curves.loss[0]).any()
    for name in ("accuracy", "gradient_l1", "gradient_sum_l1"):
        assert np.isnan(getattr(curves, name)[0]).all()
    assert np.isnan(curves.valid_loss[0, 1]) and np.isnan(curves.mini_accuracy[0, 1])
    assert np.isnan(result.sotl()[0]) and math.isfinite(result.sotl()[1])


def test_evaluation_modes_are_explicit():
    config = SupernetConfig(
        channels=4, cells_per_stage=1, classes=4, in_channels=1, affine=True, track=True
    )
    supernet = Supernet.create(config, seed=1)
    for bn in ("batch", "running", "recalibrate", "batch/running"):
        result = finetune(
            supernet, ARCHS[:2], BATCHES, steps=2, lr=0.05, validation=VALID, bn=bn,
            backend="reference",
        )  # fmt: skip
        start = evaluate(supernet, ARCHS[:2], VALID, bn=bn, backend="reference")
        np.testing.assert_array_equal(result.curves.valid_loss[:, 0], start.loss)
        mini = evaluate(supernet, ARCHS[:2], VALID[:1], bn=bn, backend="reference")
        np.testing.assert_array_equal(result.val_acc_mini(), mini.accuracy)


def test_gradient_sums_may_be_left_out():
    result = finetune(SUPERNET, ARCHS[:1], BATCHES, steps=2, lr=0.05, gradient_sums=False)
    assert np.isnan(result.sog()).all() and np.isfinite(result.sogn()).all()


def test_the_least_memory_that_is_named_is_enough():
    call = dict(steps=1, lr=0.05)
    with pytest.raises(ValueError, match=r"memory: training one lane needs \d+ MiB") as error:
        finetune(SUPERNET, ARCHS, BATCHES, memory=1000, **call)
    least = int(str(error.value).split("needs ")[1].split()[0])
    finetune(SUPERNET, ARCHS, BATCHES, memory=least * 2**20, **call)


TWICE = np.zeros(2, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"lr\[0\]: wanted a finite number above 0, got 0.0"),
        ({"lr": [0.1, -0.1]}, r"lr\[1\]: wanted a finite number above 0, got -0.1"),
        ({"lr": float("nan")}, r"lr\[0\]: wanted a finite number above 0, got nan"),
        ({"lr": []}, "lr: wanted a learning rate or a list of them"),
        ({"lr": None}, "lr: wanted a learning rate, got none"),
        ({"archs": []}, "archs: wanted at least one architecture, got none"),
        ({"archs": "nb201"}, "archs: wanted a sequence of architectures, got str"),
        ({"archs": [3]}, r"archs\[0\]: wanted an Architecture"),
        ({"batches": []}, r"batches\[0\]: wanted at least one minibatch, got none"),
        ({"batches": [BATCHES, []]}, r"batches\[1\]: wanted at least one minibatch, got none"),
        ({"batches": [BATCHES, stream(side=6)]}, r"batches\[1\]: wanted images of \[8, 8\]"),
        ({"batches": stream(2, side=4, size=1)}, "running statistics need more than one value"),
        ({"steps": 0}, "steps: wanted a positive integer, got 0"),
        ({"steps": 1.5}, "steps: wanted a positive integer, got 1.5"),
        ({"supernets": []}, "supernets: wanted at least one, got none"),
        (
            {"supernets": [SUPERNET, Supernet.create(SupernetConfig(channels=2), 0)]},
            r"supernets\[1\]: wanted a supernet of",
        ),
        ({"validation": []}, "validation: wanted at least one minibatch, got none"),
        ({"validation": stream(1, side=6)}, r"validation: wanted images of \[8, 8\]"),
        ({"validate_at": (0,)}, r"validate_at: \(0,\) needs validation minibatches"),
        ({"validate_at": (3,)}, r"validate_at: wanted 0\.\.2 \(steps taken\), got 3"),
        ({"mini_at": (-1,)}, r"mini_at: wanted 0\.\.2 \(steps taken\), got -1"),
        ({"bn": "running"}, "bn: running statistics asked for cells"),
        ({"bn": "frozen"}, r"bn: wanted cells\[/others\]"),
        ({"precision": "fp16"}, "precision: wanted one of fp32, tf32, bf16, fp64, got 'fp16'"),
        ({"backend": "gpu"}, "backend: wanted one of auto, cpu, cuda, reference, got 'gpu'"),
        ({"backend": "reference", "precision": "bf16"}, "no training in 'bf16' with backend"),
        ({"threads": 0}, "threads: wanted 1"),
        (
            {"archs": Trainings(ARCHS[:2], np.ones(2), TWICE, TWICE)},
            "lr: the trainings have learning rates of their own",
        ),
        (
            {"archs": Trainings(ARCHS[:2], np.ones(2), TWICE + 1, TWICE), "lr": None},
            r"weight_set: wanted integers 0\.\.0, got \[1, 1\]",
        ),
        (
            {"archs": Trainings(ARCHS[:2], np.ones(2), TWICE, TWICE - 1), "lr": None},
            r"data_order: wanted integers 0\.\.0, got \[-1, -1\]",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, message):
    call = {"supernets": SUPERNET, "archs": ARCHS, "batches": BATCHES, "steps": 2, "lr": 0.1}
    with pytest.raises(ValueError, match=message):
        finetune(**{**call, **changes})


def test_trainings_must_fit_together():
    with pytest.raises(ValueError, match=r"lr: wanted one for each of 2 trainings, got shape \[1"):
        Trainings(ARCHS[:2], np.ones(1), TWICE, TWICE)


def test_running_statistics_need_affine_cells():
    config = SupernetConfig(channels=4, cells_per_stage=1, classes=4, in_channels=1, track=True)
    with pytest.raises(ValueError, match="need affine=True after fine-tuning"):
        finetune(
            Supernet.create(config, 0), ARCHS, BATCHES, steps=1, lr=0.1, validation=VALID,
            bn="running",
        )  # fmt: skip


def test_public_names():
    assert nasfast.finetune is finetune
    assert {"finetune", "FineTuning", "Trainings", "Sgd"} <= set(nasfast.__all__)
    assert Sgd() == nasfast.Sgd()
