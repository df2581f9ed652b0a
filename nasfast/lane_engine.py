# SPDX-License-Identifier: MIT
"""Training many lanes on the CPU engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nasfast import native
from nasfast.backends import LossAndCorrect, concatenated
from nasfast.data import Batch
from nasfast.lane_training import LaneState, Sgd, StepRecords, copied
from nasfast.lower import Mode
from nasfast.plan import UNBOUNDED, Plan, plan
from nasfast.program import alone
from nasfast.reference import BatchNorm
from nasfast.slow_paths import warn_of_slow_paths
from nasfast.supernet import Supernet


class EngineLanes:
    """:class:`nasfast.lane_training.LaneTrainer` by ``csrc/engine``.

    A thread takes a lane through all its steps; where there are fewer lanes than threads these
    share the images of each. Neither changes a bit.

    Args:
        cut: Program and chunks. Cells in mode ``"batch"``.
        supernets: Weight sets that the lanes name.
        sgd: What all lanes share.
        precision: ``"fp32"``; or ``"bf16"``: operands of convolutions, values and their gradients
            bfloat16; weights, their gradients, sums and statistics float32.
        threads: Threads.
        gradient_sums: Whether to sum the gradients of each lane.

    Raises:
        ValueError: If ``NASFAST_ISA`` names an instruction set that is not there.
        ImportError: If the engine is not built.
    """

    def __init__(
        self, cut: Plan, supernets: Sequence[Supernet], sgd: Sgd, *, precision: str = "fp32",
        threads: int = 1, gradient_sums: bool = False,
    ) -> None:  # fmt: skip
        warn_of_slow_paths()
        self._cut, self._sgd, self._gradient_sums = cut, sgd, gradient_sums
        self._precision, self._threads = precision, threads
        self._table = torch.from_numpy(cut.table())
        self._arenas = [supernet.arena.detach().to(torch.float32) for supernet in supernets]
        self._alone: tuple[tuple[object, ...], Tensor] | None = None  # a chunk's table of its own

    def start(self, chunk: int) -> LaneState:
        """Return the lanes of a chunk before any step."""
        return copied(self._cut, chunk, self._arenas, self._sgd, self._gradient_sums)

    def step(
        self, chunk: int, state: LaneState, batches: Sequence[Batch],
        lr: npt.NDArray[np.float64],
    ) -> StepRecords:  # fmt: skip
        """Take one step of every lane on each minibatch."""
        shape = (len(state.weights), len(batches))
        if lr.shape != shape:
            raise ValueError(f"lr: wanted {list(shape)} (lanes, steps), got {list(lr.shape)}")
        images, labels, sizes = concatenated(batches)
        loss, correct, l1, sum_l1 = native.ops().train_lanes(
            self._table, state.weights, state.momentum, state.gradient_sum,
            torch.from_numpy(state.diverged_at), images, labels, sizes,
            torch.from_numpy(np.ascontiguousarray(lr)), chunk, state.step, self._sgd,
            precision=self._precision, threads=self._threads,
        )  # fmt: skip
        state.step += len(batches)
        sums = sum_l1.numpy() if self._gradient_sums else np.full(shape, np.nan)
        return StepRecords(loss.numpy(), correct.numpy(), l1.numpy(), sums)

    def evaluate(
        self, chunk: int, state: LaneState, batches: Sequence[Batch], modes: BatchNorm
    ) -> LossAndCorrect:
        """Score the lanes as they stand."""
        images, labels, sizes = concatenated(batches)
        loss, correct = native.ops().score_lanes(
            self._table_alone(chunk, modes, max(sizes), images), state.weights, images, labels,
            sizes, precision=self._precision, fixed=modes.fixed, last=modes.last,
            threads=self._threads,
        )  # fmt: skip
        return loss.numpy().astype(np.float64), correct.numpy()

    def _table_alone(self, chunk: int, modes: BatchNorm, batch: int, images: Tensor) -> Tensor:
        """Return a table of a chunk's lanes, each a chunk of its own with its own weights."""
        height, width = images.shape[2:]
        key = (chunk, modes.cells, batch, height, width)
        if self._alone is None or self._alone[0] != key:
            program = self._cut.program
            lanes = program.lanes[self._cut.lanes_of(chunk)].copy()
            lanes[:, 1] = np.arange(len(lanes))
            lanes[:, 2] = 0
            own = replace(alone(program, lanes), mode=Mode(modes.cells, program.mode.affine))
            cut = plan(
                own, batch=batch, height=height, width=width, memory=UNBOUNDED, max_chunk_lanes=1
            )
            self._alone = (key, torch.from_numpy(cut.table()))
        return self._alone[1]
