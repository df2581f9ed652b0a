# SPDX-License-Identifier: MIT
"""What takes the steps of training: plain PyTorch (the definition) or an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast import native
from nasfast.backends import concatenated
from nasfast.data import Batch
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import Program, trained_units
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.slow_paths import warn_of_slow_paths
from nasfast.supernet import Supernet
from nasfast.train.settings import TrainSettings, TrainState


@dataclass(frozen=True, eq=False)
class Taken:
    """What some steps came to; rows are those taken.

    Attributes:
        loss: Loss of each path before its step, float64 ``[steps, paths]``.
        correct: Images of the minibatch that each path classifies correctly, int64 likewise.
        problem: Why the next step was not taken; empty when all were.
    """

    loss: npt.NDArray[np.float64]
    correct: npt.NDArray[np.int64]
    problem: str = ""


class Stepper(Protocol):
    """Takes SGD steps on the weights of a supernet.

    A step adds the gradients of its paths, each of which runs the whole network on the minibatch.
    Tensors that no path of the step needs rest, with their momentum and weight decay. A step whose
    loss or gradient is not finite is not taken: weights and running statistics stay as before it.
    """

    def begin(self, program: Program, height: int, width: int, batch: int) -> None:
        """Take the networks of an epoch, the lanes of a program, and the size of images."""
        ...

    def take(self, lanes: Sequence[int], batches: Sequence[Batch], lr: float) -> Taken:
        """Take a step on each minibatch with its ``paths`` lanes; stop where one cannot be."""
        ...

    def momentum(self) -> dict[str, Tensor]:
        """Return copies of the momentum buffers, for the tensors that had a gradient so far."""
        ...


class ReferenceStepper:
    """The definition: autograd and ``torch.optim.SGD`` on leaves that share a supernet's memory.

    Args:
        supernet: Weights, changed in place.
        settings: Hyper-parameters.
        state: Momentum to go on from.

    Raises:
        ValueError: If the momentum does not fit.
    """

    def __init__(self, supernet: Supernet, settings: TrainSettings, state: TrainState) -> None:
        self._clip, self._paths = settings.clip, settings.paths
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
        _check_momentum(supernet, state)
        for name, buffer in state.momentum.items():
            own = self._optimizer.state[self._trained[name]]
            own["momentum_buffer"] = buffer.clone()
        self._weights = Weights(supernet.layout, tensors)
        self._norm = Normaliser(BatchNorm(), update=True)

    def begin(self, program: Program, height: int, width: int, batch: int) -> None:
        """Take the networks of an epoch."""
        self._program, self._executor = program, Executor(program, self._weights)

    def take(self, lanes: Sequence[int], batches: Sequence[Batch], lr: float) -> Taken:
        """Take steps."""
        loss = np.empty((len(batches), self._paths))
        correct = np.empty(loss.shape, dtype=np.int64)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        networks = self._program.lanes[lanes, 0].reshape(loss.shape)
        for k, batch in enumerate(batches):
            problem = self._step(networks[k].tolist(), batch, loss[k], correct[k])
            if problem:
                return Taken(loss[:k], correct[:k], problem)
        return Taken(loss, correct)

    def _step(
        self, networks: list[int], batch: Batch, loss: npt.NDArray[np.float64],
        correct: npt.NDArray[np.int64],
    ) -> str:  # fmt: skip
        """Take one step and fill in its row, or say why it cannot be taken."""
        before = [buffer.clone() for buffer in self._buffers]
        self._optimizer.zero_grad(set_to_none=True)
        for k, network in enumerate(networks):
            stem = self._executor.stem(batch.images, self._norm)
            logits = self._executor.logits(network, stem, {}, self._norm)
            path_loss = F.cross_entropy(logits, batch.labels)
            path_loss.backward()
            loss[k] = path_loss.item()
            correct[k] = int((logits.argmax(dim=1) == batch.labels).sum())
            if not math.isfinite(loss[k]):
                break
        grads = [t.grad for t in self._trained.values() if t.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not (math.isfinite(loss[k]) and math.isfinite(norm.item())):
            for buffer, old in zip(self._buffers, before, strict=True):
                buffer.copy_(old)
            return f"training loss is {loss[k]:g}, the norm of its gradient {norm.item():g}"
        if self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), self._clip, norm)
        self._optimizer.step()
        return ""

    def momentum(self) -> dict[str, Tensor]:
        """Return copies of the momentum buffers."""
        buffers = {
            name: self._optimizer.state.get(tensor, {}).get("momentum_buffer")
            for name, tensor in self._trained.items()
        }
        return {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}


class EngineStepper:
    """The engine: ``csrc/engine/training.h`` through :func:`nasfast.ops.train_paths`.

    The number of threads changes no bit. On a CUDA device, where the paths of a step run side by
    side, weights and momentum stay; the supernet has them again after each call.

    Args:
        supernet: Weights, float32, changed in place.
        settings: Hyper-parameters.
        state: Momentum to go on from.
        precision: ``"fp32"``; ``"bf16"``: operands of convolutions, values and their gradients
            bfloat16; weights, their gradients, sums and statistics float32; or on a CUDA device
            ``"tf32"``: operands of convolutions rounded to 10 bits behind the point.
        threads: Threads, which share the images of a path.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: If the momentum does not fit, or ``NASFAST_ISA`` names an instruction set that
            is not there.
        ImportError: If the engine is not built.
    """

    def __init__(
        self, supernet: Supernet, settings: TrainSettings, state: TrainState, *, precision: str,
        threads: int, device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:  # fmt: skip
        if device == "cpu":
            warn_of_slow_paths()
        _check_momentum(supernet, state)
        self._kept, self._layout, self._settings = (
            supernet.arena.detach(), supernet.layout, settings,
        )  # fmt: skip
        self._arena = self._kept.to(device)
        self._precision, self._threads = precision, threads
        # A buffer of zeros gives the first step that PyTorch takes without a buffer.
        self._momenta = torch.zeros_like(self._arena) if settings.momentum else None
        self._touched = {self._layout.by_name[name].unit for name in state.momentum}
        if self._momenta is not None:
            for name, view in self._views(self._momenta).items():
                if name in state.momentum:
                    view.copy_(state.momentum[name])

    def begin(self, program: Program, height: int, width: int, batch: int) -> None:
        """Take the networks of an epoch."""
        self._program = program
        cut = plan(program, batch=batch, height=height, width=width, memory=UNBOUNDED)
        self._table = torch.from_numpy(cut.table())

    def take(self, lanes: Sequence[int], batches: Sequence[Batch], lr: float) -> Taken:
        """Take steps."""
        paths = self._settings.paths
        images, labels, sizes = concatenated(batches)
        loss, correct, steps = native.ops().train_paths(
            self._table, self._arena, self._momenta, images.to(self._arena.device),
            labels.to(self._arena.device), sizes, list(lanes), paths, lr, self._settings,
            precision=self._precision, threads=self._threads,
        )  # fmt: skip
        if self._arena is not self._kept:
            self._kept.copy_(self._arena)
        rows, right = (r.cpu().numpy().reshape(-1, paths) for r in (loss, correct))
        for network in np.unique(self._program.lanes[lanes[: steps * paths], 0]).tolist():
            self._touched |= trained_units(self._program, network)
        if steps == len(batches):
            return Taken(rows, right)
        # After the first loss that is not finite, the other paths of the step have none.
        refused = [loss for loss in rows[steps].tolist() if not math.isfinite(loss)]
        words = (
            f"training loss is {refused[0]:g}"
            if refused
            else (f"training loss is {rows[steps].mean():g}, but its gradient is not finite")
        )
        return Taken(rows[:steps], right[:steps], words)

    def momentum(self) -> dict[str, Tensor]:
        """Return copies of the momentum buffers."""
        if self._momenta is None:
            return {}
        by_name = self._layout.by_name
        views = self._views(self._momenta)
        return {
            n: v.to(self._kept.device, copy=True)
            for n, v in views.items()
            if by_name[n].unit in self._touched
        }

    def _views(self, arena: Tensor) -> dict[str, Tensor]:
        """Return the trained tensors as views of an arena."""
        views = dict(Supernet(self._layout.config, arena, self._layout).named_tensors())
        return {p.name: views[p.name] for p in self._layout.params if not p.is_buffer}


def _check_momentum(supernet: Supernet, state: TrainState) -> None:
    by_name = supernet.layout.by_name
    for name, buffer in state.momentum.items():
        spec = by_name.get(name)
        if spec is None or spec.is_buffer or tuple(buffer.shape) != spec.shape:
            raise ValueError(f"state: momentum of {name!r} does not fit the supernet")
