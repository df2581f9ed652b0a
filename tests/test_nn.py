# SPDX-License-Identifier: MIT
"""The mixed operation as a module, against the plain one of DARTS-style code."""

import pytest
import torch
from torch import nn

from nasfast.nn import MixedOp
from nasfast.spaces import NB201, OpKind, OpSpec

F64 = torch.float64
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
ONE_HOT = [0, 0, 0, 1, 0, 0]


class Scaled(nn.Module):
    """Zero as peers have it."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class Halves(nn.Module):
    """A skip connection of stride 2."""

    def __init__(self, channels, affine, track):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(channels, channels // 2, 1, 2, bias=not affine),
             nn.Conv2d(channels, channels - channels // 2, 1, 2, bias=not affine)]
        )  # fmt: skip
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)
        self.bn = nn.BatchNorm2d(channels, affine=affine, track_running_stats=track)

    def forward(self, x):
        x = x.relu()
        halves = [self.convs[0](x), self.convs[1](self.pad(x)[:, :, 1:, 1:])]
        return self.bn(torch.cat(halves, dim=1))


class Convolution(nn.Module):
    def __init__(self, channels, kernel, stride, affine, track):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, stride, kernel // 2, bias=not affine),
            nn.BatchNorm2d(channels, affine=affine, track_running_stats=track),
        )

    def forward(self, x):
        return self.op(x)


class Plain(nn.Module):
    """The mixed operation of DARTS-style code over :data:`NAMES`."""

    def __init__(self, channels, stride=1, affine=False, track=False):
        super().__init__()
        self._ops = nn.ModuleList([
            Scaled(stride),
            nn.Identity() if stride == 1 else Halves(channels, affine, track),
            Convolution(channels, 1, stride, affine, track),
            Convolution(channels, 3, stride, affine, track),
            nn.AvgPool2d(3, stride, 1, count_include_pad=False),
            nn.MaxPool2d(3, stride, 1),
        ])  # fmt: skip

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


def pair(stride=1, affine=False, track=False, channels=5):
    """Ours and the plain one with the same random weights, through a state dict."""
    torch.manual_seed(0)
    plain = Plain(channels, stride, affine, track).double()
    with torch.no_grad():
        for name, tensor in plain.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2) if name.endswith("var") else tensor.normal_()
    ours = MixedOp(channels, NAMES, stride=stride, affine=affine, track_running_stats=track)
    ours.double().load_state_dict(plain.state_dict(), strict=True)
    return ours, plain


def assert_same(ours, plain, *, counted=False):
    for name, wanted in plain.state_dict().items():
        if counted or not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours.state_dict()[name], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("affine", "track"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    "weights", [[0.3, -1.2, 0.7, 0.4, 1.1, -0.6], ONE_HOT, [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
)
def test_it_equals_the_plain_module(weights, affine, track, stride, training):
    ours, plain = pair(stride, affine, track)
    ours.train(training), plain.train(training)
    x = torch.randn(4, 5, 6, 7, dtype=F64)
    results = []
    for module in (ours, plain):
        own = x.clone().requires_grad_()
        mixing = torch.tensor(weights, dtype=F64, requires_grad=True)
        y = module(own, mixing)
        (y * torch.linspace(-1, 1, y.numel(), dtype=F64).view_as(y)).sum().backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        results.append(dict(y=y, x=own.grad, weights=mixing.grad, **grads))
    mine, wanted = results
    for name in wanted:
        torch.testing.assert_close(mine[name], wanted[name], rtol=1e-9, atol=1e-9)
    assert mine["weights"][0] == 0
    assert_same(ours, plain)


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_of_0_without_gradient_let_their_operations_rest(stride):
    ours, plain = pair(stride, affine=True, track=True)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    x, weights = torch.randn(4, 5, 6, 6, dtype=F64), torch.tensor(ONE_HOT, dtype=F64)
    y = ours(x, weights)
    torch.testing.assert_close(y, plain(x, weights), rtol=1e-9, atol=1e-9)
    y.square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == name.startswith("_ops.3.")
    for name, tensor in ours.state_dict().items():
        if name.endswith(("mean", "var")):
            assert torch.equal(tensor, before[name]) != name.startswith("_ops.3.")


@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_left_is_zero_with_gradients_of_0(stride):
    ours, _ = pair(stride)
    x = torch.full((2, 5, 5, 5), float("nan"), dtype=F64)
    y = ours(x, torch.zeros(6, dtype=F64))
    assert y.shape == (2, 5, 5 // stride + stride - 1, 5 // stride + stride - 1) and (y == 0).all()
    none = MixedOp(5, ["none"], stride=stride)
    weights = torch.ones(1, dtype=F64, requires_grad=True)
    none(x, weights).sum().backward()
    assert weights.grad.tolist() == [0]


class Network(nn.Module):
    """Two mixed operations, of stride 1 and 2, under alphas, and a classifier."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(5, 3)
        self.alphas = nn.Parameter(torch.zeros(2, 6))

    def forward(self, x):
        weights = self.alphas.softmax(dim=-1)
        return self.head(self.second(self.first(x, weights[0]), weights[1]).mean(dim=(2, 3)))


