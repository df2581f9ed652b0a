# SPDX-License-Identifier: MIT
"""Training many lanes, each on private copies of its weights; the definition is plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast.backends import LossAndCorrect, calibrate, one_thread
from nasfast.data import Batch
from nasfast.layout import Layout
from nasfast.plan import Plan
from nasfast.primitives import loss_and_correct
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.spaces.spec import IntArray
from nasfast.supernet import Supernet

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sgd:
    """What all lanes share; learning rates are given by lane and step.

    Attributes:
        momentum: Momentum of SGD.
        nesterov: Whether momentum looks ahead.
        weight_decay: L2 penalty on every trained tensor that has a gradient.
        clip: Largest norm of the gradient over the tensors of a step; 0 turns clipping off.
    """

    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip: float = 0.0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a value is out of its range.
        """
        for name in ("momentum", "weight_decay", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: wanted a finite number of at least 0, got {value}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0, got 0")


@dataclass
class LaneState:
    """The lanes of one chunk, in the order of ``Plan.lanes_of``; steps change it in place.

    Attributes:
        weights: Private weights, laid out as a supernet's arena, ``[lanes, arena_size]``. Only
            tensors that a lane uses are defined.
        momentum: Momentum buffers, laid out likewise, zeros at first; None without momentum.
        gradient_sum: Sums of the gradients of all steps, laid out likewise; None when not wanted.
        diverged_at: Step, counted from the first of all, at which a loss or a gradient was not
            finite; -1: none so far. int32 ``[lanes]``.
        step: Steps taken so far.
    """

    weights: Tensor
    momentum: Tensor | None
    gradient_sum: Tensor | None
    diverged_at: IntArray
    step: int = 0


@dataclass(frozen=True, eq=False)
class StepRecords:
    """What the steps of one call came to; every value is from before its step.

    From the step at which a lane diverges, ``gradient_l1`` and ``gradient_sum_l1`` are NaN; its
    loss at that step is recorded as it came, later ones are NaN and ``correct`` is 0.

    Attributes:
        loss: Mean cross-entropy of the minibatch, float64 ``[lanes, steps]``.
        correct: Images of the minibatch classified correctly, int64 ``[lanes, steps]``.
        gradient_l1: Sum of ``|gradient|`` over the trained tensors that have one, before clipping
            and weight decay, float64 ``[lanes, steps]``.
        gradient_sum_l1: Sum of ``|sum of the gradients so far|``, this step included, float64
            ``[lanes, steps]``; NaN when gradients are not summed.
    """

    loss: _Floats
    correct: npt.NDArray[np.int64]
    gradient_l1: _Floats
    gradient_sum_l1: _Floats


class LaneTrainer(Protocol):
    """Trains the lanes of a chunk; a lane's result depends on nothing else in its chunk.

    A step is one of SGD on the mean cross-entropy of a minibatch. Batch norm of every part uses
    the statistics of the minibatch; running statistics, where the supernet keeps them, are updated
    in the lane's private copy. Only tensors on the live path have a gradient; the others rest, as
    PyTorch parameters with ``grad=None`` do. The bias of a convolution in front of batch norm has
    the gradient 0, which it is in exact arithmetic; its decay and momentum go on.

    A lane whose loss or gradient is not finite stops: its weights and running statistics stay as
    they were before that step.
    """

    def start(self, chunk: int) -> LaneState:
        """Return the lanes of a chunk with the weights of their weight sets, before any step."""
        ...

    def step(
        self, chunk: int, state: LaneState, batches: Sequence[Batch], lr: _Floats
    ) -> StepRecords:
        """Take one step of every lane on each minibatch.

        A call with several minibatches equals several calls with one.

        Args:
            chunk: The chunk that the state is of.
            state: Where the lanes stand; changed in place.
            batches: Minibatches in the trainer's precision; all lanes see them.
            lr: Learning rates, ``[lanes, steps]``.
        """
        ...

    def evaluate(
        self, chunk: int, state: LaneState, batches: Sequence[Batch], modes: BatchNorm
    ) -> LossAndCorrect:
        """Score the lanes as they stand, and leave them as they are.

        Args:
            chunk: The chunk that the state is of.
            state: Where the lanes stand.
            batches: Minibatches in the trainer's precision.
            modes: Where batch norm takes its statistics from.

        Returns:
            Cross-entropy, float64, and top-1 correctness, bool, ``[lanes, images]`` each.
        """
        ...


def copied(
    cut: Plan, chunk: int, arenas: Sequence[Tensor], sgd: Sgd, gradient_sums: bool
) -> LaneState:
    """Return the lanes of a chunk on copies of their weight sets, before any step."""
    sets = cut.program.lanes[cut.lanes_of(chunk), 1].tolist()
    weights = torch.stack([arenas[k] for k in sets])
    return LaneState(
        weights=weights,
        momentum=torch.zeros_like(weights) if sgd.momentum else None,
        gradient_sum=torch.zeros_like(weights) if gradient_sums else None,
        diverged_at=np.full(len(sets), -1, dtype=np.int32),
    )


class ReferenceLanes:
    """The definition of :class:`LaneTrainer`: autograd and ``torch.optim.SGD``, lane after lane.

    Computes with one of PyTorch's threads.

    Args:
        cut: Program and chunks. Cells in mode ``"batch"``.
        supernets: Weight sets that the lanes name.
        sgd: What all lanes share.
        dtype: float32 or float64.
        gradient_sums: Whether to sum the gradients of each lane.
    """

    def __init__(
        self, cut: Plan, supernets: Sequence[Supernet], sgd: Sgd, *,
        dtype: torch.dtype = torch.float32, gradient_sums: bool = False,
    ) -> None:  # fmt: skip
        self._cut, self._sgd, self._gradient_sums = cut, sgd, gradient_sums
        self._arenas = [supernet.arena.detach().to(dtype) for supernet in supernets]

    def start(self, chunk: int) -> LaneState:
        """Return the lanes of a chunk before any step."""
        return copied(self._cut, chunk, self._arenas, self._sgd, self._gradient_sums)

    @torch.enable_grad()
    def step(
        self, chunk: int, state: LaneState, batches: Sequence[Batch], lr: _Floats
    ) -> StepRecords:
        """Take one step of every lane on each minibatch."""
        lanes = self._cut.lanes_of(chunk)
        shape = (len(lanes), len(batches))
        if lr.shape != shape:
            raise ValueError(f"lr: wanted {list(shape)} (lanes, steps), got {list(lr.shape)}")
        records = StepRecords(
            loss=np.full(shape, np.nan),
            correct=np.zeros(shape, dtype=np.int64),
            gradient_l1=np.full(shape, np.nan),
            gradient_sum_l1=np.full(shape, np.nan),
        )
        with one_thread():
            for row, network in enumerate(self._networks(chunk)):
                lane = _Lane(self._cut, state, row, network, self._sgd)
                for k, batch in enumerate(batches):
                    if state.diverged_at[row] >= 0:
                        break
                    lane.step(batch, float(lr[row, k]), state.step + k, records, k)
        state.step += len(batches)
        return records

    @torch.no_grad()
    def evaluate(
        self, chunk: int, state: LaneState, batches: Sequence[Batch], modes: BatchNorm
    ) -> LossAndCorrect:
        """Score the lanes as they stand."""
        networks, layout = self._networks(chunk), self._cut.program.layout
        images = sum(len(batch.labels) for batch in batches)
        loss = np.empty((len(networks), images))
        correct = np.empty((len(networks), images), dtype=np.bool_)
        with one_thread():
            for row, network in enumerate(networks):
                weights = Weights(layout, _tensors(layout, state.weights[row]))
                executor = Executor(self._cut.program, weights)
                stem_norm = norm = Normaliser(modes)
                if modes.recalibrates:
                    stem_norm, (norm,) = calibrate(executor, [network], [], batches, modes)
                end = 0
                for batch in batches:
                    begin, end = end, end + len(batch.labels)
                    stem = executor.stem(batch.images, stem_norm)
                    logits = executor.logits(network, stem, {}, norm)
                    batch_loss, batch_correct = loss_and_correct(logits, batch.labels)
                    loss[row, begin:end] = batch_loss.numpy()
                    correct[row, begin:end] = batch_correct.numpy()
        return loss, correct

    def _networks(self, chunk: int) -> list[int]:
        rows = self._cut.program.lanes[self._cut.lanes_of(chunk), 0]
        return [int(network) for network in rows]


class _Lane:
    """One lane: leaf tensors and an optimiser that share the memory of a state's row."""

    def __init__(self, cut: Plan, state: LaneState, row: int, network: int, sgd: Sgd) -> None:
        layout = cut.program.layout
        self._state, self._row, self._network, self._clip = state, row, network, sgd.clip
        tensors = _tensors(layout, state.weights[row])
        self._buffers = [tensors[p.name] for p in layout.params if p.is_buffer]
        self._trained = {
            p.name: tensors[p.name].requires_grad_() for p in layout.params if not p.is_buffer
        }
        self._cancelled = [tensors[name] for name in _cancelled_biases(layout)]
        self._optimizer = torch.optim.SGD(
            self._trained.values(),
            lr=0.0,  # comes with each step
            momentum=sgd.momentum,
            nesterov=sgd.nesterov,
            weight_decay=sgd.weight_decay,
        )
        if state.momentum is not None:
            # A buffer of zeros gives the first step that PyTorch takes without a buffer.
            for name, buffer in _tensors(layout, state.momentum[row]).items():
                if name in self._trained:
                    self._optimizer.state[self._trained[name]]["momentum_buffer"] = buffer
        self._sums = None
        if state.gradient_sum is not None:
            self._sums = _tensors(layout, state.gradient_sum[row])
        self._executor = Executor(cut.program, Weights(layout, tensors))
        self._norm = Normaliser(BatchNorm(), update=True)

    def step(self, batch: Batch, lr: float, step: int, records: StepRecords, column: int) -> None:
        """Take one step, or mark the lane as diverged, and record either."""
        before = [buffer.clone() for buffer in self._buffers]
        stem = self._executor.stem(batch.images, self._norm)
        logits = self._executor.logits(self._network, stem, {}, self._norm)
        loss = F.cross_entropy(logits, batch.labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for bias in self._cancelled:
            if bias.grad is not None:
                bias.grad.zero_()
        grads = {name: t.grad for name, t in self._trained.items() if t.grad is not None}
        norm = torch.nn.utils.get_total_norm(grads.values())
        place = (self._row, column)
        records.loss[place] = loss.item()
        _, correct = loss_and_correct(logits.detach(), batch.labels)
        records.correct[place] = int(correct.sum())
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            self._state.diverged_at[self._row] = step
            for buffer, old in zip(self._buffers, before, strict=True):
                buffer.copy_(old)
            return
        records.gradient_l1[place] = _l1(grads.values())
        if self._sums is not None:
            sums = [self._sums[name].add_(grad) for name, grad in grads.items()]
            records.gradient_sum_l1[place] = _l1(sums)
        if self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), self._clip, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()


def _tensors(layout: Layout, arena: Tensor) -> dict[str, Tensor]:
    """Return every tensor by name, as views of an arena."""
    return dict(Supernet(layout.config, arena, layout).named_tensors())


def _cancelled_biases(layout: Layout) -> list[str]:
    """Return the biases of convolutions: batch norm follows each, and takes the mean away."""
    convolutions = {p.unit for p in layout.params if p.field == "weight" and len(p.shape) == 4}
    return [p.name for p in layout.params if p.field == "bias" and p.unit in convolutions]


def _l1(tensors: Iterable[Tensor]) -> float:
    return math.fsum(float(t.abs().sum(dtype=torch.float64)) for t in tensors)
