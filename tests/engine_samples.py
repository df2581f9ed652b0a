# SPDX-License-Identifier: MIT
"""What the tests of the engines share: samples, and the definition's logits lane by lane.

It needs no more than torch and numpy, like the tests that run on a card.
"""

import numpy as np
import torch

from nasfast import Supernet, SupernetConfig
from nasfast.data import Batch
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.spaces import NB201
from nasfast.tf32 import Tf32Convolutions

ARCHS = NB201.sample(40, seed=8)
SHAPES = [  # channels, cells, images, height, width
    (3, 1, 1, 5, 5),
    (4, 1, 5, 8, 8),
    (5, 2, 17, 7, 5),
    (16, 1, 20, 9, 16),
    (1, 1, 2, 1, 3),
    (4, 4, 5, 8, 8),
]


def batch_of(size, side=8, channels=3, seed=0, width=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, channels, side, width or side, generator=generator)
    return Batch(images, torch.randint(0, 10, (size,), generator=generator))


def reference_logits(program, supernet, images, bn, dtype, *, autocast=False):
    """[lanes, batch, classes], lane by lane, from nothing shared."""
    modes = BatchNorm.parse(bn)
    executor = Executor(
        program, Weights(program.layout, dict(supernet.copy(dtype).named_tensors()))
    )
    rows = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for network in program.lanes[:, 0].tolist():
            norm = Normaliser(modes)
            stem = executor.stem(images.to(dtype), norm)
            rows.append(executor.logits(network, stem, {}, norm).double())
    return torch.stack(rows).numpy()


# What a test runs in many settings.
SUPERNET = Supernet.create(SupernetConfig(channels=6, cells_per_stage=1), seed=0)
BATCHES = [batch_of(18, seed=k) for k in range(2)]


def largest(errors):
    return np.abs(errors).reshape(len(errors), -1).max(axis=1)


def check_fp32(logits, program, supernet, images, bn="batch"):
    """The rule for fp32: 4 times PyTorch's own error on the lane, or 1e-5 of its largest logit."""
    exact = reference_logits(program, supernet, images, bn, torch.float64)
    theirs = largest(reference_logits(program, supernet, images, bn, torch.float32) - exact)
    ours = largest(logits - exact)
    # Batch norms over two numbers or three magnify roundings without bound.
    times = 20 if images[:, 0].numel() < 16 else 4
    allowed = np.maximum(times * theirs, 1e-5 * np.maximum(1, largest(exact)))
    assert (ours <= allowed).all(), (ours / allowed).max()


def check_tf32(logits, program, supernet, images):
    """PyTorch rounds the operands alike and sums in another order, which random nets magnify."""
    exact = reference_logits(program, supernet, images, "batch", torch.float64)
    with Tf32Convolutions():
        rounded = reference_logits(program, supernet, images, "batch", torch.float32)
    ours, theirs = largest(logits - exact), largest(rounded - exact)
    some = theirs > 0  # not those that carry nothing
    assert some.sum() > len(some) // 2
    assert 1 / 1.5 <= np.median(ours[some] / theirs[some]) <= 1.5  # float32 is far nearer
    assert (ours <= np.maximum(2 * theirs, 0.0125 * largest(exact))).all()


def check_bf16(logits, program, supernet, images):
    """Errors of deep chains of convolutions reach a tenth in both: compared, not bounded."""
    exact = reference_logits(program, supernet, images, "batch", torch.float64)
    cast = reference_logits(program, supernet, images, "batch", torch.float32, autocast=True)
    ours, theirs = largest(logits - exact), largest(cast - exact)
    assert np.median(ours / theirs) <= 1.2
    assert (ours <= np.maximum(2 * theirs, 0.05 * largest(exact))).all()
