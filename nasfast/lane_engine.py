# SPDX-License-Identifier: MIT
"""Training many lanes on an engine: of the CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

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

    On the CPU a thread takes a lane through all its steps; where there are fewer lanes than threads
    these share the images of each. On a CUDA device as many lanes as fit are side by side, and what
    is trained stays there from call to call. None of this changes a bit.

    Args:
        cut: Program and chunks. Cells in mode ``"batch"``.
        supernets: Weight sets that the lanes name.
        sgd: What all lanes share.
        precision: ``"fp32"``; ``"bf16"``: operands of convolutions, values and their gradients
            bfloat16; weights, their gradients, sums and statistics float32; or on a CUDA device
            ``"tf32"``: operands of convolutions rounded to 10 bits behind the point.
        threads: Threads.
        gradient_sums: Whether to sum the gradients of each lane.
        device: ``"cpu"`` or ``"cuda"``.
        memory: On a CUDA device, budget in bytes for the lanes of a chunk and what is computed with
            them, 0: what is free; on the CPU, chunks are made for theirs.

    Raises:
        ValueError: If ``NASFAST_ISA`` names an instruction set that is not there.
        ImportError: If the engine is not built.
    """

    def __init__(
        self, cut: Plan, supernets: Sequence[Supernet], sgd: Sgd, *, precision: str = "fp32",
        threads: int = 1, gradient_sums: bool = False, device: Literal["cpu", "cuda"] = "cpu",
        memory: int = 0,
    ) -> None:  # fmt: skip
        if device == "cpu":
            warn_of_slow_paths()
        self._cut, self._sgd, self._gradient_sums = cut, sgd, gradient_sums
        self._precision, self._threads = precision, threads
        self._device, self._memory = device, memory
        self._table = torch.from_numpy(cut.table())
        self._arenas = [supernet.arena.detach().to(device, torch.float32) for supernet in supernets]
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
        images, labels, sizes = self._brought(batches)
        diverged_at = torch.from_numpy(state.diverged_at).to(self._device)
        loss, correct, l1, sum_l1 = native.ops().train_lanes(
            self._table, state.weights, state.momentum, state.gradient_sum,
            diverged_at, images, labels, sizes,
            torch.from_numpy(np.ascontiguousarray(lr)).to(self._device), chunk, state.step,
            self._sgd, precision=self._precision, threads=self._threads, memory=self._room(state),
        )  # fmt: skip
        state.diverged_at[:] = diverged_at.cpu().numpy()
        state.step += len(batches)
        sums = sum_l1.cpu().numpy() if self._gradient_sums else np.full(shape, np.nan)
        return StepRecords(loss.cpu().numpy(), correct.cpu().numpy(), l1.cpu().numpy(), sums)

    def evaluate(
        self, chunk: int, state: LaneState, batches: Sequence[Batch], modes: BatchNorm
    ) -> LossAndCorrect:
        """Score the lanes as they stand."""
        images, labels, sizes = self._brought(batches)
        loss, correct = native.ops().score_lanes(
            self._table_alone(chunk, modes, max(sizes), images), state.weights, images, labels,
            sizes, precision=self._precision, fixed=modes.fixed, last=modes.last,
            threads=self._threads, memory=self._room(state),
        )  # fmt: skip
        return loss.cpu().numpy().astype(np.float64), correct.cpu().numpy()

    def _brought(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, list[int]]:
        images, labels, sizes = concatenated(batches)
        return images.to(self._device), labels.to(self._device), sizes

    def _room(self, state: LaneState) -> int:
        """Return the bytes that are left of the budget beside the lanes."""
        if self._memory == 0:
            return 0
        kept = (state.weights, state.momentum, state.gradient_sum)
        return max(self._memory - sum(t.nbytes for t in kept if t is not None), 1)

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
