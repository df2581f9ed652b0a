# SPDX-License-Identifier: MIT
"""A little of everything on a card, in all precisions, for tools that watch memory."""

import torch

from nasfast import Supernet, SupernetConfig, evaluate, finetune, joint_loss, ops
from nasfast.data import Batch
from nasfast.nn import MixedOp
from nasfast.spaces import NB201


def mix_and_convolve() -> None:
    """Go through a mixed operation and back, and through one convolution."""
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
    for channels in (5, 16):
        module = MixedOp(channels, names, affine=True, bias=True, backend="cuda").cuda()
        weights = torch.ones(len(names), device="cuda", requires_grad=True)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(3, channels, 7, 9, device="cuda", dtype=dtype, requires_grad=True)
            module(x, weights).sum().backward()
            weight = torch.randn(6, channels, 3, 3, device="cuda", dtype=dtype)
            y = ops.relu_conv_bn(x.detach(), weight, stride=2)
            assert y.isfinite().all() and x.grad.isfinite().all()
        print("mixed operation", channels, weights.grad.tolist())


def train(supernet: Supernet, batches: list[Batch]) -> None:
    """Train two lanes, and go through the joint supernet and back."""
    tuned = finetune(supernet, NB201.sample(2, seed=2), batches, steps=3, lr=0.01, backend="cuda")
    assert torch.from_numpy(tuned.curves.loss).isfinite().all()
    arena = supernet.arena.cuda().requires_grad_()
    images, labels = batches[0].images.cuda(), batches[0].labels.cuda()
    mixing = torch.full((6, 5), 0.2, device="cuda", requires_grad=True)
    joint = Supernet(supernet.config, arena, supernet.layout)
    joint_loss(joint, images, labels, mixing, backend="cuda").backward()
    print("training", tuned.curves.loss.tolist(), mixing.grad.sum().item())


def main() -> None:
    """Score lanes on full, repeated and partial minibatches; then train, mix and convolve."""
    supernet = Supernet.create(SupernetConfig(channels=8, cells_per_stage=1), seed=0)
    archs = NB201.sample(6, seed=1)
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.randn(size, 3, 10, 9, generator=generator),
            torch.randint(0, 10, (size,), generator=generator),
        )
        for size in (5, 5, 5, 5, 3)  # as many of one size as become a graph
    ]
    for precision in ("fp32", "tf32", "bf16"):
        scores = evaluate(supernet, archs, batches, precision=precision, backend="cuda")
        assert torch.from_numpy(scores.loss).isfinite().all()
        print(precision, scores.loss.tolist())
    train(supernet, batches)
    mix_and_convolve()


if __name__ == "__main__":
    main()
