# SPDX-License-Identifier: MIT
"""What training takes and gives: hyper-parameters, a record of each epoch, where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


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
        paths: Networks of a step; their gradients are added.
    """

    epochs: int
    lr: float = 0.025
    lr_min: float = 0.001
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip: float = 0.0
    schedule: str = "cosine"
    paths: int = 1

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a value is out of its range.
        """
        for name in ("epochs", "paths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")
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
        loss: Mean training loss of the paths, taken before each step.
        accuracy: Mean training accuracy of the paths, 0 to 1.
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
