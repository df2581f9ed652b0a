# SPDX-License-Identifier: MIT
"""Gradients of the CPU engine against autograd through the definition in float64."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_engine import ISAS, THREADS, batch_of

from nasfast import BatchNorm, Merge, Mode, Supernet, SupernetConfig, compile_archs, ops, spaces
from nasfast.plan import plan
from nasfast.program import build_joint
from nasfast.reference import Executor, Normaliser, Weights
from nasfast.spaces import NB201, CellSpec, OpKind, OpSpec

# Zeros, skips, pools, a convolution of nothing, pools in a row, then whatever comes.
ARCHS = [
    *(NB201.arch([op] * 6) for op in (0, 1, 4, 2, 3)),
    NB201.arch((0, 0, 0, 1, 3, 0)),
    NB201.arch((0, 4, 4, 0, 4, 4)),
    *NB201.sample(20, seed=5),
]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", request.param)
    return request.param


def randomised(config, seed=1):
    """A supernet whose scales and shifts are not all 1 and 0."""
    supernet = Supernet.create(config, seed)
    generator = torch.Generator().manual_seed(seed)
    supernet.arena.add_(0.2 * torch.rand(supernet.arena.shape, generator=generator))
    return supernet


def reference_gradients(
    program, supernet, network, batch, dtype, *, mixing=None, autocast=False
):  # fmt: skip
    """Loss, gradient of the arena and of the mixing weights of one lane, float64."""
    layout = program.layout
    tensors = {n: t.to(dtype) for n, t in supernet.named_tensors()}
    leaves = {p.name: tensors[p.name].clone() for p in layout.params}
    for p in layout.params:
        leaves[p.name].requires_grad_(not p.is_buffer)
    if mixing is not None:
        mixing = mixing.to(dtype, copy=True).requires_grad_()
    executor, norm = Executor(program, Weights(layout, leaves)), Normaliser(BatchNorm())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        stem = executor.stem(batch.images.to(dtype), norm)
        logits = executor.logits(network, stem, {}, norm, mixing)
    loss = F.cross_entropy(logits.to(dtype), batch.labels)
    loss.backward()
    gradient = torch.zeros(layout.arena_size, dtype=torch.float64)
    convolutions = {p.unit for p in layout.params if p.field == "weight" and len(p.shape) == 4}
    for p in layout.params:
        cancels = p.field == "bias" and p.unit in convolutions  # rounding is left of it
        if leaves[p.name].grad is not None and not cancels:
            own = leaves[p.name].grad.double().reshape(-1)
            gradient[p.offset : p.offset + p.size] = own
    of_mixing = torch.zeros(0)
    if mixing is not None:
        of_mixing = torch.zeros_like(mixing) if mixing.grad is None else mixing.grad
        of_mixing = of_mixing.detach().double().reshape(-1)
    return loss.item(), torch.cat([gradient, of_mixing])


def engine_gradients(program, supernet, lane, batch, precision, *, mixing=None, threads=1):
    """Loss and all gradients of one lane, float64."""
    images, height, width = len(batch.labels), *batch.images.shape[2:]
    cut = plan(program, batch=images, height=height, width=width, workers=threads)
    logits, gradient, of_mixing = ops.program_gradients(
        torch.from_numpy(cut.table()), supernet.arena, batch.images, labels=batch.labels,
        mixing=mixing, lane=lane, classes=supernet.config.classes, precision=precision,
        threads=threads,
    )  # fmt: skip
    loss = F.cross_entropy(logits.double(), batch.labels).item()
    return loss, torch.cat([gradient.double(), of_mixing.double().reshape(-1)])


def check_fp32(exact, theirs, ours, room=1.0):
    """The rule for fp32: 4 times PyTorch's own error, or 1e-5 of the largest gradient."""
    largest = exact.abs().max().item()
    allowed = max(4 * (theirs - exact).abs().max().item(), 1e-5 * max(1.0, largest))
    error = (ours - exact).abs().max().item()
    assert error <= room * allowed, (error, allowed, largest)


