# SPDX-License-Identifier: MIT
"""The torch operators: registration (opcheck, compile), the definition, refused arguments."""

import pytest
import torch
import torch.nn.functional as F

from nasfast import Supernet, SupernetConfig, compile_archs, ops
from nasfast.plan import plan
from nasfast.primitives import Unit, normalise_batch
from nasfast.spaces import NB201

ISAS = [name for name, why in ops.cpu_info().missing.items() if not why]
MISSING = {name: why for name, why in ops.cpu_info().missing.items() if why}
SUPERNET = Supernet.create(SupernetConfig(channels=3, cells_per_stage=1, classes=4), seed=0)
PROGRAM = compile_archs(SUPERNET, NB201.sample(6, seed=1))
PLAN = plan(PROGRAM, batch=5, height=8, width=7, workers=1)
TABLE = torch.from_numpy(PLAN.table())
IMAGES = torch.randn(5, 3, 8, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0])
LANES = PROGRAM.num_lanes


def run_program(**changes):
    arguments = dict(
        table=TABLE, arenas=SUPERNET.arena[None], images=IMAGES, labels=LABELS, sizes=[5],
        chunk=0, lanes=LANES,
    ) | changes  # fmt: skip
    return ops.run_program(**arguments)


def subnet_forward(**changes):
    arguments = dict(
        table=TABLE, arenas=SUPERNET.arena[None], images=IMAGES, lanes=LANES, classes=4
    )
    return ops.subnet_forward(**(arguments | changes))


def features_like(shape, dtype=torch.float32, layout="contiguous", seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.zeros(shape[0], shape[1], shape[2] * 2, shape[3] * 2, dtype=dtype)
        wide[:, :, ::2, ::2] = x
        return wide[:, :, ::2, ::2]
    return x


SAMPLES = [  # batch, in_channels, height, width, out_channels, kernel, stride
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 4, 5, 4, 3, 1),
    (16, 16, 8, 8, 16, 3, 1),
    (17, 16, 9, 7, 32, 3, 2),
    (15, 5, 8, 8, 3, 1, 1),
    (3, 4, 6, 6, 5, 1, 2),
    (4, 2, 7, 7, 3, 5, 1),
    (33, 32, 4, 4, 16, 1, 1),
]


def sample_inputs(sample, dtype=torch.float32, layout="contiguous"):
    batch, channels, height, width, out, kernel, stride = sample
    features = features_like((batch, channels, height, width), dtype, layout)
    weight = features_like((out, channels, kernel, kernel), dtype, seed=1)
    return features, weight, stride


def definition(features, weight, stride):
    y = F.conv2d(F.relu(features), weight, stride=stride, padding=weight.shape[-1] // 2)
    return normalise_batch(y, Unit(weight, None, None, None, None, None))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_relu_conv_bn_is_its_definition(isa, sample, layout, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", isa)
    features, weight, stride = sample_inputs(sample, layout=layout)
    exact = definition(features.double(), weight.double(), stride)
    ours = ops.relu_conv_bn(features, weight, stride=stride)
    assert ours.dtype == features.dtype and ours.shape == exact.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    # Normalised values: sums of up to 144 products, 1e-7 each.
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5)
    half, half_weight = features.bfloat16(), weight.bfloat16()
    exact = definition(half.double(), half_weight.double(), stride)
    ours = ops.relu_conv_bn(half, half_weight, stride=stride)
    assert ours.dtype == torch.bfloat16
    # Two roundings to 8 bits: of the raw result and of the normalised one.
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.02)


def test_relu_conv_bn_of_nothing_and_of_one_image():
    assert ops.relu_conv_bn(torch.zeros(0, 3, 4, 4), torch.zeros(2, 3, 3, 3)).shape == (0, 2, 4, 4)
    one = ops.relu_conv_bn(torch.ones(1, 3, 1, 1), torch.randn(2, 3, 1, 1))
    assert torch.equal(one, torch.zeros(1, 2, 1, 1))


def test_relu_conv_bn_does_not_depend_on_threads_and_keeps_nan():
    features, weight, _ = sample_inputs((50, 6, 9, 9, 7, 3, 1))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.relu_conv_bn(features, weight))
    torch.set_num_threads(before)
    assert torch.equal(*results)
    features[3, 2, 4, 4] = float("nan")
    assert ops.relu_conv_bn(features, weight).isnan().all()


@pytest.mark.parametrize("sample", SAMPLES[:5], ids=str)
def test_opcheck_relu_conv_bn(sample):
    for dtype in (torch.float32, torch.bfloat16):
        features, weight, stride = sample_inputs(sample, dtype, "channels_last")
        torch.library.opcheck(
            torch.ops.nasfast.relu_conv_bn.default, (features, weight, stride, 1e-5)
        )


def test_opcheck_programs():
    arenas = SUPERNET.arena[None].clone()
    torch.library.opcheck(
        torch.ops.nasfast.run_program.default,
        (TABLE, arenas, IMAGES, LABELS, [3, 2], None, [], 0, LANES, "fp32", "batch", "batch", 1,
         2**30),
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.nasfast.subnet_forward.default,
        (TABLE, arenas, IMAGES, LANES, 4, "bf16", "batch", "batch", 1),
    )


