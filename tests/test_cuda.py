# SPDX-License-Identifier: MIT
"""Scoring on a card: against the definition, and the promise of the same bits in every setting.

As tests/test_engine.py says it for the CPU engine, whose samples and rules these are.
"""

import re

import numpy as np
import pytest
import torch
from engine_samples import (
    ARCHS,
    BATCHES,
    SHAPES,
    SUPERNET,
    batch_of,
    check_bf16,
    check_fp32,
    check_tf32,
)

from nasfast import Merge, Supernet, SupernetConfig, compile_archs, cuda_device, evaluate, ops
from nasfast.data import Batch
from nasfast.plan import plan
from nasfast.reference import BatchNorm
from nasfast.spaces import NB201

MISSING = cuda_device.why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
PRECISIONS = cuda_device.PRECISIONS


def on_card(archs=ARCHS, batches=BATCHES, supernet=SUPERNET, **options):
    return evaluate(supernet, archs, batches, backend="cuda", **options)


def same(ours, others, rows=slice(None)):
    """Whether the bits of lanes are those of some requests of another call."""
    loss = others.lane_loss[others.lane_of_arch[rows]]
    correct = others.lane_correct[others.lane_of_arch[rows]]
    return np.array_equal(ours.lane_loss[ours.lane_of_arch], loss) and np.array_equal(
        ours.lane_correct[ours.lane_of_arch], correct
    )


def card_logits(program, supernet, images, bn, precision):
    modes = BatchNorm.parse(bn)
    batch, _, height, width = images.shape
    cut = plan(program, batch=batch, height=height, width=width)
    logits = ops.subnet_forward(
        torch.from_numpy(cut.table()), supernet.arena[None].cuda(), images.cuda(),
        lanes=program.num_lanes, classes=supernet.config.classes, precision=precision,
        fixed=modes.fixed, last=modes.last,
    )  # fmt: skip
    return logits.cpu().double().numpy()


def check(program, supernet, images, bn="batch"):
    logits = card_logits(program, supernet, images, bn, "fp32")
    check_fp32(logits, program, supernet, images, bn)


# The definition.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp32_is_as_exact_as_pytorch(shape):
    channels, cells, size, height, width = shape
    supernet = Supernet.create(SupernetConfig(channels=channels, cells_per_stage=cells), seed=1)
    program = compile_archs(supernet, ARCHS[:12])
    check(program, supernet, batch_of(size, height, width=width).images)


@pytest.mark.parametrize("merge", list(Merge), ids=lambda m: m.name)
@pytest.mark.parametrize("bn", ["batch", "running", "batch/running", "running/batch"])
def test_fp32_in_every_mode_and_level_of_merging(merge, bn):
    config = SupernetConfig(channels=4, cells_per_stage=2, affine=True, track=True)
    supernet = Supernet.create(config, seed=2)
    generator = torch.Generator().manual_seed(3)
    supernet.arena.add_(0.2 * torch.rand(supernet.arena.shape, generator=generator))
    program = compile_archs(supernet, ARCHS[:10], bn=bn, merge=merge)
    check(program, supernet, batch_of(18, 9).images, bn)


@pytest.mark.parametrize(("precision", "check_it"), [("bf16", check_bf16), ("tf32", check_tf32)])
def test_others_round_like_pytorch(precision, check_it):
    supernet = Supernet.create(SupernetConfig(channels=8, cells_per_stage=2), seed=1)
    program = compile_archs(supernet, ARCHS)
    images = batch_of(32, 16).images
    logits = card_logits(program, supernet, images, "batch", precision)
    check_it(logits, program, supernet, images)


