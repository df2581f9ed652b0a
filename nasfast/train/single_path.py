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

from nasfast.data import Batch, TrainLoader
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
    with ``grad=None`` do. Edges that carry zero, or that the output does not depend on, are not on
    the live path. (A peer that multiplies by zero gives them a gradient of zero, so there weight
    decay and momentum go on, and tracked statistics of dead ends are updated.) Batch norm uses the
    statistics of the minibatch and updates running statistics where the supernet keeps them. The
    bits of the result hold for one number of PyTorch threads.

    Args:
        supernet: Weights, changed in place.
        loader: Minibatches of each epoch, in the precision of the supernet.
        sampler: Network of each step.
        settings: Hyper-parameters.
        state: Where to go on; from the start when left out. Changed in place.
        on_epoch: Called after each epoch, with the state to go on from.

    Returns:
        One record for each epoch trained.

    Raises:
        ValueError: If images or the state do not fit the supernet.
        FloatingPointError: If a loss or a gradient is not finite; weights and running statistics
            are those before that step.
    """
    _check_images(supernet, loader)
    state = state if state is not None else TrainState()
    stepper = _Stepper(supernet, settings, state)
    # Two edges may share weights that count how often they are used: each use stays one then.
    shares = supernet.config.weights_on == "node" and supernet.config.track
    records = []
    for epoch in range(state.epoch, settings.epochs):
        begin = time.perf_counter()
        lr = settings.lr_at(epoch)
        networks = sampler.draw(epoch, loader.steps_per_epoch)
        program = build(
            supernet.layout, request_array(supernet.layout, networks),
            mode=Mode("batch", supernet.config.affine),
            merge=Merge.DEAD if shares else Merge.LINEAR,
        )  # fmt: skip
        executor = Executor(program, stepper.weights)
        loss_sum, correct, images = 0.0, 0, 0
        for step, batch in enumerate(loader.epoch(epoch)):
            network = int(program.lanes[program.lane_of_request[step], 0])
            try:
                loss, right = stepper.step(executor, network, batch, lr)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} at epoch {epoch}, step {step} ({networks[step]}); "
                    "try a smaller lr or clip"
                ) from None
            loss_sum += loss * len(batch.labels)
            correct += right
            images += len(batch.labels)
        state.epoch, state.momentum = epoch + 1, stepper.momentum()
        elapsed_s = time.perf_counter() - begin
        records.append(EpochRecord(epoch, loss_sum / images, correct / images, lr, elapsed_s))
        if on_epoch is not None:
            on_epoch(records[-1], state)
    return records


class _Stepper:
    """Single SGD steps on leaf tensors that share the memory of a supernet's arena."""

    def __init__(self, supernet: Supernet, settings: TrainSettings, state: TrainState) -> None:
        self._clip = settings.clip
        tensors = {name: tensor.detach() for name, tensor in supernet.named_tensors()}
        buffers = {p.name for p in supernet.layout.params if p.is_buffer}
        self._buffers = [tensor for name, tensor in tensors.items() if name in buffers]
        self._trained = {n: t.requires_grad_() for n, t in tensors.items() if n not in buffers}
        self._optimizer = torch.optim.SGD(
            self._trained.values(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        for name, buffer in state.momentum.items():
            if name not in self._trained or self._trained[name].shape != buffer.shape:
                raise ValueError(f"state: momentum of {name!r} does not fit the supernet")
            own = self._optimizer.state[self._trained[name]]
            own["momentum_buffer"] = buffer.clone()
        self.weights = Weights(supernet.layout, tensors)
        self._norm = Normaliser(BatchNorm(), update=True)

    def step(self, executor: Executor, network: int, batch: Batch, lr: float) -> tuple[float, int]:
        """Take one step; return the loss before it and the images classified correctly."""
        before = [buffer.clone() for buffer in self._buffers]
        stem = executor.stem(batch.images, self._norm)
        logits = executor.logits(network, stem, {}, self._norm)
        loss = F.cross_entropy(logits, batch.labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grads = [t.grad for t in self._trained.values() if t.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            for buffer, old in zip(self._buffers, before, strict=True):
                buffer.copy_(old)
            raise FloatingPointError(
                f"training loss is {value}, the norm of its gradient {norm.item()}"
            )
        if self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), self._clip, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        return value, int((logits.argmax(dim=1) == batch.labels).sum())

    def momentum(self) -> dict[str, Tensor]:
        """Return copies of the momentum buffers, for the tensors that had a gradient so far."""
        buffers = {
            name: self._optimizer.state.get(tensor, {}).get("momentum_buffer")
            for name, tensor in self._trained.items()
        }
        return {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}


def _check_images(supernet: Supernet, loader: TrainLoader) -> None:
    config, images = supernet.config, loader.image_set
    channels = images.images.shape[1]
    if channels != config.in_channels or images.num_classes > config.classes:
        raise ValueError(
            f"loader: wanted images of {config.in_channels} channels and at most "
            f"{config.classes} classes, got {channels} channels and {images.num_classes} classes"
        )
    if loader.dtype != supernet.arena.dtype:
        raise ValueError(f"loader: wanted images in {supernet.arena.dtype}, got {loader.dtype}")
