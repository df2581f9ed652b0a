# SPDX-License-Identifier: MIT
"""Train supernet weights one path at a time; with a fixed path, a stand-alone network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast.data import TrainLoader
from nasfast.lower import Merge, Mode
from nasfast.program import build, request_array
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.supernet import Supernet
from nasfast.train.samplers import Sampler


@dataclass(frozen=True)
class TrainSettings:
    """Hyper-parameters of training; the defaults are those of the NAS-Bench-201 supernets.

    Attributes:
        epochs: Passes over the training images.
        lr: Learning rate at the start.
        lr_min: Learning rate at the end of the cosine schedule.
        momentum: Momentum of SGD.
        nesterov: Whether momentum looks ahead.
        weight_decay: L2 penalty on every trained tensor.
        clip: Largest norm of the gradient over the tensors of a step; 0 turns clipping off.
        schedule: ``"cosine"`` from ``lr`` to ``lr_min``, by epoch, or ``"constant"``.
    """

    epochs: int
    lr: float = 0.025
    lr_min: float = 0.001
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip: float = 0.0
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a value is out of its range.
        """
        if self.epochs < 1:
            raise ValueError(f"epochs: wanted at least 1, got {self.epochs}")
        for name in ("lr", "lr_min", "momentum", "weight_decay", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: wanted a finite number of at least 0, got {value}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0, got 0")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule: wanted 'cosine' or 'constant', got {self.schedule!r}")

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        if self.schedule == "constant":
            return self.lr
        phase = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr_min + (self.lr - self.lr_min) * phase


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training came to.

    Attributes:
        epoch: Counted from 0.
        loss: Mean training loss, taken before each step.
        accuracy: Training accuracy, 0 to 1.
        lr: Learning rate.
        elapsed_s: Seconds.
    """

    epoch: int
    loss: float
    accuracy: float
    lr: float
    elapsed_s: float


@dataclass
class TrainState:
    """Where training stands, beside the weights themselves.

    Attributes:
        epoch: Next epoch.
        momentum: Momentum buffers by tensor name, for the tensors that had a gradient so far.
    """

    epoch: int = 0
    momentum: dict[str, Tensor] = field(default_factory=dict)


def train(
    supernet: Supernet,
    loader: TrainLoader,
    sampler: Sampler,
    settings: TrainSettings,
    *,
    state: TrainState | None = None,
    on_epoch: Callable[[EpochRecord, TrainState], None] | None = None,
) -> list[EpochRecord]:
    """Train a supernet in place by single paths.

    Each step draws one network and takes one SGD step on its loss. Only tensors on the live path
    have a gradient; the others, their momentum and their weight decay rest, as PyTorch parameters
    with ``grad=None`` do. Edges that cannot reach the output, or that carry zero, are not on the
    path. Batch norm uses the statistics of the minibatch and updates running statistics where
    the supernet keeps them.

    Args:
        supernet: Weights, changed in place.
        loader: Minibatches of each epoch.
        sampler: Network of each step.
        settings: Hyper-parameters.
        state: Where to go on; from the start when left out. Changed in place.
        on_epoch: Called after each epoch, with the state to go on from.

    Returns:
        One record for each epoch trained.

    Raises:
        ValueError: If images or labels do not fit the supernet.
        FloatingPointError: If the loss is not finite; the weights are those before that step.
    """
    _check_images(supernet, loader)
    state = state if state is not None else TrainState()
    tensors, optimizer = _optimizer(supernet, settings, state)
    weights = Weights(supernet.layout, tensors)
    norm = Normaliser(BatchNorm(), update=True)
    records = []
    for epoch in range(state.epoch, settings.epochs):
        begin = time.perf_counter()
        lr = settings.lr_at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        networks = sampler.draw(epoch, loader.steps_per_epoch)
        program = build(
            supernet.layout, request_array(supernet.layout, networks),
            mode=Mode("batch", supernet.config.affine), merge=Merge.LINEAR,
        )  # fmt: skip
        executor = Executor(program, weights)
        loss_sum, correct, images = 0.0, 0, 0
        for step, batch in enumerate(loader.epoch(epoch)):
            lane = int(program.lane_of_request[step])
            stem = executor.stem(batch.images, norm)
            logits = executor.logits(int(program.lanes[lane, 0]), stem, {}, norm)
            loss = F.cross_entropy(logits, batch.labels)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"training loss is {loss.item()} at epoch {epoch}, step {step} "
                    f"({networks[step]}); try a smaller lr or clip"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip > 0:
                trained = [t for t in tensors.values() if t.grad is not None]
                torch.nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            loss_sum += loss.item() * len(batch.labels)
            correct += int((logits.argmax(dim=1) == batch.labels).sum())
            images += len(batch.labels)
        state.epoch = epoch + 1
        state.momentum = _momentum(tensors, optimizer)
        elapsed_s = time.perf_counter() - begin
        records.append(EpochRecord(epoch, loss_sum / images, correct / images, lr, elapsed_s))
        if on_epoch is not None:
            on_epoch(records[-1], state)
    return records


def _check_images(supernet: Supernet, loader: TrainLoader) -> None:
    config, images = supernet.config, loader.image_set
    channels = images.images.shape[1]
    if channels != config.in_channels or images.num_classes > config.classes:
        raise ValueError(
            f"loader: wanted images of {config.in_channels} channels and at most "
            f"{config.classes} classes, got {channels} channels and {images.num_classes} classes"
        )


def _optimizer(
    supernet: Supernet, settings: TrainSettings, state: TrainState
) -> tuple[dict[str, Tensor], torch.optim.SGD]:
    """Make leaf tensors that share the arena's memory, and SGD over them with its momentum."""
    tensors = {name: tensor.detach() for name, tensor in supernet.named_tensors()}
    buffers = {p.name for p in supernet.layout.params if p.is_buffer}
    trained = {n: t.requires_grad_(True) for n, t in tensors.items() if n not in buffers}
    optimizer = torch.optim.SGD(
        trained.values(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    for name, buffer in state.momentum.items():
        optimizer.state[trained[name]]["momentum_buffer"] = buffer.clone()
    return tensors, optimizer


def _momentum(tensors: dict[str, Tensor], optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    return {
        name: optimizer.state[tensor]["momentum_buffer"]
        for name, tensor in tensors.items()
        if optimizer.state.get(tensor, {}).get("momentum_buffer") is not None
    }