@pytest.mark.parametrize("space", ["nb1shot1-1", "nb1shot1-3"])
def test_other_spaces(space):
    supernet = Supernet.create(SupernetConfig.published(space), seed=0)
    archs = supernet.config.spec.sample(6, seed=0)
    batch = batch_of(4, 16, channels=supernet.config.in_channels)
    exact = evaluate(supernet, archs, [batch], precision="fp64")
    theirs = evaluate(supernet, archs, [batch], backend="reference")
    ours = on_card(archs, [batch], supernet)
    allowed = 4 * np.abs(theirs.lane_loss - exact.lane_loss).max(axis=1)
    allowed = np.maximum(allowed, 1e-4 * np.maximum(1, np.abs(exact.lane_loss).max(axis=1)))
    assert (np.abs(ours.lane_loss - exact.lane_loss).max(axis=1) <= allowed).all()


def test_every_architecture_runs():
    """All of NAS-Bench-201, against the CPU engine."""
    supernet = Supernet.create(SupernetConfig(channels=4, cells_per_stage=1), seed=5)
    archs = [NB201.from_index(k) for k in range(len(NB201))]
    batch = [batch_of(9, 8)]
    ours = on_card(archs, batch, supernet)
    cpu = evaluate(supernet, archs, batch, backend="cpu")
    error = np.abs(ours.lane_loss - cpu.lane_loss) / np.maximum(1, np.abs(cpu.lane_loss))
    assert np.median(error.max(axis=1)) <= 1e-5
    assert error.max() <= 1e-2  # random supernets blow up what is rounded


# The same bits in every setting.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_twice_the_same_bits(precision):
    first, second = on_card(precision=precision), on_card(precision=precision)
    assert np.isfinite(first.loss).all()
    assert same(first, second)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lane_is_the_same_whatever_else_is_in_the_call(precision):
    whole = on_card(precision=precision)
    for chosen in ([7], [31, 0, 12], list(range(39, -1, -3))):
        scores = on_card([ARCHS[k] for k in chosen], precision=precision)
        assert same(scores, whole, chosen)


