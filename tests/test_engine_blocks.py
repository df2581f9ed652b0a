# SPDX-License-Identifier: MIT
"""Networks of choice blocks on the CPU engine: forward and gradients against the definition."""

import functools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_samples import batch_of, largest, reference_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import ISAS, THREADS, engine_logits
from test_engine import check as check_forward
from test_engine_gradients import check_fp32, engine_gradients, randomised, reference_gradients
from test_lane_engine import NESTEROV, distance, engine, reference
from test_train_engine import image_set

from nasfast import (
    Merge,
    Supernet,
    SupernetConfig,
    TrainSettings,
    UniformSampler,
    compile_archs,
    evaluate,
    train,
)
from nasfast.data import Augmentation, TrainLoader
from nasfast.layout import Layout
from nasfast.lower import Mode
from nasfast.plan import plan
from nasfast.program import build, build_training, request_array
from nasfast.train import FairSampler, TrainState

SPACES = ("nb1shot1-1", "nb1shot1-2", "nb1shot1-3")
CASES = {  # channels, cells a stage, images, height, width
    "odd channels": (5, 1, 17, 7, 9),
    "even": (4, 1, 16, 8, 8),
    "deep": (3, 2, 5, 9, 7),
    "one image": (3, 1, 1, 12, 10),
    "pairs of rows": (9, 1, 2, 11, 18),
}


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", request.param)
    return request.param


def archs_of(space, count=12):
    """Some architectures, with the deepest and the one of pools alone among them."""
    every = space.enumerate()
    convolutions = [arch.depth for arch in every]
    return [every[0], every[int(np.argmax(convolutions))], every[-1], *space.sample(count, seed=3)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SPACES)
def test_gradients(name, case, isa):
    channels, cells, images, height, width = CASES[case]
    config = SupernetConfig.published(name, channels=channels, cells_per_stage=cells, in_channels=2)
    supernet = randomised(config)
    archs = archs_of(config.spec, 4)
    program = build_training(Layout(config), archs)
    batch = batch_of(images, height, 2, width=width)
    for lane in range(program.num_lanes):
        network = int(program.lanes[lane, 0])
        _, exact = reference_gradients(
            program, supernet.copy(torch.float64), network, batch, torch.float64
        )
        _, theirs = reference_gradients(program, supernet, network, batch, torch.float32)
        _, ours = engine_gradients(program, supernet, lane, batch, "fp32")
        check_fp32(exact, theirs, ours)


# Forward.


# One space on every instruction set, the others on the one that is chosen.
@pytest.fixture(
    params=[(SPACES[1], isa) for isa in ISAS] + [(SPACES[0], ISAS[-1]), (SPACES[2], ISAS[-1])],
    ids="-".join,
)
def name_on_isa(request, monkeypatch):
    name, isa = request.param
    monkeypatch.setenv("NASFAST_ISA", isa)
    return name


@pytest.mark.parametrize("case", CASES)
def test_forward_is_as_exact_as_pytorch(name_on_isa, case):
    name = name_on_isa
    channels, cells, images, height, width = CASES[case]
    config = SupernetConfig.published(name, channels=channels, cells_per_stage=cells)
    program = compile_archs(randomised(config), archs_of(config.spec, 6))
    check_forward(program, randomised(config), batch_of(images, height, width=width).images)


@pytest.mark.parametrize("merge", [Merge.NONE, Merge.DEAD, Merge.LINEAR], ids=lambda m: m.name)
@pytest.mark.parametrize("bn", ["batch", "running", "batch/running", "running/batch"])
@pytest.mark.parametrize("name", SPACES)
def test_forward_in_every_mode_and_level_of_merging(name, bn, merge):
    supernet = randomised(SupernetConfig.published(name, channels=4, cells_per_stage=2), seed=3)
    program = compile_archs(supernet, archs_of(supernet.config.spec, 8), bn=bn, merge=merge)
    check_forward(program, supernet, batch_of(18, 9).images, bn, THREADS[-1])


def test_bf16_rounds_like_autocast(name_on_isa):
    """The rule for bf16, in the mode that the space is published with too."""
    supernet = randomised(SupernetConfig.published(name_on_isa, channels=8, cells_per_stage=1))
    images = batch_of(20, 16).images
    for bn in ("batch", "running"):
        program = compile_archs(supernet, archs_of(supernet.config.spec, 12), bn=bn)
        exact = reference_logits(program, supernet, images, bn, torch.float64)
        cast = reference_logits(program, supernet, images, bn, torch.float32, autocast=True)
        ours = largest(engine_logits(program, supernet, images, bn, "bf16") - exact)
        theirs = largest(cast - exact)
        assert np.median(ours / theirs) <= 1.2
        assert (ours <= np.maximum(2 * theirs, 0.05 * largest(exact))).all()


@pytest.mark.parametrize("bn", ["recalibrate", "recalibrate/batch", "running/recalibrate"])
@pytest.mark.parametrize("name", SPACES)
def test_recalibration_agrees_with_the_reference(name, bn):
    supernet = randomised(SupernetConfig.published(name, channels=3, cells_per_stage=1))
    archs = archs_of(supernet.config.spec)
    batches = [batch_of(size, 9, seed=size) for size in (5, 17, 16)]
    for calibration in (None, [batch_of(9, 9, seed=4), batch_of(23, 9, seed=5)]):
        options = dict(bn=bn, calibration=calibration)
        exact = evaluate(supernet, archs, batches, precision="fp64", **options)
        ours = evaluate(supernet, archs, batches, precision="fp32", **options)
        np.testing.assert_allclose(ours.lane_loss, exact.lane_loss, rtol=2e-5, atol=2e-5)


# The same bits in every setting.


