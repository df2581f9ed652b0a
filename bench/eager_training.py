# SPDX-License-Identifier: MIT
"""What training by nasfast is compared with: the published code, and PyTorch at its best.

Every batch norm takes its statistics from the minibatch; the running ones, which ours updates, are
left alone here. Weights are float32; under bfloat16 autocast PyTorch casts those of convolutions at
each step.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eager_nb201 import EagerNet, published_supernet
from nasfast import Architecture, Merge, Supernet, SupernetConfig
from nasfast.data import Batch
from nasfast.explain import explain
from nasfast.lower import Mode
from nasfast.program import build, request_array
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights

LR = 0.001  # small: every repeat goes on from where the one before stopped
SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


class EagerTraining(EagerNet):
    """An :class:`EagerNet` whose weights are float32 leaves with gradients."""

    def __init__(
        self, supernet: Supernet, batch: Batch, *, bf16: bool, channels_last: bool,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(supernet, batch, bf16=bf16, channels_last=channels_last, device=device)
        buffers = {p.name for p in supernet.layout.params if p.is_buffer}
        self.tensors = {
            name: tensor.float().requires_grad_()
            for name, tensor in self.tensors.items()
            if name not in buffers
        }


@dataclass(frozen=True)
class Trainer:
    """Takes SGD steps, one on each architecture that it is given.

    Attributes:
        loss: Mean loss of the minibatch.
        params: Weights by our names.
        optimizer: What steps them.
        threads: Threads.
    """

    loss: Callable[[Architecture], Tensor]
    params: Mapping[str, Tensor]
    optimizer: torch.optim.SGD
    threads: int

    def __call__(self, archs: Sequence[Architecture]) -> list[float]:
        """Take the steps; return the loss before each."""
        torch.set_num_threads(self.threads)
        return [self._step(arch) for arch in archs]

    def _step(self, arch: Architecture) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(arch)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradients(self, arch: Architecture) -> tuple[float, dict[str, Tensor]]:
        """Return loss and gradients; no step is taken."""
        torch.set_num_threads(self.threads)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(arch)
        loss.backward()
        grads = {name: p.grad for name, p in self.params.items() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), grads


def sgd(params: Sequence[Tensor], lr: float = LR) -> torch.optim.SGD:
    """Return PyTorch's SGD in its fused form.

    Buffers of zeros are those of a first step; without them the fused form refuses steps on
    tensors of which some had a gradient before and others not.
    """
    optimizer = torch.optim.SGD(params, lr=lr, fused=True, **SGD)
    for param in params:
        optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
    return optimizer


def eager_trainer(
    supernet: Supernet, batch: Batch, *, bf16: bool, channels_last: bool, threads: int,
    lr: float = LR, device: str = "cpu",
) -> Trainer:  # fmt: skip
    """Return a trainer of a copy of the weights, by :class:`EagerTraining`."""
    net = EagerTraining(supernet, batch, bf16=bf16, channels_last=channels_last, device=device)

    def loss(arch: Architecture) -> Tensor:
        return net(arch).mean()

    return Trainer(loss, net.tensors, sgd(list(net.tensors.values()), lr), threads)


def published_trainer(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch, threads: int, lr: float = LR
) -> Trainer:
    """Return a trainer of a copy of the weights, by the published supernet."""
    net, choose = published_supernet(supernet, archs)

    def loss(arch: Architecture) -> Tensor:
        choose(arch)
        return F.cross_entropy(net(batch.images)[1], batch.labels)

    return Trainer(loss, dict(net.named_parameters()), sgd(list(net.parameters()), lr), threads)


def variants(precision: str) -> list[tuple[str, bool, bool]]:
    """Return name, bf16 and channels_last of PyTorch's ways; in bfloat16 float32 ones too."""
    return [
        (
            f"PyTorch {'bf16 autocast' if bf16 else 'fp32'} "
            f"{'channels_last' if channels_last else 'contiguous'}",
            bf16,
            channels_last,
        )
        for bf16 in ((False, True) if precision == "bf16" else (False,))
        for channels_last in (False, True)
    ]