CASES = {  # channels, cells, images, height, width, affine
    "odd channels": (5, 1, 17, 7, 9, False),
    "constants": (4, 1, 3, 8, 8, True),
    "deep": (3, 2, 5, 9, 7, True),
    "one image": (3, 1, 1, 12, 9, False),
    "two elements": (3, 1, 1, 5, 3, False),
    "one pixel": (2, 1, 3, 1, 1, True),
    "full blocks": (4, 1, 64, 5, 3, False),
    "pairs of rows": (9, 1, 2, 11, 18, False),
}
# Where a channel has 2 or 3 elements its mean may be a hundred deviations: normalised by one scale
# and one shift it loses digits that PyTorch, which takes the mean away first, keeps.
ROOM = {"two elements": 20.0, "one pixel": 20.0}


@functools.cache
def case_of(name):
    channels, cells, images, height, width, affine = CASES[name]
    tracks = height > 1  # running statistics need more than one element a channel
    config = SupernetConfig(
        channels=channels, cells_per_stage=cells, affine=affine, fixed_track=tracks,
        last_track=tracks,
    )  # fmt: skip
    supernet, batch = randomised(config), batch_of(images, height, width=width)
    program = compile_archs(supernet, ARCHS)
    lanes = []
    for network in program.lanes[:, 0].tolist():
        exact, theirs = (
            reference_gradients(program, supernet, network, batch, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        lanes.append((exact, theirs))
    return program, supernet, batch, lanes


@pytest.mark.parametrize("name", CASES)
def test_fp32_is_as_exact_as_pytorch(isa, name):
    program, supernet, batch, lanes = case_of(name)
    for lane, ((exact_loss, exact), (_, theirs)) in enumerate(lanes):
        loss, ours = engine_gradients(program, supernet, lane, batch, "fp32", threads=THREADS[-1])
        assert loss == pytest.approx(exact_loss, rel=1e-4, abs=1e-5)
        check_fp32(exact, theirs, ours, ROOM.get(name, 1.0))


@pytest.mark.parametrize("merge", [Merge.NONE, Merge.DEAD, Merge.VALUE], ids=lambda m: m.name)
def test_fp32_at_other_levels_of_merging(merge):
    """Without merging dead edges are computed too: nothing comes back from them."""
    config = SupernetConfig(channels=4, cells_per_stage=1, affine=True)
    supernet, batch = randomised(config), batch_of(6, 6)
    program = compile_archs(supernet, ARCHS[3:12], merge=merge)
    for lane, network in enumerate(program.lanes[:, 0].tolist()):
        (_, exact), (_, theirs) = (
            reference_gradients(program, supernet, network, batch, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        check_fp32(exact, theirs, engine_gradients(program, supernet, lane, batch, "fp32")[1])


# Max pools and kernels of 5 and 9, which NAS-Bench-201 does not have.
OTHERS = CellSpec(**{
    **dataclasses.asdict(NB201),
    "name": "others",
    "ops": (
        OpSpec("none", OpKind.ZERO),
        OpSpec("skip", OpKind.IDENTITY),
        OpSpec("conv5", OpKind.CONV, 5),
        OpSpec("max3", OpKind.MAX_POOL, 3),
        OpSpec("avg5", OpKind.AVG_POOL, 5),
        OpSpec("max5", OpKind.MAX_POOL, 5),
        OpSpec("conv9", OpKind.CONV, 9),
    ),
})  # fmt: skip


@functools.cache
def other_case(width):
    supernet = randomised(SupernetConfig("others", channels=3, cells_per_stage=1))
    is_long = width > 99
    archs = [OTHERS.arch((3, 2, 5, 6, 4, 3))] if is_long else OTHERS.sample(10, seed=2)
    paths = compile_archs(supernet, archs)
    joint = build_joint(supernet.layout, mode=Mode("batch", affine=False))
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(supernet.layout.num_cells, joint.mixing_width, generator=generator)
    batch = batch_of(1 if is_long else 6, 9, width=width)
    runs = [(paths, lane, None) for lane in range(paths.num_lanes)]
    runs += [] if is_long else [(joint, 0, mixing)]
    rows = []
    for program, lane, weights in runs:
        network = int(program.lanes[lane, 0])
        exact, theirs = (
            reference_gradients(program, supernet, network, batch, dtype, mixing=weights)[1]
            for dtype in (torch.float64, torch.float32)
        )
        rows.append((program, lane, weights, exact, theirs))
    return supernet, batch, rows


@pytest.mark.parametrize("width", [7, 700])  # 700: one row fills a band
def test_every_primitive_of_a_cell(monkeypatch, isa, width):
    monkeypatch.setattr(spaces, "_SPACES", dict(spaces._SPACES))
    spaces.register(OTHERS)
    supernet, batch, rows = other_case(width)
    for program, lane, mixing, exact, theirs in rows:
        ours = engine_gradients(program, supernet, lane, batch, "fp32", mixing=mixing)[1]
        check_fp32(exact, theirs, ours)
        narrow = engine_gradients(program, supernet, lane, batch, "bf16", mixing=mixing)[1]
        assert narrow.isfinite().all()


@functools.cache
def bf16_case():
    supernet = Supernet.create(SupernetConfig(channels=8, cells_per_stage=1), seed=1)
    program, batch = compile_archs(supernet, NB201.sample(16, seed=8)), batch_of(32, 16)
    rows = [
        [
            reference_gradients(program, supernet, network, batch, dtype, autocast=autocast)[1]
            for dtype, autocast in ((torch.float64, False), (torch.float32, True))
        ]
        for network in program.lanes[:, 0].tolist()
    ]
    return program, supernet, batch, rows


def test_bf16_rounds_like_autocast(isa):
    """Errors are relative to the length of the lane's gradient."""
    program, supernet, batch, rows = bf16_case()
    ours, theirs = [], []
    for lane, (exact, cast) in enumerate(rows):
        own = engine_gradients(program, supernet, lane, batch, "bf16")[1]
        assert own.isfinite().all()
        size = exact.norm().item()
        ours.append((own - exact).norm().item() / size)
        theirs.append((cast - exact).norm().item() / size)
    assert np.median(ours) <= 1.5 * np.median(theirs), (np.median(ours), np.median(theirs))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("images", [1, 5])
def test_gradients_are_finite_wherever_the_definition_is(images, affine):
    """Constant channels have no deviation to divide by, and weights of 0 keep all of them so."""
    config = SupernetConfig(channels=3, cells_per_stage=1, affine=affine)
    batch = batch_of(images, 6)
    constant = torch.ones_like(batch.images) * torch.randn(1, 3, 1, 1)
    supernet = randomised(config)
    program = compile_archs(supernet, ARCHS[:12], merge=Merge.NONE)
    nothing = supernet.copy()
    nothing.arena.zero_()
    for weights in (supernet, nothing):
        for pixels in (batch.images, constant, torch.zeros_like(batch.images)):
            own = dataclasses.replace(batch, images=pixels)
            for lane, network in enumerate(program.lanes[:, 0].tolist()):
                _, exact = reference_gradients(program, weights, network, own, torch.float64)
                assert exact.isfinite().all()
                for precision in ("fp32", "bf16"):
                    loss, ours = engine_gradients(program, weights, lane, own, precision)
                    assert np.isfinite(loss) and ours.isfinite().all()


# Mixed operations.


def mixing_of(cells, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(cells, 30, generator=generator).reshape(cells, 6, 5).softmax(dim=-1)


@functools.cache
def joint_case(affine, kind):
    cells, channels = (2, 3) if kind == "deep" else (1, 5)
    config = SupernetConfig(channels=channels, cells_per_stage=cells, affine=affine)
    supernet, batch = randomised(config), batch_of(18, 7, width=6)
    layout = supernet.layout
    mixing = mixing_of(layout.num_cells)
    mask = None
    if kind == "masked":
        mask = np.random.default_rng(0).random((layout.num_cells, 6, 5)) < 0.6
        mask[0] = False  # a cell of zeros
        mask[0, 3, 1] = True
    if kind == "one by one":  # mixes of one term, mixed once more
        mask = np.zeros((layout.num_cells, 6, 5), dtype=np.bool_)
        for cell, edge in np.ndindex(mask.shape[:2]):
            mask[cell, edge, 1 + (cell + edge) % 4] = True
    if kind == "weights of 0":
        mixing[:, :, ::2] = 0
    if kind == "signed":
        mixing = mixing * 4 - 1
    program = build_joint(layout, mode=Mode("batch", affine), mask=mask)
    mixing = mixing.reshape(layout.num_cells, 30)[:, : program.mixing_width].contiguous()
    rows = [
        reference_gradients(program, supernet, 0, batch, dtype, mixing=mixing, autocast=autocast)
        for dtype, autocast in (
            (torch.float64, False), (torch.float32, False), (torch.float32, True)
        )
    ]  # fmt: skip
    return program, supernet, batch, mixing, rows


@pytest.mark.parametrize(
    "kind", ["softmax", "signed", "weights of 0", "masked", "one by one", "deep"]
)
@pytest.mark.parametrize("affine", [False, True])
def test_the_joint_supernet(isa, affine, kind):
    program, supernet, batch, mixing, rows = joint_case(affine, kind)
    (exact_loss, exact), (_, theirs), (_, cast) = rows
    loss, ours = engine_gradients(program, supernet, 0, batch, "fp32", mixing=mixing)
    assert loss == pytest.approx(exact_loss, rel=1e-4, abs=1e-5)
    check_fp32(exact, theirs, ours)
    begin = len(supernet.arena)
    check_fp32(exact[begin:], theirs[begin:], ours[begin:])
    assert ours[begin:].count_nonzero() == exact[begin:].count_nonzero()
    _, narrow = engine_gradients(program, supernet, 0, batch, "bf16", mixing=mixing)
    assert narrow.isfinite().all()
    assert (narrow - exact).norm() <= max(2 * (cast - exact).norm(), 0.1 * exact.norm())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_change_nothing(isa, precision):
    program, supernet, _, mixing, _ = joint_case(True, "softmax")
    batch = batch_of(50, 7)
    supernets = [(program, supernet, mixing)]
    config = SupernetConfig(channels=3, cells_per_stage=1)
    paths = Supernet.create(config, seed=2)
    supernets.append((compile_archs(paths, ARCHS[7:9]), paths, None))
    for program, supernet, mixing in supernets:
        one, *others = (
            engine_gradients(program, supernet, 0, batch, precision, mixing=mixing, threads=n)[1]
            for n in (1, 2, 3)
        )
        assert all(torch.equal(one, other) for other in others)


def test_a_gradient_of_logits_replaces_labels():
    program, supernet, batch, mixing, _ = joint_case(True, "softmax")
    cut = plan(program, batch=18, height=7, width=6)
    table = torch.from_numpy(cut.table())
    options = dict(mixing=mixing, classes=supernet.config.classes)
    direction = torch.randn(18, 10, generator=torch.Generator().manual_seed(0))
    logits, *own = ops.program_gradients(
        table, supernet.arena, batch.images, grad_logits=direction, **options
    )
    leaves = supernet.copy(torch.float64).leaves()
    weights = mixing.double().requires_grad_()
    executor = Executor(program, Weights(program.layout, leaves))
    norm = Normaliser(BatchNorm())
    exact = executor.logits(0, executor.stem(batch.images.double(), norm), {}, norm, weights)
    torch.testing.assert_close(logits.double(), exact, rtol=1e-4, atol=1e-4)
    (exact * direction).sum().backward()
    torch.testing.assert_close(own[1].double(), weights.grad, rtol=1e-3, atol=1e-3)
    alone, *nothing = ops.program_gradients(table, supernet.arena, batch.images, **options)
    assert torch.equal(alone, logits) and not any(gradient.numel() for gradient in nothing)