@pytest.mark.parametrize(("affine", "track"), [(False, False), (True, True)])
def test_some_steps_of_training_come_to_the_same(affine, track):
    (first, plain_first), (second, plain_second) = pair(1, affine, track), pair(2, affine, track)
    ours, plain = Network(first, second).double(), Network(plain_first, plain_second).double()
    plain.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 8, 5, 6, 6, dtype=F64, generator=generator)
    labels = torch.randint(0, 3, (5, 8), generator=generator)
    for net in (ours, plain):
        sgd = torch.optim.SGD(net.parameters(), 0.05, 0.9, nesterov=True, weight_decay=1e-3)
        for images, wanted in zip(x, labels, strict=True):
            sgd.zero_grad()
            nn.functional.cross_entropy(net(images), wanted).backward()
            sgd.step()
    assert_same(ours, plain)
    assert ours.alphas.detach().abs().min() > 1e-6
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(x[0]), plain(x[0]), rtol=1e-9, atol=1e-9)


def test_the_same_seed_gives_the_same_initial_weights():
    for stride in (1, 2):
        torch.manual_seed(3)
        plain = Plain(4, stride, affine=True, track=True)
        torch.manual_seed(3)
        ours = MixedOp(4, NAMES, stride=stride, affine=True, track_running_stats=True)
        assert list(ours.state_dict()) == list(plain.state_dict())
        for name, tensor in plain.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor)


def test_ways_to_name_the_operations():
    wide = OpSpec("nor_conv_5x5", OpKind.CONV, 5)
    assert MixedOp(2).ops == MixedOp(2, "nb201").ops == MixedOp(2, NB201).ops == NB201.ops
    assert MixedOp(2, [op.name for op in NB201.ops]).ops == NB201.ops
    assert MixedOp(2, ["nor_conv_5x5"]).ops == MixedOp(2, [wide]).ops == (wide,)
    assert "ops=(none, nor_conv_5x5), stride=2" in repr(MixedOp(2, ["none", wide], stride=2))
    without_bias = MixedOp(2, ["nor_conv_3x3"], bias=False)
    assert [*without_bias.state_dict()] == ["_ops.0.op.1.weight"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixedOp(0), "channels: wanted at least 1, got 0"),
        (lambda: MixedOp(2, stride=3), "stride: wanted 1 or 2, got 3"),
        (lambda: MixedOp(2, "nb202"), "nearest: nb201"),
        (lambda: MixedOp(2, []), "ops: wanted at least one operation"),
        (lambda: MixedOp(2, ["sep_conv_3x3"]), "with odd k, got 'sep_conv_3x3'"),
        (lambda: MixedOp(2, ["nor_conv_2x2"]), "with odd k, got 'nor_conv_2x2'"),
        (lambda: MixedOp(2, backend="gpu"), "wanted auto, cpu, cuda, reference, got 'gpu'"),
        (lambda: MixedOp(2)(torch.ones(1, 3, 4, 4), torch.ones(5)),
         r"x: wanted \[batch, 2, height, width\], got \[1, 3, 4, 4\]"),
        (lambda: MixedOp(2)(torch.ones(2, 4, 4), torch.ones(5)), r"x: .* got \[2, 4, 4\]"),
        (lambda: MixedOp(2)(torch.ones(1, 2, 4, 4), torch.ones(6)),
         r"weights: wanted \[5\], got \[6\]"),
        (lambda: MixedOp(2)(torch.ones(1, 2, 4, 4), torch.ones(1, 5)), r"weights: .* \[1, 5\]"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