def yardsticks(precision: str) -> list[bool]:
    """Return the layouts (channels_last or not) in which PyTorch's own error is measured.

    Gradients jump where rounding moves the input of a ReLU across 0. In float32 that is luck, and
    an error is the larger one of two layouts; bfloat16 has much of it in either.
    """
    return [True] if precision == "bf16" else [False, True]


def threaded(name: str, threads: int) -> str:
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def trainers_of(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch, options: argparse.Namespace,
    lr: float = LR,
) -> dict[str, Callable[[], Trainer]]:  # fmt: skip
    """Return makers of every baseline of a precision, by name.

    With all threads and, but for --quick, with one. Each call of a maker copies the weights.
    """
    makers: dict[str, Callable[[], Trainer]] = {}
    precision, threads = options.precision, options.threads
    for count in sorted({threads if options.quick else 1, threads}):
        makers[threaded("xautodl supernet", count)] = lambda count=count: published_trainer(
            supernet, archs, batch, count, lr
        )
        for name, bf16, channels_last in variants(precision):
            makers[threaded(name, count)] = (
                lambda bf16=bf16, channels_last=channels_last, count=count: eager_trainer(
                    supernet, batch, bf16=bf16, channels_last=channels_last, threads=count, lr=lr
                )
            )
    return makers


def exact_gradients(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch
) -> list[tuple[float, dict[str, Tensor]]]:
    """Return loss and gradients of each architecture by the definition in float64.

    Without merging a convolution of a constant would be normalised rounding.
    """
    double = supernet.copy(torch.float64)
    leaves, layout = double.leaves(), double.layout
    program = build(layout, request_array(layout, archs), mode=Mode("batch", False))
    executor, norm = Executor(program, Weights(layout, leaves)), Normaliser(BatchNorm())
    found = []
    for lane in program.lane_of_request.tolist():
        stem = executor.stem(batch.images.double(), norm)
        logits = executor.logits(int(program.lanes[lane, 0]), stem, {}, norm)
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        found.append((loss.item(), {n: t.grad for n, t in leaves.items() if t.grad is not None}))
        for leaf in leaves.values():
            leaf.grad = None
    return found


def gradient_error(grads: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """Return the error of all gradients together, relative: roots of sums of squares."""
    error = norm = 0.0
    for name, wanted in truth.items():
        own = grads.get(name)  # none: 0, as of biases that normalisation takes away
        off = wanted if own is None else own.double() - wanted
        error, norm = error + float(off.square().sum()), norm + float(wanted.square().sum())
    return (error / norm) ** 0.5


# What is trained.

ARCHS, ARCH_SEED, SEED = 64, 1, 0  # the list of space_nb201.py
TRAINING_PASSES = 3  # forward, gradients of inputs, gradients of weights: as much arithmetic each


def macs_of(config: SupernetConfig, arch: Architecture, side: int, merge: Merge) -> int:
    """Multiply-accumulates of one image, forward."""
    (step,) = explain(config.spec, [arch], config=config, image=(side, side), merges=[merge]).steps
    return step.macs


def chosen_archs(config: SupernetConfig, count: int, side: int) -> list[Architecture]:
    """Return so many architectures of the fixed list, evenly spaced by arithmetic."""
    archs = config.spec.sample(ARCHS, seed=ARCH_SEED, distinct=True)
    archs.sort(key=lambda arch: macs_of(config, arch, side, Merge.NONE))
    return [archs[(2 * k + 1) * len(archs) // (2 * count)] for k in range(count)]


def training_flop(
    config: SupernetConfig, archs: Sequence[Architecture], batch: int, side: int, merge: Merge
) -> int:
    """Floating-point operations of a training step on each architecture."""
    return TRAINING_PASSES * 2 * batch * sum(macs_of(config, a, side, merge) for a in archs)


def random_batch(config: SupernetConfig, batch: int, side: int) -> Batch:
    """Return random images and labels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, config.in_channels, side, side, generator=generator)
    return Batch(images, torch.randint(0, config.classes, (batch,), generator=generator))