@functools.cache
def whole_of(name, bn, precision):
    supernet = randomised(SupernetConfig.published(name, channels=6, cells_per_stage=1))
    archs = tuple(archs_of(supernet.config.spec, 30))
    batches = [batch_of(18, seed=k) for k in range(2)]
    scores = evaluate(supernet, archs, batches, bn=bn, precision=precision, threads=1)
    refused = ""
    try:
        evaluate(supernet, archs, batches, bn=bn, precision=precision, threads=1, memory=1)
    except ValueError as error:
        refused = str(error)
    least = int(re.search(r"need (\d+) MiB", refused)[1])
    return supernet, archs, batches, scores, least


@settings(max_examples=40)
@given(
    chosen=st.lists(st.integers(0, 32), min_size=1, max_size=33),
    room=st.integers(0, 4),
    threads=st.sampled_from(THREADS),
    bn=st.sampled_from(["batch", "running"]),
    precision=st.sampled_from(["fp32", "bf16"]),
    name=st.sampled_from(SPACES),
)
def test_a_lane_is_the_same_whatever_else_is_in_the_call(
    name, bn, precision, threads, room, chosen
):
    supernet, archs, batches, whole, least = whole_of(name, bn, precision)
    scores = evaluate(
        supernet, [archs[k] for k in chosen], batches, bn=bn, threads=threads,
        memory=(threads * least + room) * 2**20, precision=precision,
    )  # fmt: skip
    assert np.array_equal(
        scores.lane_loss[scores.lane_of_arch], whole.lane_loss[whole.lane_of_arch[chosen]]
    )
    assert np.array_equal(
        scores.lane_correct[scores.lane_of_arch], whole.lane_correct[whole.lane_of_arch[chosen]]
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SPACES)
def test_chunks_and_recalibrated_lanes_change_nothing(name, precision):
    supernet, archs, batches, whole, least = whole_of(name, "batch", precision)
    small = evaluate(supernet, archs, batches, precision=precision, threads=1, memory=least * 2**20)
    assert np.array_equal(small.lane_loss, whole.lane_loss)
    together = evaluate(supernet, archs, batches, bn="recalibrate", precision=precision)
    for k in (0, 7, 31):
        alone = evaluate(supernet, [archs[k]], batches, bn="recalibrate", precision=precision)
        assert alone.loss[0] == together.loss[k]


# Training.


def test_lanes_with_private_weights_train_as_the_reference(name_on_isa):
    """A few steps of fine-tuning: weights with running statistics, momentum, all records."""
    config = SupernetConfig.published(name_on_isa, channels=4, cells_per_stage=1)
    supernet = randomised(config)
    program = build(
        supernet.layout, request_array(supernet.layout, archs_of(config.spec, 6)),
        mode=Mode("batch", True),
    )  # fmt: skip
    cut = plan(program, batch=64, height=8, width=8)
    batches = [batch_of(size, 8, seed=size) for size in (18, 16, 5)]
    exact, records = reference(cut, supernet, NESTEROV, batches, 0.02, torch.float64)
    theirs, their_records = reference(cut, supernet, NESTEROV, batches, 0.02, torch.float32)
    states, own_records = engine(cut, supernet, NESTEROV, batches, 0.02, threads=THREADS[-1])
    for lane in exact:
        pairs = [
            (own_records[lane][field], records[lane][field], their_records[lane][field])
            for field in ("loss", "gradient_l1", "gradient_sum_l1")
        ]
        pairs += [
            (states[lane][field], exact[lane][field], theirs[lane][field])
            for field in ("weights", "momentum", "gradient_sum")
        ]
        for ours, wanted, other in pairs:
            allowed = max(4 * distance(other, wanted), 1e-5 * max(1, distance(wanted)))
            assert distance(ours, wanted) <= allowed
        assert (own_records[lane]["correct"] == records[lane]["correct"]).mean() > 0.9


@pytest.mark.parametrize("scope", ["network", "cell"])
@pytest.mark.parametrize("kind", [UniformSampler, FairSampler])
@pytest.mark.parametrize("name", SPACES)
def test_a_supernet_trains_as_the_reference(name, kind, scope):
    config = SupernetConfig.published(name, channels=4, cells_per_stage=1, classes=4, in_channels=1)
    settings = TrainSettings(epochs=1, lr=0.05, lr_min=0.02, paths=3, nesterov=False, clip=5.0)
    loader = TrainLoader(image_set(), 24, Augmentation(crop_padding=1, flip=True), seed=3)
    sampler = kind(config.spec, 5, scope=scope, cells=config.num_cells)
    found = []
    for backend, dtype in (
        ("reference", torch.float64), ("reference", torch.float32), ("cpu", torch.float32),
    ):  # fmt: skip
        supernet, state = Supernet.create(config, seed=1).copy(dtype), TrainState()
        images = replace(loader, dtype=dtype)
        records = train(
            supernet, images, sampler, settings, state=state, backend=backend,
            precision="fp64" if dtype == torch.float64 else "fp32",
        )  # fmt: skip
        found.append(({"arena": supernet.arena, **state.momentum}, records))
    (exact, records), (theirs, _), (ours, own_records) = found
    assert ours.keys() == exact.keys()
    assert not torch.equal(ours["arena"], Supernet.create(config, seed=1).arena)
    for tensor, wanted in exact.items():
        off, other = (run[tensor].double() - wanted for run in (ours, theirs))
        # Where a ReLU or a maximum turns by rounding, as it does in PyTorch too.
        assert off.norm() <= max(4 * other.norm(), 1e-3 * wanted.norm() + 1e-5), tensor
    for mine, wanted in zip(own_records, records, strict=True):
        assert mine.loss == pytest.approx(wanted.loss, abs=1e-5)
