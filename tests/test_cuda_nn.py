# SPDX-License-Identifier: MIT
"""nn.MixedOp and the operators between features on a card, against the definition in float64.

As tests/test_nn_fused.py says it for the CPU. It needs no more than torch, numpy and pytest.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasfast import cuda_device, ops
from nasfast.nn import MixedOp
from nasfast.primitives import Unit, normalise_batch
from nasfast.spaces import OpKind

MISSING = cuda_device.why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
ALL = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
MANY = ("max_pool_5x5", "skip_connect", "nor_conv_5x5", "none", "skip_connect", "avg_pool_5x5",
        "nor_conv_3x3")  # fmt: skip
SETS = (ALL, MANY, ("none",), ("skip_connect",), ("none", "nor_conv_1x1"), ("max_pool_3x3",))
SHAPES = ((2, 1, 2, 1), (1, 5, 7, 9), (16, 16, 4, 4), (17, 5, 7, 9), (64, 16, 32, 32),
          (8, 70, 9, 5))  # fmt: skip
LAYOUTS = ("contiguous", "channels_last", "strided")


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """PyTorch would round what it multiplies to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def spread(count):
    return [(-1) ** k * (0.3 + 0.2 * k) for k in range(count)]


def features(shape, dtype=F32, layout="contiguous", seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = x.new_zeros(shape[0], shape[1], shape[2] * 2, shape[3] * 2)
        wide[:, :, ::2, ::2] = x
        return wide[:, :, ::2, ::2]
    return x


def modules(channels, names, **flags):
    """The same random module twice: for the operator, and the definition."""
    torch.manual_seed(0)
    ours = MixedOp(channels, names, backend="cuda", **flags)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            is_gamma = name.endswith("2.weight")
            p.normal_(1.0, 0.2) if is_gamma else p.normal_(0.0, 0.3)
    plain = MixedOp(channels, names, backend="reference", **flags)
    plain.load_state_dict(ours.state_dict())
    return ours.cuda(), plain.cuda()


def results(module, x, weights, *, autocast=False):
    """Output and all gradients by name, float64; None stays None."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    dtype = F64 if x.dtype == F64 else F32
    weights = torch.tensor(weights, dtype=dtype, device="cuda", requires_grad=True)
    with torch.autocast("cuda", BF16) if autocast else nullcontext():
        y = module(x, weights)
    factors = torch.linspace(-1, 1, y.numel(), dtype=F64, device="cuda").view(y.shape)
    (y * factors.to(y.dtype)).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    found = dict(y=y.detach(), x=x.grad, weights=weights.grad, **grads, **buffers)
    return {name: None if t is None else t.double() for name, t in found.items()}


def compare(shape, names=ALL, layout="contiguous", **flags):
    """The rule for fp32: 4 times the error of PyTorch's own float32, or 1e-5 of the largest."""
    ours, plain = modules(shape[1], names, **flags)
    x = features(shape, layout=layout)
    exact = results(copy.deepcopy(plain).double(), x.double(), spread(len(names)))
    theirs = results(plain, x, spread(len(names)))
    got = results(ours, x, spread(len(names)))
    largest = max((float(t.abs().max()) for n, t in exact.items() if "_ops" in n and t is not None),
                  default=0.0)  # fmt: skip
    for name, wanted in exact.items():
        if wanted is None or got[name] is None:
            assert wanted is got[name], name
            continue
        scale = max(largest if "_ops" in name else 0.0, float(wanted.abs().max()), 1.0)
        allowed = max(4 * float((theirs[name] - wanted).abs().max()), 1e-5 * scale)
        assert float((got[name] - wanted).abs().max()) <= allowed, name
    return got


@pytest.mark.parametrize("names", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_definition(shape, names):
    got = compare(shape, names, affine=True, bias=True)
    for name, gradient in got.items():
        assert not name.endswith("op.1.bias") or (gradient == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("shape", [(17, 5, 7, 9), (2, 16, 6, 4)], ids=str)
def test_layouts(shape, layout):
    compare(shape, layout=layout)


def test_running_statistics_move():
    compare((6, 6, 5, 5), affine=True, track_running_stats=True)


@pytest.mark.parametrize("shape", [(16, 16, 8, 8), (5, 5, 7, 9), (64, 16, 32, 32)], ids=str)
def test_bfloat16(shape):
    """The error is at most twice that of PyTorch's autocast, or 2 roundings."""
    ours, plain = modules(shape[1], ALL, affine=True)
    x = features(shape).to(BF16).float()
    exact = results(copy.deepcopy(plain).double(), x.double(), spread(6))
    theirs = results(plain, x, spread(6), autocast=True)
    largest = max(float(t.norm()) for n, t in exact.items() if n.startswith("_ops"))
    cast = copy.deepcopy(ours)
    for got in (results(cast, x, spread(6), autocast=True), results(ours, x.to(BF16), spread(6))):
        for name, wanted in exact.items():
            scale = largest if name.startswith("_ops") else float(wanted.norm())
            allowed = max(2 * float((theirs[name] - wanted).norm()), 2**-7 * scale)
            assert float((got[name] - wanted).norm()) <= allowed, name
    with torch.autocast("cuda", BF16):
        assert ours(x, torch.ones(6, device="cuda")).dtype == BF16


def test_twice_and_in_every_layout_the_same_bits():
    module, _ = modules(6, ALL, affine=True)
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


class Network(nn.Module):
    """In the manner of DARTS: a stem, two nodes that mix, alphas, a classifier."""

    def __init__(self, backend):
        super().__init__()
        flags = dict(affine=True, track_running_stats=True, backend=backend)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.edges = nn.ModuleList(MixedOp(8, ALL, **flags) for _ in range(3))
        self.alphas = nn.Parameter(1e-3 * torch.randn(3, 6))

    def forward(self, images):
        weights = self.alphas.softmax(dim=-1)
        x = self.stem(images)
        node = self.edges[0](x, weights[0])
        node = self.edges[1](x, weights[1]) + self.edges[2](node, weights[2])
        return self.head(node.relu().mean(dim=(2, 3)))


def test_training_comes_to_the_same_losses():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 16, 3, 8, 8, generator=generator).cuda()
    labels = torch.randint(0, 4, (8, 16), generator=generator).cuda()
    losses = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        net = Network(backend).cuda()
        sgd = torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=3e-4)
        for x, wanted in zip(images, labels, strict=True):
            sgd.zero_grad()
            loss = F.cross_entropy(net(x), wanted)
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    assert losses[:8] == pytest.approx(losses[8:], abs=1e-4)


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


def arguments(shape=(3, 4, 5, 4), names=ALL, dtype=F32, **changes):
    module, _ = modules(shape[1], names, affine=True)
    units = [getattr(m, "unit", None) for m in module._ops]
    parts = [p.detach().flatten() for u in units if u
             for p in (u.weight, u.bias, u.gamma, u.beta) if p is not None]  # fmt: skip
    given = dict(
        x=features(shape, dtype), weights=torch.tensor(spread(len(names)), device="cuda"),
        params=torch.cat(parts) if parts else torch.zeros(0, device="cuda"),
        kinds=[int(op.kind) for op in module.ops], kernels=[op.kernel for op in module.ops],
        fields=[2 if op.kind == OpKind.CONV else 0 for op in module.ops], threads=1,
    )  # fmt: skip
    return given | changes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("names", [ALL, ("none",), ("skip_connect", "max_pool_5x5")])
def test_opcheck(names, dtype):
    given = arguments(names=names, dtype=dtype)
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "weights", "params")}
    operator, backward = torch.ops.nasfast.mixed_op.default, torch.ops.nasfast.mixed_op_backward
    torch.library.opcheck(operator, tuple((given | leaves).values()))
    out, statistics, saved = operator(**given)
    grad, candidates = torch.randn_like(out), [given[n] for n in ("kinds", "kernels", "fields")]
    for needs_x in (True, False):
        args = (grad, given["weights"], given["params"], statistics, saved, *candidates, needs_x, 1)
        torch.library.opcheck(backward.default, args)


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
    given = arguments()
    out, statistics, saved = torch.ops.nasfast.mixed_op.default(**given)
    call = [out, given["weights"], given["params"], statistics]
    rest = [given[name] for name in ("kinds", "kernels", "fields")]
    for wrong, message in (
        (saved[:-1], "saved: wanted shape"),
        (torch.cat([saved[:1], saved])[1:], "saved: wanted the tensor that mixed_op returned"),
        (saved.cpu(), "saved: wanted a CUDA tensor"),
    ):
        with pytest.raises(RuntimeError, match=f"mixed_op_backward: {message}"):
            torch.ops.nasfast.mixed_op_backward.default(*call, wrong, *rest, True, 1)


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
