# SPDX-License-Identifier: MIT
"""Train architectures on their own, from scratch, many at once as lanes with private weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nasfast import data
from nasfast.backends import DTYPES, Backend, Precision
from nasfast.data import Batch, ImageSet, TrainLoader
from nasfast.evaluate import check_threads
from nasfast.lane_backends import choose_lane_backend, lane_trainer, plan_lanes
from nasfast.lane_training import LaneState, LaneTrainer, Sgd
from nasfast.layout import SupernetConfig
from nasfast.plan import DEFAULT_MEMORY, Plan
from nasfast.program import Program, build_training
from nasfast.reference import BatchNorm
from nasfast.spaces import Architecture
from nasfast.spaces.spec import IntArray
from nasfast.supernet import Supernet
from nasfast.train import TrainSettings

_RUNNING = BatchNorm("running", "running", "running")
_EVAL_BATCH = 360  # images at once; with running statistics no result depends on it
_HELD_IMAGES = 2**14  # of the minibatches that are held at once


@dataclass(frozen=True, eq=False)
class ChunkOfTrainings:
    """What the trainings of one chunk came to.

    Attributes:
        lanes: Positions of their architectures in the call, int64 ``[lanes]``.
        train_loss: Mean loss of each epoch, taken before each step, float64 ``[lanes, epochs]``;
            NaN from the epoch after divergence on.
        valid_correct: Validation images classified correctly at the end, int64 ``[lanes]``.
        test_correct: Test images likewise.
        diverged_at: Step at which loss or gradient left the finite numbers, -1: none, int32
            ``[lanes]``. What such a lane classifies correctly, it does with the weights before.
        elapsed_s: Time that the chunk took.
    """

    lanes: npt.NDArray[np.int64]
    train_loss: npt.NDArray[np.float64]
    valid_correct: npt.NDArray[np.int64]
    test_correct: npt.NDArray[np.int64]
    diverged_at: IntArray
    elapsed_s: float


@dataclass(frozen=True, eq=False)
class FromScratch:
    """Trains stand-alone networks, each as :func:`nasfast.train` does with a fixed path.

    Initial weights are those of ``Supernet.create`` and minibatches those of the loader, both with
    the seed of a call, so that a training depends on nothing else that is trained. Batch norm
    trains with the statistics of the minibatch; accuracies are those of running statistics, after
    the last epoch. Without affine cells a convolution of zero is zero: so it is in training, and
    so it is taken to be under running statistics too.

    Attributes:
        shape: Shape of the networks; keeps running statistics everywhere, weights on edges.
        loader: Minibatches; its seed and precision give way to those of a training.
        settings: Hyper-parameters.
        valid: Validation images.
        test: Test images.
        backend: As in :func:`nasfast.evaluate`.
        precision: Likewise.
        threads: Likewise; changes no result.
        memory: Budget in bytes for private weights and feature maps; changes no result.

    Raises:
        ValueError: If the shape is another, or an option does not fit.
    """

    shape: SupernetConfig
    loader: TrainLoader
    settings: TrainSettings
    valid: ImageSet
    test: ImageSet
    backend: Backend = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    memory: int = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        """Check shape and options."""
        s = self.shape
        if not (s.track and s.fixed_track and s.last_track and s.weights_on == "edge"):
            raise ValueError(
                "shape: wanted running statistics in every part and weights on edges, got "
                f"track={s.track}, fixed_track={s.fixed_track}, last_track={s.last_track}, "
                f"weights_on={s.weights_on!r}"
            )
        choose_lane_backend(self.backend, self.precision)
        check_threads(self.threads)

    def train(
        self, archs: Sequence[Architecture], seed: int, *,
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> Iterator[ChunkOfTrainings]:  # fmt: skip
        """Train architectures from one seed.

        Args:
            archs: Architectures; no two of the same function.
            seed: Seed of initial weights and minibatches.
            on_epoch: Called after each epoch of a chunk with its lanes and the epochs done.

        Yields:
            Each chunk as it is done.

        Raises:
            ValueError: If two architectures are the same function, or the memory is too small for
                one lane.
        """
        supernet = Supernet.create(self.shape, seed)
        loader = replace(self.loader, seed=seed, dtype=DTYPES[self.precision])
        program = build_training(supernet.layout, archs)
        if program.num_lanes < len(archs):
            raise ValueError(
                f"archs: wanted no two of the same function, got {len(archs)} architectures of "
                f"{program.num_lanes} functions"
            )
        position = np.empty(len(archs), dtype=np.int64)
        position[program.lane_of_request] = np.arange(len(archs))
        parts = [self._images(self.valid), self._images(self.test)]
        cut = self._cut(program, max(len(part[0].labels) for part in parts))
        trainer = self._trainer(cut, supernet)
        for chunk in range(cut.num_chunks):
            began = time.perf_counter()
            lanes = position[cut.lanes_of(chunk)]
            state = trainer.start(chunk)
            loss = np.empty((len(lanes), self.settings.epochs))
            for epoch in range(self.settings.epochs):
                loss[:, epoch] = self._epoch(trainer, chunk, state, loader, epoch)
                if on_epoch is not None:
                    on_epoch(len(lanes), epoch + 1)
            valid, test = (
                trainer.evaluate(chunk, state, part, _RUNNING)[1].sum(axis=1) for part in parts
            )
            elapsed_s = time.perf_counter() - began
            yield ChunkOfTrainings(lanes, loss, valid, test, state.diverged_at, elapsed_s)

    def _epoch(
        self, trainer: LaneTrainer, chunk: int, state: LaneState, loader: TrainLoader, epoch: int
    ) -> list[float]:
        """Train one epoch; return the mean loss of each lane."""
        lr, losses = self.settings.lr_at(epoch), []
        for batches in loader.groups(epoch, _HELD_IMAGES):
            rates = np.full((len(state.weights), len(batches)), lr)
            losses.append(trainer.step(chunk, state, batches, rates).loss)
        # Row by row and exactly rounded: numpy's sum may depend on how many rows there are.
        return [math.fsum(row) / len(row) for row in np.concatenate(losses, axis=1).tolist()]

    def _images(self, images: ImageSet) -> list[Batch]:
        size = min(_EVAL_BATCH, len(images))
        return data.batches(images, size, dtype=DTYPES[self.precision], last="keep")

    def _cut(self, program: Program, evaluated: int) -> Plan:
        height, width = self.loader.image_set.images.shape[2:]
        epoch_images = self.loader.steps_per_epoch * self.loader.batch_size
        return plan_lanes(
            program, choose_lane_backend(self.backend, self.precision),
            batch=self.loader.batch_size, images=self.settings.epochs * epoch_images,
            evaluated=evaluated, height=height, width=width, precision=self.precision,
            copies=2 if self.settings.momentum else 1, memory=self.memory,
            threads=check_threads(self.threads),
        )  # fmt: skip

    def _trainer(self, cut: Plan, supernet: Supernet) -> LaneTrainer:
        s = self.settings
        return lane_trainer(
            choose_lane_backend(self.backend, self.precision), cut, [supernet],
            Sgd(s.momentum, s.nesterov, s.weight_decay, s.clip), precision=self.precision,
            threads=check_threads(self.threads), gradient_sums=False,
        )  # fmt: skip
