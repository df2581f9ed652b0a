# SPDX-License-Identifier: MIT
"""Mixed operations for tests, and the rules they are held to, on the CPU and on a card.

It needs no more than torch and pytest.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasfast.nn import MixedOp
from nasfast.spaces import OpKind

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
ALL = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
MANY = ("max_pool_5x5", "skip_connect", "nor_conv_5x5", "none", "skip_connect", "avg_pool_5x5",
        "nor_conv_3x3")  # fmt: skip
SETS = (ALL, MANY, ("none",), ("skip_connect",), ("none", "nor_conv_1x1"), ("max_pool_3x3",))


def features(shape, dtype=F32, layout="contiguous", seed=0, device="cpu"):
    """Random ones, the same on every device."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = x.new_zeros(shape[0], shape[1], shape[2] * 2, shape[3] * 2)
        wide[:, :, ::2, ::2] = x
        return wide[:, :, ::2, ::2]
    return x


def spread(count):
    return [(-1) ** k * (0.3 + 0.2 * k) for k in range(count)]


def modules(channels, names, device="cpu", **flags):
    """The same random module twice: for the operator, and the definition."""
    torch.manual_seed(0)
    ours = MixedOp(channels, names, backend=device, **flags)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            is_gamma = name.endswith("2.weight")
            p.normal_(1.0, 0.2) if is_gamma else p.normal_(0.0, 0.3)
    plain = MixedOp(channels, names, backend="reference", **flags)
    plain.load_state_dict(ours.state_dict())
    return ours.to(device), plain.to(device)


def results(module, x, weights, *, needed=True, autocast=False):
    """Output and all gradients by name, float64; None stays None."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    dtype = F64 if x.dtype == F64 else F32
    weights = torch.tensor(weights, dtype=dtype, device=x.device, requires_grad=needed)
    with torch.autocast(x.device.type, BF16) if autocast else nullcontext():
        y = module(x, weights)
    if y.requires_grad:
        # Numbers that every precision has, so that their rounding is nobody's error; in no order,
        # or roundings of neighbours would be alike and add up.
        factors = features(y.shape, BF16, seed=9, device=x.device).to(y.dtype)
        (y * factors).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    found = dict(y=y.detach(), x=x.grad, weights=weights.grad, **grads, **buffers)
    return {name: None if t is None else t.double() for name, t in found.items()}


def assert_close_to_exact(ours, plain, exact, relative=1e-5):
    """The rule for fp32: 4 times the error of PyTorch's own float32, or 1e-5 of the largest."""
    # Gradients of biases are rounding, those of single elements too: a scale for all parameters.
    largest = max((float(t.abs().max()) for n, t in exact.items() if "_ops" in n and t is not None),
                  default=0.0)  # fmt: skip
    for name, wanted in exact.items():
        if wanted is None or ours[name] is None:
            assert wanted is ours[name], name
            continue
        scale = max(largest if "_ops" in name else 0.0, float(wanted.abs().max()), 1.0)
        allowed = max(4 * float((plain[name] - wanted).abs().max()), relative * scale)
        assert float((ours[name] - wanted).abs().max()) <= allowed, name


def compare(x, names=ALL, weights=None, *, needed=True, **flags):
    """Hold the operator's results against the definition's; return them."""
    weights = weights or spread(len(names))
    ours, plain = modules(x.shape[1], names, x.device.type, **flags)
    got = results(ours, x, weights, needed=needed)
    exact = results(copy.deepcopy(plain).double(), x.double(), weights, needed=needed)
    # The definition has no rounding of a single value; the operator divides it by sqrt(1e-5).
    relative = 1e-4 if x.numel() == x.shape[1] else 1e-5
    assert_close_to_exact(got, results(plain, x, weights, needed=needed), exact, relative)
    return got


def compare_bfloat16(x, **flags):
    """The error is at most twice that of PyTorch's autocast, or 2 roundings."""
    device = x.device.type
    ours, plain = modules(x.shape[1], ALL, device, **flags)
    x = x.to(BF16).float()
    exact = results(copy.deepcopy(plain).double(), x.double(), spread(6))
    theirs = results(plain, x, spread(6), autocast=True)
    largest = max(float(t.norm()) for n, t in exact.items() if n.startswith("_ops"))
    cast = copy.deepcopy(ours)
    for got in (results(cast, x, spread(6), autocast=True), results(ours, x.to(BF16), spread(6))):
        for name, wanted in exact.items():
            scale = largest if name.startswith("_ops") else float(wanted.norm())
            allowed = max(2 * float((theirs[name] - wanted).norm()), 2**-7 * scale)
            assert float((got[name] - wanted).norm()) <= allowed, name
    with torch.autocast(device, BF16):
        assert ours(x, torch.ones(6, device=device)).dtype == BF16
    half = torch.ones(6, dtype=BF16, device=device)
    assert ours.to(BF16)(x.to(BF16), half).dtype == BF16


