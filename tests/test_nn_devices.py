# SPDX-License-Identifier: MIT
"""Which mixed operations go to a card, and what is said of the others; no card is needed here."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nasfast import cuda_device, ops, slow_paths
from nasfast.nn import MixedOp, fused

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
SIMPLE = ("none", "skip_connect", "max_pool_3x3")  # without parameters, which are nowhere
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def said_anew():
    fused._refusal.cache_clear()
    slow_paths.warn_of_reference.cache_clear()


def on_card(*shape, dtype=torch.float32):
    """A tensor without numbers."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def pretend(monkeypatch, *, kernels=True, card="", refusal=""):
    """Let the build have kernels, the card be usable, and the operator take a call, or not.

    Returns what the operator is asked.
    """
    asked = []

    def refuse(*shape, **candidates):
        asked.append((*shape, *candidates.values()))
        return refusal

    monkeypatch.setattr(cuda_device, "has_kernels", lambda: kernels)
    monkeypatch.setattr(cuda_device, "why_not", lambda: card)
    monkeypatch.setattr(ops, "mixed_op_refusal", refuse)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    return asked


@pytest.mark.parametrize(
    ("has", "why"),
    [
        (dict(), ""),
        (dict(kernels=False), cuda_device.NO_KERNELS),
        (dict(card="Card 1 is too old"), "Card 1 is too old"),
        (dict(refusal="a value of 7 channels: more"), "a value of 7 channels: more"),
    ],
)
def test_a_call_goes_to_the_card_or_the_reason_is_logged_once(monkeypatch, caplog, has, why):
    pretend(monkeypatch, **has)
    module, x, weights = MixedOp(7, SIMPLE), on_card(2, 7, 4, 5), on_card(3)
    for _ in range(2):
        assert module._fuses(x, [None] * 3, weights) == (not why)
    said = [f"nn.MixedOp: {why}: plain PyTorch runs it, which is slow"] if why else []
    assert caplog.record_tuples == [("nasfast", logging.WARNING, line) for line in said]
    insisting = MixedOp(7, SIMPLE, backend="cuda")
    context = pytest.raises(ValueError, match="'cuda' has no kernel") if why else nullcontext()
    with context:
        assert insisting._fuses(x, [None] * 3, weights)


def test_the_operator_is_asked_once_for_each_shape(monkeypatch):
    asked = pretend(monkeypatch)
    module = MixedOp(7, SIMPLE)
    for batch, dtype in ((2, torch.float32), (3, torch.float32), (3, BF16)):
        assert module._fuses(on_card(batch, 7, 4, 5, dtype=dtype), [None] * 3, on_card(3))
    candidates = ([0, 1, 4], [1, 1, 3])
    assert asked == [(7, 4, 5, False, *candidates), (7, 4, 5, True, *candidates)]


def test_autocast_is_that_of_the_device(monkeypatch):
    asked = pretend(monkeypatch)
    x, weights, units = on_card(2, 7, 4, 5), on_card(3), [None] * 3
    specs = MixedOp(7, SIMPLE).ops
    with torch.autocast("cpu", BF16):
        assert fused.why_not(x, specs, units, weights) == ""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float16)
    assert fused.why_not(x, specs, units, weights) == "autocast to torch.float16"
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: BF16)
    assert fused.why_not(x, specs, units, weights) == ""
    assert [call[3] for call in asked] == [False, True]


def test_tensors_lie_together(monkeypatch):
    pretend(monkeypatch)
    specs, units = MixedOp(7, SIMPLE).ops, [None] * 3
    here, there = torch.zeros(2, 7, 4, 5), on_card(2, 7, 4, 5)
    assert fused.why_not(here, specs, units, on_card(3)) == "weights on device cuda:0, x on cpu"
    assert fused.why_not(there, specs, units, torch.ones(3)) == "weights on device cpu, x on cuda:0"
    assert fused.why_not(here.to("meta"), specs, units, torch.ones(3)) == "x on device meta"
    for backend, x, weights in (("cuda", here, torch.ones(3)), ("cpu", there, on_card(3))):
        with pytest.raises(ValueError, match=f"'{backend}' has no kernel .*x on device {x.device}"):
            MixedOp(7, SIMPLE, backend=backend)._fuses(x, units, weights)


@pytest.mark.parametrize(
    ("kinds", "channels", "dtype", "saved"),
    [  # as tests/csrc/cuda_mixed_op_test.cpp has them
        ([0, 1, 2, 2, 3, 4], 4, torch.float32, 5 * 2048 + 2 * (256 + 512)),
        ([0, 1, 2, 2, 3, 4], 17, BF16, 5 * 3072 + 2 * (256 + 768)),
        ([0], 17, BF16, 3072),
    ],
)
def test_sizes_while_tracing(kinds, channels, dtype, saved):
    x, count = on_card(3, channels, 5, 4, dtype=dtype), kinds.count(2)
    kernels = [1, 1, 1, 3, 3, 3][: len(kinds)]
    params = channels**2 * (1 + 9) if count else 0
    with x.fake_mode:
        weights, flat = (torch.empty(size, device="cuda") for size in (len(kinds), params))
        out, statistics, kept = torch.ops.nasfast.mixed_op.default(
            x, weights, flat, kinds, kernels, [0] * len(kinds), 0
        )
    assert out.shape == x.shape and out.is_contiguous(memory_format=torch.channels_last)
    assert statistics.shape == (count, 2, channels) and statistics.device.type == "cuda"
    assert (kept.shape, kept.dtype) == ((saved,), torch.uint8)


def test_a_build_without_kernels_says_so():
    if cuda_device.has_kernels():
        pytest.skip("this build has CUDA kernels")
    with pytest.raises(NotImplementedError):
        ops.mixed_op_refusal(4, 5, 5, False, kinds=[1], kernels=[1])
