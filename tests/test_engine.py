# SPDX-License-Identifier: MIT
"""The CPU engine against the definition, and its promise of the same bits in every setting."""

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from engine_samples import ARCHS, BATCHES, SHAPES, SUPERNET, batch_of, check_bf16, check_fp32
from hypothesis import given, settings
from hypothesis import strategies as st

from nasfast import Merge, Supernet, SupernetConfig, compile_archs, data, evaluate, ops, spaces
from nasfast.plan import plan
from nasfast.reference import BatchNorm
from nasfast.spaces import NB201, CellSpec, OpKind, OpSpec

ISAS = [name for name, missing in ops.cpu_info().missing.items() if not missing]
USABLE = len(os.sched_getaffinity(0))
THREADS = sorted({1, min(2, USABLE)})


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", request.param)
    return request.param


def engine_logits(program, supernet, images, bn, precision, threads=1):
    modes = BatchNorm.parse(bn)
    batch, _, height, width = images.shape
    cut = plan(program, batch=batch, height=height, width=width, workers=threads)
    logits = ops.subnet_forward(
        torch.from_numpy(cut.table()), supernet.arena[None], images, lanes=program.num_lanes,
        classes=supernet.config.classes, precision=precision, fixed=modes.fixed, last=modes.last,
        threads=threads,
    )  # fmt: skip
    return logits.double().numpy()


def check(program, supernet, images, bn="batch", threads=1):
    check_fp32(engine_logits(program, supernet, images, bn, "fp32", threads), program, supernet,
               images, bn)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp32_is_as_exact_as_pytorch(isa, shape):
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


def test_bf16_rounds_like_autocast(isa):
    supernet = Supernet.create(SupernetConfig(channels=8, cells_per_stage=2), seed=1)
    program = compile_archs(supernet, ARCHS)
    images = batch_of(32, 16).images
    logits = engine_logits(program, supernet, images, "batch", "bf16")
    check_bf16(logits, program, supernet, images)


@pytest.mark.parametrize("bn", ["recalibrate", "recalibrate/batch", "batch/recalibrate"])
def test_recalibration_agrees_with_the_reference(isa, bn):
    supernet = Supernet.create(SupernetConfig(channels=3, cells_per_stage=1), seed=0)
    batches = [batch_of(size, seed=size) for size in (5, 17, 16)]
    for calibration in (None, [batch_of(9, seed=4), batch_of(23, seed=5)]):
        options = dict(bn=bn, calibration=calibration)
        exact = evaluate(supernet, ARCHS, batches, precision="fp64", **options)
        ours = evaluate(supernet, ARCHS, batches, precision="fp32", **options)
        np.testing.assert_allclose(ours.lane_loss, exact.lane_loss, rtol=2e-5, atol=2e-5)


def test_every_primitive_of_a_cell(monkeypatch, isa):
    """Max pools and kernels of 5 too, which NAS-Bench-201 does not have."""
    monkeypatch.setattr(spaces, "_SPACES", dict(spaces._SPACES))
    kinds = [
        OpSpec("none", OpKind.ZERO),
        OpSpec("skip", OpKind.IDENTITY),
        OpSpec("conv5", OpKind.CONV, 5),
        OpSpec("max3", OpKind.MAX_POOL, 3),
        OpSpec("avg5", OpKind.AVG_POOL, 5),
        OpSpec("conv9", OpKind.CONV, 9),
    ]
    spec = CellSpec(**{**dataclasses.asdict(NB201), "name": "other", "ops": tuple(kinds)})
    archs = spec.sample(12, seed=2)
    spaces.register(spec)
    supernet = Supernet.create(SupernetConfig("other", channels=3, cells_per_stage=1), seed=0)
    program = compile_archs(supernet, archs)
    check(program, supernet, batch_of(6, 7).images)
    check(program, supernet, batch_of(2, 12, width=900).images)  # one row fills a band


# The same bits in every setting.

WHOLE = {
    precision: evaluate(SUPERNET, ARCHS, BATCHES, precision=precision, threads=1)
    for precision in ("fp32", "bf16")
}