class Network(nn.Module):
    """In the manner of DARTS: a stem, two nodes that mix, alphas, a classifier."""

    def __init__(self, backend, track):
        super().__init__()
        flags = dict(affine=True, track_running_stats=track, backend=backend)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.edges = nn.ModuleList(MixedOp(8, ALL, **flags) for _ in range(3))
        self.alphas = nn.Parameter(1e-3 * torch.randn(3, 6))

    def forward(self, images):
        weights = self.alphas.softmax(dim=-1)
        x = self.stem(images)
        node = self.edges[0](x, weights[0])
        node = self.edges[1](x, weights[1]) + self.edges[2](node, weights[2])
        return self.head(node.relu().mean(dim=(2, 3)))


def compare_training(device, track):
    """Eight steps of SGD come to the same losses by the operator and by the definition."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 16, 3, 8, 8, generator=generator).to(device)
    labels = torch.randint(0, 4, (8, 16), generator=generator).to(device)
    losses, nets = [], []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        nets.append(Network(backend, track).to(device))
        sgd = torch.optim.SGD(nets[-1].parameters(), 0.05, 0.9, weight_decay=3e-4)
        for x, wanted in zip(images, labels, strict=True):
            sgd.zero_grad()
            loss = F.cross_entropy(nets[-1](x), wanted)
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    assert losses[:8] == pytest.approx(losses[8:], abs=1e-4)
    for name, wanted in nets[1].state_dict().items():
        torch.testing.assert_close(nets[0].state_dict()[name], wanted, rtol=1e-3, atol=1e-3)


# The operator itself.


def arguments(shape=(3, 4, 5, 4), names=ALL, dtype=F32, device="cpu", **changes):
    """Of a call of ``mixed_op``, by name and in order."""
    module, _ = modules(shape[1], names, device, affine=True)
    units = [getattr(m, "unit", None) for m in module._ops]
    parts = [p.detach().flatten() for u in units if u
             for p in (u.weight, u.bias, u.gamma, u.beta) if p is not None]  # fmt: skip
    given = dict(
        x=features(shape, dtype, device=device),
        weights=torch.tensor(spread(len(names)), device=device),
        params=torch.cat(parts) if parts else torch.zeros(0, device=device),
        kinds=[int(op.kind) for op in module.ops], kernels=[op.kernel for op in module.ops],
        fields=[2 if op.kind == OpKind.CONV else 0 for op in module.ops], threads=1,
    )  # fmt: skip
    return given | changes


def check_operators(given):
    """PyTorch's own checks of an operator, there and back."""
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "weights", "params")}
    operator, backward = torch.ops.nasfast.mixed_op.default, torch.ops.nasfast.mixed_op_backward
    torch.library.opcheck(operator, tuple((given | leaves).values()))
    out, statistics, saved = operator(**given)
    grad, candidates = torch.randn_like(out), [given[n] for n in ("kinds", "kernels", "fields")]
    for needs_x in (True, False):
        args = (grad, given["weights"], given["params"], statistics, saved, *candidates, needs_x, 1)
        torch.library.opcheck(backward.default, args)


def check_what_was_saved(given):
    """The way back refuses what the way there has not returned."""
    out, statistics, saved = torch.ops.nasfast.mixed_op.default(**given)
    call = [out, given["weights"], given["params"], statistics]
    rest = [given[name] for name in ("kinds", "kernels", "fields")]
    changed = [
        (saved[:-1], "saved: wanted shape"),
        (torch.cat([saved[:1], saved])[1:], "saved: wanted the tensor that mixed_op returned"),
        (saved.char(), "saved: wanted dtype"),
    ]
    if saved.is_cuda:
        changed.append((saved.cpu(), "saved: wanted a CUDA tensor"))
    for wrong, message in changed:
        with pytest.raises(RuntimeError, match=f"mixed_op_backward: {message}"):
            torch.ops.nasfast.mixed_op_backward.default(*call, wrong, *rest, True, 1)