def test_operators_compile_without_a_graph_break():
    features, weight, _ = sample_inputs(SAMPLES[2])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(features, weight, table, arenas, images):
        logits = torch.ops.nasfast.subnet_forward(
            table, arenas, images, LANES, 4, "fp32", "batch", "batch", 1
        )
        return torch.ops.nasfast.relu_conv_bn(features, weight, 1, 1e-5) * 2, logits.mean(dim=1)

    doubled, mean = both(features, weight, TABLE, SUPERNET.arena[None], IMAGES)
    assert torch.equal(doubled, 2 * ops.relu_conv_bn(features, weight))
    assert torch.equal(mean, subnet_forward().mean(dim=1))


def test_losses_are_those_of_the_logits():
    logits = subnet_forward()
    loss, correct = run_program()
    for row, lane in enumerate(PLAN.lanes_of(0).tolist()):
        expected = F.cross_entropy(logits[lane], LABELS, reduction="none")
        torch.testing.assert_close(loss[row], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(correct[row], logits[lane].argmax(dim=1) == LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(table=TABLE.long()), "table: wanted dtype int32, got int64"),
        (dict(table=TABLE[:-1]), "run_program: program table: "),
        (dict(table=TABLE[None]), r"table: wanted shape \[any\], got \[1, "),
        (dict(arenas=SUPERNET.arena), r"arenas: wanted shape \[any, \d+\], got \[\d+\]"),
        (dict(arenas=SUPERNET.arena[None].double()), "arenas: wanted dtype float32"),
        (dict(arenas=SUPERNET.arena[None][:0]), "arenas: the lanes name weight set 0"),
        (dict(images=IMAGES[:, :2].contiguous()), r"images: wanted shape \[5, 3, any, any\]"),
        (dict(images=IMAGES.double()), "images: wanted dtype float32"),
        (dict(images=IMAGES.transpose(2, 3)), "images: wanted a contiguous tensor"),
        (dict(images=IMAGES[:0], labels=LABELS[:0], sizes=[]), "images: wanted images, got none"),
        (dict(labels=LABELS[:4]), r"labels: wanted shape \[5\], got \[4\]"),
        (dict(labels=LABELS.int()), "labels: wanted dtype int64"),
        (dict(labels=LABELS + 1), "labels: wanted 0..3, got 4"),
        (dict(labels=LABELS - 1), "labels: wanted 0..3, got -1"),
        (dict(sizes=[5, 0]), "sizes: wanted minibatches of 1 to"),
        (dict(sizes=[4]), r"images: wanted shape \[4, 3"),
        (dict(chunk=1), "chunk: wanted 0..0, got 1"),
        (dict(lanes=2), f"lanes: the chunk has {LANES}, got 2"),
        (dict(precision="fp64"), "precision: wanted fp32 or bf16, got fp64"),
        (dict(fixed="eval"), "fixed: wanted batch, running or recalibrate, got eval"),
        (dict(threads=0), "threads: wanted 1..4096, got 0"),
        (dict(memory=-1), "memory: wanted bytes, or 0 for what is free, got -1"),
        (dict(calibration=IMAGES[:, :, :4].contiguous(), calibration_sizes=[5]),
         "calibration: wanted none, as no part recalibrates"),
        (dict(last="recalibrate", calibration=IMAGES[:, :, :4].contiguous(),
              calibration_sizes=[5]), "calibration: wanted shape"),
        (dict(calibration_sizes=[5]), "calibration_sizes: wanted none without calibration, got 1"),
        (dict(sizes=[-1]), "sizes: wanted minibatches of 1 to 16777216 images, got -1"),
        (dict(sizes=[2**62] * 3), "sizes: wanted minibatches of 1 to 16777216 images"),
        (dict(images=torch.zeros(5, 3, 9, 7)), "the table was made for images of at most 8x7"),
    ],
)  # fmt: skip
def test_run_program_refuses(changes, message):
    with pytest.raises(RuntimeError, match=message):
        run_program(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(features=torch.zeros(2, 3, 4, 4).double()),
         "features: wanted dtype float32 or bfloat16, got float64"),
        (dict(weight=torch.zeros(2, 3, 3, 3).bfloat16()),
         "weight: wanted dtype that of features, got bfloat16"),
        (dict(features=torch.zeros(2, 3, 4)), "features: wanted shape"),
        (dict(weight=torch.zeros(2, 4, 3, 3)), r"weight: wanted shape \[any, 3, 3, 3\]"),
        (dict(weight=torch.zeros(2, 3, 2, 2)), "weight: wanted an odd kernel"),
        (dict(stride=3), "stride: wanted 1 or 2, got 3"),
        (dict(stride=0), "stride: wanted 1 or 2, got 0"),
        (dict(eps=-1.0), "eps: wanted at least 0"),
    ],
)  # fmt: skip
def test_relu_conv_bn_refuses(changes, message):
    given = dict(features=torch.zeros(2, 3, 4, 4), weight=torch.zeros(2, 3, 3, 3), stride=1,
                 eps=1e-5) | changes  # fmt: skip
    operator = torch.ops.nasfast.relu_conv_bn.default
    with pytest.raises(RuntimeError, match=message):
        operator(**given)
    fake = {k: torch.empty_like(given[k], device="meta") for k in ("features", "weight")}
    with pytest.raises(RuntimeError, match="relu_conv_bn: "):  # refused while tracing too
        operator(**(given | fake))


def test_an_instruction_set_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", "mmx")
    with pytest.raises(RuntimeError, match=r"wanted one of baseline, avx2.*got mmx"):
        run_program()
    for name, why in MISSING.items():
        monkeypatch.setenv("NASFAST_ISA", name)
        with pytest.raises(RuntimeError, match=why):
            run_program()