def least_memory(precision):
    """What the largest lane needs alone, by what is said when there is less."""
    memory = 1000
    while True:
        try:
            on_card(precision=precision, memory=memory)
            return memory
        except RuntimeError as error:
            needed = re.search(r"memory: lane \d+ needs (\d+) bytes", str(error))
            assert needed and int(needed[1]) > memory, error
            memory = int(needed[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_memory_gives_the_same_bits(precision):
    """From the largest lane at a time to all of them."""
    whole = on_card(precision=precision)
    least = least_memory(precision)
    for memory in (least, least + least // 2, 3 * least):
        assert same(on_card(precision=precision, memory=memory), whole)


def test_a_card_that_is_full_takes_fewer_lanes():
    """Memory that is asked for and refused is asked for in smaller pieces."""
    supernet = Supernet.create(SupernetConfig(cells_per_stage=1), seed=0)
    call = dict(batches=[batch_of(64, 32)], supernet=supernet)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    free, total = torch.cuda.mem_get_info()
    before = torch.cuda.memory_reserved()
    whole = on_card(**call, memory=free)
    needed = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + needed // 2
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    try:
        assert same(on_card(**call, memory=free), whole)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_minibatches_that_are_replayed_are_those_that_are_not(precision):
    """Many of one size are a graph, few are launched one by one; a partial one ends them."""
    many = [batch_of(6, seed=k) for k in range(7)] + [batch_of(3, seed=9)]
    together = on_card(batches=many, precision=precision)
    begin = 0
    for batch in many:
        end = begin + len(batch.labels)
        alone = on_card(batches=[batch], precision=precision)
        rows = together.lane_of_arch
        assert np.array_equal(
            together.lane_loss[rows, begin:end], alone.lane_loss[alone.lane_of_arch]
        )
        assert np.array_equal(
            together.lane_correct[rows, begin:end], alone.lane_correct[alone.lane_of_arch]
        )
        begin = end


def test_another_stream_computes_the_same():
    whole = on_card()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert same(on_card(), whole)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_are_not_finite_mark_their_lanes_alone(precision):
    whole, broken = on_card(precision=precision), SUPERNET.copy()
    name = "cells.0.edges.1<-0.3.op.1.weight"  # 3x3 convolution of the first edge, first cell
    broken.arena[broken.layout.by_name[name].offset] = float("nan")
    scores = on_card(supernet=broken, precision=precision)
    hit = ~np.isfinite(scores.loss)
    uses = np.array([arch.op_indices[0] == 3 for arch in ARCHS])
    assert hit.any() and (uses | ~hit).all()
    assert (scores.accuracy[hit] == 0).all()
    assert np.array_equal(scores.loss[~hit], whole.loss[~hit])


# The operator.

PROGRAM = compile_archs(SUPERNET, ARCHS[:6])
PLAN = plan(PROGRAM, batch=5, height=8, width=7)
TABLE = torch.from_numpy(PLAN.table())
IMAGES = batch_of(5, 8, width=7).images
LABELS = torch.tensor([0, 1, 2, 3, 0])


def arguments(**changes):
    return dict(
        table=TABLE, arenas=SUPERNET.arena[None].cuda(), images=IMAGES.cuda(),
        labels=LABELS.cuda(), sizes=[5], chunk=0, lanes=PROGRAM.num_lanes,
    ) | changes  # fmt: skip


def strided():
    return IMAGES.cuda().transpose(2, 3).contiguous().transpose(2, 3)


REFUSED = {
    "table": (lambda: dict(table=TABLE.cuda()), "table: wanted a CPU tensor"),
    "arenas": (lambda: dict(arenas=SUPERNET.arena[None]), "arenas: wanted a CUDA tensor"),
    "images": (lambda: dict(images=IMAGES), "images: wanted a CUDA tensor"),
    "labels": (lambda: dict(labels=LABELS), "labels: wanted a CUDA tensor"),
    "strides": (lambda: dict(images=strided()), "images: wanted a contiguous tensor"),
    "dtype": (lambda: dict(images=IMAGES.cuda().double()), "images: wanted dtype float32"),
    "label": (lambda: dict(labels=LABELS.cuda() + 9), r"labels: wanted 0\.\.9, got 1[0-2]"),
    "negative": (lambda: dict(labels=LABELS.cuda() - 1), r"labels: wanted 0\.\.9, got -1"),
    "lanes": (lambda: dict(lanes=2), "lanes: the chunk has"),
    "memory": (lambda: dict(memory=1000), r"memory: lane \d+ needs \d+ bytes for .*got 1000"),
    "mode": (lambda: dict(last="recalibrate"), "got recalibrate"),
    "calibration": (
        lambda: dict(calibration=IMAGES.cuda(), calibration_sizes=[5]),
        "calibration: wanted none",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_run_program_refuses(case):
    changes, message = REFUSED[case]
    with pytest.raises(RuntimeError, match=message):
        ops.run_program(**arguments(**changes()))
    ops.run_program(**arguments())  # nothing is left behind


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one card")
def test_tensors_of_two_cards_are_refused():
    with pytest.raises(RuntimeError, match="labels: wanted a tensor on the device of images"):
        ops.run_program(**arguments(labels=LABELS.to("cuda:1")))


def test_opcheck():
    given = arguments()
    torch.library.opcheck(
        torch.ops.nasfast.run_program.default,
        (given["table"], given["arenas"], given["images"], given["labels"], [3, 2], None, [], 0,
         given["lanes"], "fp32", "batch", "batch", 1, 0),
    )  # fmt: skip


def test_losses_are_those_of_the_logits():
    given = arguments()
    loss, correct = ops.run_program(**given)
    logits = ops.subnet_forward(
        TABLE, given["arenas"], given["images"], lanes=PROGRAM.num_lanes, classes=10
    )
    for row, lane in enumerate(PLAN.lanes_of(0).tolist()):
        expected = torch.nn.functional.cross_entropy(
            logits[lane], given["labels"], reduction="none"
        )
        torch.testing.assert_close(loss[row], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(correct[row], logits[lane].argmax(dim=1) == given["labels"])


def test_images_may_be_there_already():
    there = [Batch(batch.images.cuda(), batch.labels.cuda()) for batch in BATCHES]
    assert same(on_card(batches=there), on_card())
