# SPDX-License-Identifier: MIT
"""The CUDA operators between features on the emulated device, against those of the CPU."""

import emulated_ops
import pytest
import torch

import nasfast.ops  # noqa: F401  (registers those of the CPU)

ALL = dict(kinds=[0, 1, 2, 2, 3, 4], kernels=[1, 1, 1, 3, 3, 3], fields=[0, 0, 3, 2, 0, 0])
SHAPES = [(3, 5, 7, 9), (4, 16, 6, 5), (1, 1, 1, 2)]
F32, BF16 = torch.float32, torch.bfloat16
CPU = torch.ops.nasfast


@pytest.fixture(scope="module")
def card():
    return emulated_ops.operators()


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_layout(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:1].expand_as(x) if layout == "expanded" else x


def given(shape, dtype=F32, layout="contiguous", **changes):
    channels = shape[1]
    count = channels * channels * (1 + 9) + 5 * channels
    x = in_layout(random(*shape).to(dtype), layout)
    call = dict(x=x, weights=random(6, seed=1), params=random(count, seed=2), **ALL, threads=0)
    return call | changes


def there_and_back(library, call, needs_x=True):
    out, statistics, saved = library.mixed_op.default(**call)
    grad = in_layout(random(*out.shape, seed=3).to(out.dtype), "contiguous")
    candidates = [call[name] for name in ALL]
    return (
        out,
        statistics,
        *library.mixed_op_backward.default(
            grad, call["weights"], call["params"], statistics, saved, *candidates, needs_x, 0
        ),
    )


def apart(own, expected):
    scale = float(expected.double().norm())
    return float((own.double() - expected.double()).norm()) / max(scale, 1e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixed_op(card, shape, dtype, layout):
    call = given(shape, dtype, layout)
    own, expected = there_and_back(card, call), there_and_back(CPU, call)
    for mine, wanted in zip(own, expected, strict=True):
        assert (mine.shape, mine.dtype) == (wanted.shape, wanted.dtype)
        assert mine.stride() == wanted.stride()
        assert apart(mine, wanted) <= {F32: 1e-4, BF16: 0.02}[dtype]
    out, statistics, grad_x, *rest = there_and_back(card, call, needs_x=False)
    assert grad_x.numel() == 0
    for mine, wanted in zip((out, statistics, *rest), (*own[:2], *own[3:]), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_relu_conv_bn(card, dtype, stride):
    for layout in ("contiguous", "channels_last", "expanded"):
        x = in_layout(random(3, 5, 7, 6).to(dtype), layout)
        weight = random(4, 5, 3, 3, seed=1).to(dtype).transpose(2, 3)
        own, expected = (
            library.relu_conv_bn.default(x, weight, stride, 0.01) for library in (card, CPU)
        )
        assert (own.shape, own.dtype) == (expected.shape, dtype)
        assert own.stride() == expected.stride()
        assert apart(own, expected) <= {F32: 1e-5, BF16: 0.01}[dtype]
    nothing = card.relu_conv_bn.default(x[:0], weight, stride, 0.01)
    assert nothing.shape == (0, *own.shape[1:])
    one = card.relu_conv_bn.default(x[:1, :, :1, :1], weight, 1, 1e-5)
    assert (one == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=torch.zeros(2, 5, 4, 4).double()), "mixed_op: x: wanted dtype float32 or bfloat16"),
        (dict(x=torch.zeros(0, 5, 4, 4)), r"mixed_op: x: wanted features, got \[0, 5, 4, 4\]"),
        (dict(x=torch.zeros(5, 4, 4)), "mixed_op: x: wanted shape"),
        (dict(weights=torch.ones(5)), r"mixed_op: weights: wanted shape \[6\], got \[5\]"),
        (dict(params=torch.ones(9)), r"mixed_op: params: wanted shape \[275\], got \[9\]"),
        (dict(kinds=[0, 1, 2, 2, 3, 5]), r"mixed_op: kinds: wanted 0\.\.4, got 5"),
        (dict(kernels=[1, 1, 1, 3, 3, 31]), "mixed_op: a value of 5 channels: more than fit"),
        (dict(fields=[0, 0, 3, 4, 0, 0]), r"mixed_op: fields: wanted 0\.\.3, got 4"),
        (dict(threads=4097), r"mixed_op: threads: wanted 0\.\.4096, got 4097"),
    ],
)
def test_mixed_op_refuses(card, changes, message):
    with pytest.raises(RuntimeError, match=message):
        card.mixed_op.default(**given((2, 5, 4, 4), **changes))


def test_what_was_saved_is_taken_as_it_came(card):
    call = given((2, 5, 4, 4))
    out, statistics, saved = card.mixed_op.default(**call)
    candidates = [call[name] for name in ALL]
    moved = torch.cat([saved[:1], saved])[1:]
    for wrong, kept, message in (
        (statistics, saved[:-1], "saved: wanted shape"),
        (statistics, moved, "saved: wanted the tensor that mixed_op returned"),
        (statistics[:1], saved, "statistics: wanted shape"),
    ):
        with pytest.raises(RuntimeError, match=f"mixed_op_backward: {message}"):
            card.mixed_op_backward.default(
                out, call["weights"], call["params"], wrong, kept, *candidates, True, 0
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(features=torch.zeros(2, 3, 4, 4).half()), "features: wanted dtype float32 or bfloat"),
        (dict(weight=torch.zeros(2, 4, 3, 3)), r"weight: wanted shape \[any, 3, 3, 3\]"),
        (dict(weight=torch.zeros(2, 3, 2, 2)), "weight: wanted an odd kernel"),
        (dict(weight=torch.zeros(2, 3, 31, 31)), "a value of 3 channels: more than fit"),
        (dict(stride=3), "stride: wanted 1 or 2, got 3"),
        (dict(eps=-1.0), "eps: wanted at least 0"),
    ],
)
def test_relu_conv_bn_refuses(card, changes, message):
    call = dict(features=torch.zeros(2, 3, 4, 4), weight=torch.zeros(2, 3, 3, 3), stride=1,
                eps=1e-5) | changes  # fmt: skip
    with pytest.raises(RuntimeError, match=f"relu_conv_bn: {message}"):
        card.relu_conv_bn.default(**call)