@settings(max_examples=40)
@given(
    chosen=st.lists(st.integers(0, 39), min_size=1, max_size=40),
    kib=st.integers(6000, 9000),
    threads=st.sampled_from(THREADS),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_a_lane_is_the_same_whatever_else_is_in_the_call(chosen, kib, threads, precision):
    whole = WHOLE[precision]
    scores = evaluate(
        SUPERNET, [ARCHS[k] for k in chosen], BATCHES, memory=kib * 1024, threads=threads,
        precision=precision,
    )  # fmt: skip
    assert np.array_equal(scores.loss, whole.loss[chosen])
    assert np.array_equal(
        scores.lane_loss[scores.lane_of_arch], whole.lane_loss[whole.lane_of_arch[chosen]]
    )
    assert np.array_equal(
        scores.lane_correct[scores.lane_of_arch], whole.lane_correct[whole.lane_of_arch[chosen]]
    )


MEASURE = """
import re, sys, torch, nasfast
from nasfast.data import Batch
torch.set_num_threads(1)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
mib, threads, precision, space = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
shape = nasfast.SupernetConfig.published(space)
supernet = nasfast.Supernet.create(shape, seed=0)
batches = [Batch(torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64))]
archs = shape.spec.sample(24, seed=0)
options = dict(precision=precision, threads=threads)
small = [Batch(batch.images[:1], batch.labels[:1]) for batch in batches]
nasfast.evaluate(supernet, archs, small, **options)  # all but the feature maps is there now
before = peak()
nasfast.evaluate(supernet, archs, batches, memory=mib * 2**20, **options)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("space", "threads"), [("nb201", n) for n in THREADS] + [("nb1shot1-3", THREADS[-1])]
)
def test_the_least_memory_that_works_works_and_is_kept(space, threads, precision):
    """The budget that the message names is enough, and a process grows by little more."""
    supernet = Supernet.create(SupernetConfig.published(space), seed=0)
    archs, big = supernet.config.spec.sample(24, seed=0), [batch_of(64, 32)]
    options = dict(precision=precision, threads=threads)
    with pytest.raises(ValueError, match="memory: the values of") as refused:
        evaluate(supernet, archs, big, memory=2**20, **options)
    least = int(re.search(r"need (\d+) MiB", str(refused.value))[1])
    with pytest.raises(ValueError, match="memory: the values of"):
        evaluate(supernet, archs, big, memory=(least - 1) * 2**20, **options)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(least), str(threads), precision, space],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Packed weights, images and their blocks, logits, and the rounding of large pieces.
    assert int(done.stdout) <= least + 30


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_that_share_a_lane_change_nothing(isa, precision):
    """One lane and several threads: they share its blocks of images."""
    big = [batch_of(50)]
    for arch in ARCHS[:4]:
        one, *others = (
            evaluate(SUPERNET, [arch], big, threads=n, precision=precision) for n in THREADS
        )
        for other in others:
            assert np.array_equal(one.lane_loss, other.lane_loss)


@pytest.mark.parametrize("bn", ["recalibrate", "batch/recalibrate"])
def test_recalibrated_lanes_are_the_same_alone(bn):
    together = evaluate(SUPERNET, ARCHS, BATCHES, bn=bn)
    for k in (0, 7, 31):
        alone = evaluate(SUPERNET, [ARCHS[k]], BATCHES, bn=bn)
        assert alone.loss[0] == together.loss[k]


def test_weights_that_are_not_finite_mark_their_lanes_alone():
    broken = SUPERNET.copy()
    name = "cells.0.edges.1<-0.3.op.1.weight"  # 3x3 convolution of the first edge, first cell
    param = broken.layout.by_name[name]
    broken.arena[param.offset] = float("nan")
    for precision in ("fp32", "bf16"):
        scores = evaluate(broken, ARCHS, BATCHES, precision=precision)
        hit = ~np.isfinite(scores.loss)
        uses = np.array([arch.op_indices[0] == 3 for arch in ARCHS])
        assert hit.any() and (uses | ~hit).all()
        assert (scores.accuracy[hit] == 0).all()
        assert np.array_equal(scores.loss[~hit], WHOLE[precision].loss[~hit])


@pytest.mark.slow
def test_every_architecture_on_digits():
    """Every architecture of NAS-Bench-201 by the rule for fp32, on real images."""
    supernet = Supernet.create(SupernetConfig(channels=4, cells_per_stage=1, in_channels=1), seed=5)
    images = data.batches(data.load("digits").valid, 36)[0].images
    program = compile_archs(supernet, [NB201.from_index(k) for k in range(len(NB201))])
    check(program, supernet, images)
