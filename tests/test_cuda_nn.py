# SPDX-License-Identifier: MIT
"""nn.MixedOp and the operators between features on a card, against the definition in float64.

As tests/test_nn_fused.py says it for the CPU. It needs no more than torch, numpy and pytest.
"""

import copy

import mixed_samples
import pytest
import torch
import torch.nn.functional as F
from mixed_samples import (
    ALL,
    BF16,
    F32,
    MANY,
    SETS,
    check_operators,
    check_what_was_saved,
    compare,
    compare_bfloat16,
    compare_training,
    modules,
    results,
    spread,
)

from nasfast import cuda_device, ops
from nasfast.nn import MixedOp
from nasfast.primitives import Unit, normalise_batch

MISSING = cuda_device.why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

SHAPES = ((2, 1, 2, 1), (1, 5, 7, 9), (16, 16, 4, 4), (17, 5, 7, 9), (64, 16, 32, 32),
          (8, 70, 9, 5))  # fmt: skip
LAYOUTS = ("contiguous", "channels_last", "strided")


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """PyTorch would round what it multiplies to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def features(shape, *given, **options):
    return mixed_samples.features(shape, *given, device="cuda", **options)


def arguments(*given, **options):
    return mixed_samples.arguments(*given, device="cuda", **options)


@pytest.mark.parametrize("names", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_definition(shape, names):
    if names is MANY:  # whose windows leave a block of threads less room
        shape = (shape[0], min(shape[1], 24), *shape[2:])
    got = compare(features(shape), names, affine=True, bias=True)
    for name, gradient in got.items():
        assert not name.endswith("op.1.bias") or (gradient == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("shape", [(17, 5, 7, 9), (2, 16, 6, 4)], ids=str)
def test_layouts(shape, layout):
    compare(features(shape, layout=layout))


def test_running_statistics_move():
    compare(features((6, 6, 5, 5)), affine=True, track_running_stats=True)


@pytest.mark.parametrize("shape", [(16, 16, 8, 8), (5, 5, 7, 9), (64, 16, 32, 32)], ids=str)
def test_bfloat16(shape):
    compare_bfloat16(features(shape), affine=True)


def test_twice_and_in_every_layout_the_same_bits():
    module, _ = modules(6, ALL, "cuda", affine=True)
    for dtype in (F32, BF16):
        found = []
        for layout in (*LAYOUTS, "contiguous"):
            found.append(results(copy.deepcopy(module), features((50, 6, 9, 8), dtype, layout),
                                 spread(6)))  # fmt: skip
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(results(copy.deepcopy(module), features((50, 6, 9, 8), dtype), spread(6)))
        torch.cuda.synchronize()
        for other in found[1:]:
            assert all(torch.equal(found[0][name], other[name]) for name in found[0])


def test_training_comes_to_the_same_losses():
    compare_training("cuda", True)


def test_what_a_card_does_not_hold_is_left_to_the_definition(caplog):
    """Windows that reach far around every pixel of a tile."""
    names = ("skip_connect", "max_pool_31x31")
    module = MixedOp(16, names).cuda()
    x, weights = features((2, 16, 20, 20)), torch.ones(2, device="cuda")
    assert module(x, weights).shape == x.shape
    (said,) = caplog.messages
    assert said.startswith("nn.MixedOp: a value of 16 channels: more than fit")
    with pytest.raises(ValueError, match=r"'cuda' has no kernel for this call .a value of 16"):
        MixedOp(16, names, backend="cuda").cuda()(x, weights)


# The operators themselves.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("names", [ALL, ("none",), ("skip_connect", "max_pool_5x5")])
def test_opcheck(names, dtype):
    check_operators(arguments(names=names, dtype=dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=torch.zeros(2, 4, 4, 4)), "mixed_op: x: wanted a CUDA tensor"),
        (dict(weights=torch.ones(6)), "mixed_op: weights: wanted a CUDA tensor"),
        (dict(params=torch.ones(176)), "mixed_op: params: wanted a CUDA tensor"),
        (dict(kernels=[1, 1, 1, 2, 3, 3]), r"mixed_op: kernels: wanted an odd .* got 2"),
        (dict(kernels=[1, 1, 1, 3, 3, 31]), "mixed_op: a value of 4 channels: more than fit"),
        (dict(threads=-1), r"mixed_op: threads: wanted 0\.\.4096, got -1"),
    ],
)
def test_mixed_op_refuses(changes, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.nasfast.mixed_op.default(**arguments(**changes))


def test_what_was_saved_is_taken_as_it_came():
    check_what_was_saved(arguments())


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_they_are_repeated_by_a_graph_on_other_numbers(dtype):
    given = arguments((6, 5, 7, 9), dtype=dtype)
    rest = [given[name] for name in ("kinds", "kernels", "fields")]
    kernel = features((4, 5, 3, 3), dtype, seed=7)

    def there_and_back(x):
        out, statistics, saved = torch.ops.nasfast.mixed_op.default(**given | dict(x=x))
        grad = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape).to(dtype)
        call = (grad, given["weights"], given["params"], statistics, saved, *rest, True, 1)
        back = torch.ops.nasfast.mixed_op_backward.default(*call)
        return out, statistics, *back, ops.relu_conv_bn(x, kernel)

    x, others = given["x"].clone(), features((6, 5, 7, 9), dtype, seed=3)
    there_and_back(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = there_and_back(x)
    for numbers in (others, given["x"]):
        x.copy_(numbers)
        graph.replay()
        for got, wanted in zip(found, there_and_back(numbers), strict=True):
            assert torch.equal(got, wanted)


CONVOLUTIONS = [  # batch, in_channels, height, width, out_channels, kernel, stride
    (2, 3, 4, 5, 4, 3, 1),
    (16, 16, 8, 8, 16, 3, 1),
    (17, 16, 9, 7, 32, 3, 2),
    (15, 5, 8, 8, 3, 1, 1),
    (3, 4, 6, 6, 5, 1, 2),
    (4, 2, 7, 7, 70, 5, 1),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", CONVOLUTIONS, ids=str)
def test_relu_conv_bn_is_its_definition(sample, layout):
    batch, channels, height, width, out, kernel, stride = sample
    x = features((batch, channels, height, width), layout=layout)
    weight = features((out, channels, kernel, kernel), seed=1)

    def definition(x, weight):
        y = F.conv2d(F.relu(x), weight, stride=stride, padding=kernel // 2)
        return normalise_batch(y, Unit(weight, None, None, None, None, None))

    ours = ops.relu_conv_bn(x, weight, stride=stride)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    exact = definition(x.double(), weight.double())
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5)
    half, half_weight = x.bfloat16(), weight.bfloat16()
    ours = ops.relu_conv_bn(half, half_weight, stride=stride)
    assert ours.dtype == BF16
    exact = definition(half.double(), half_weight.double())
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.02)
    torch.library.opcheck(torch.ops.nasfast.relu_conv_bn.default, (half, half_weight, stride, 1e-5))


def test_relu_conv_bn_of_nothing_and_of_one_image():
    def zeros(*shape):
        return torch.zeros(shape, device="cuda")

    assert ops.relu_conv_bn(zeros(0, 3, 4, 4), zeros(2, 3, 3, 3)).shape == (0, 2, 4, 4)
    one = ops.relu_conv_bn(features((1, 3, 1, 1)), features((2, 3, 1, 1)))
    assert torch.equal(one, zeros(1, 2, 1, 1))
    with pytest.raises(RuntimeError, match="relu_conv_bn: weight: wanted a CUDA tensor"):
        ops.relu_conv_bn(features((1, 3, 1, 1)), torch.zeros(2, 3, 1, 1))
    with pytest.raises(RuntimeError, match="relu_conv_bn: features: wanted a CUDA tensor"):
        ops.relu_conv_bn(torch.zeros(1, 3, 1, 1), zeros(2, 3, 1, 1))
