# SPDX-License-Identifier: MIT
"""Train supernet weights by sampled paths; with a fixed path, a stand-alone network."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nasfast import cuda_device
from nasfast.backends import DTYPES, Precision, ScoreBackend
from nasfast.data import TrainLoader
from nasfast.evaluate import check_threads
from nasfast.lane_backends import choose_train_backend
from nasfast.program import build_training
from nasfast.supernet import Supernet
from nasfast.train.samplers import Sampler
from nasfast.train.settings import EpochRecord, TrainSettings, TrainState
from nasfast.train.steppers import EngineStepper, ReferenceStepper, Stepper

_HELD_BYTES = 256 * 2**20  # of the images that are held at once


def train(
    supernet: Supernet,
    loader: TrainLoader,
    sampler: Sampler,
    settings: TrainSettings,
    *,
    state: TrainState | None = None,
    on_epoch: Callable[[EpochRecord, TrainState], None] | None = None,
    backend: ScoreBackend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
) -> list[EpochRecord]:
    """Train a supernet in place by single paths.

    Each step draws ``settings.paths`` networks, runs each on the minibatch and takes one SGD step
    on the sum of their gradients. Only tensors on a live path have a gradient; the others, their
    momentum and their weight decay rest, as PyTorch parameters with ``grad=None`` do. Edges that
    carry zero, or that the output does not depend on, are not on the live path. (A peer that
    multiplies by zero gives them a gradient of zero, so there weight decay and momentum go on, and
    tracked statistics of dead ends are updated.) Batch norm uses the statistics of the minibatch
    and updates running statistics where the supernet keeps them, once for each path.

    The bits of the result are the same for every number of threads of the engine; those of the
    reference hold for one number of PyTorch threads.

    Args:
        supernet: Weights, changed in place.
        loader: Minibatches of each epoch, in the precision of the supernet.
        sampler: Networks of each step.
        settings: Hyper-parameters.
        state: Where to go on; from the start when left out. Changed in place.
        on_epoch: Called after each epoch, with the state to go on from.
        backend: ``"cpu"``: the engine; ``"cuda"``: the same on torch's current CUDA device;
            ``"reference"``: plain PyTorch, the definition; ``"auto"``: a card if there is one,
            otherwise the engine, where they have the precision.
        precision: ``"fp32"``, ``"tf32"`` (of a card: operands of convolutions rounded to 10 bits
            behind the point), ``"bf16"`` (of the engine; weights and momentum stay float32) or
            ``"fp64"`` (of the reference); that of the supernet when left out.
        threads: Threads of the engine; PyTorch's number when left out. The reference computes with
            PyTorch's.

    Returns:
        One record for each epoch trained.

    Raises:
        ValueError: If images, state or an option do not fit the supernet.
        FloatingPointError: If a loss or a gradient is not finite; weights and running statistics
            are those before that step.
        ImportError: If the engine is asked for and not built.
    """
    precision = _check_precision(supernet, precision)
    chosen = choose_train_backend(backend, precision, supernet.config.weights_on)
    _check_images(supernet, loader)
    state = state if state is not None else TrainState()
    stepper: Stepper
    threads = check_threads(threads)
    if chosen == "cuda":
        cuda_device.require()
    if chosen != "reference":
        stepper = EngineStepper(
            supernet, settings, state, precision=precision, threads=threads, device=chosen
        )
    else:
        stepper = ReferenceStepper(supernet, settings, state)
    records = []
    for epoch in range(state.epoch, settings.epochs):
        records.append(_epoch(stepper, supernet, loader, sampler, settings, epoch))
        state.epoch, state.momentum = epoch + 1, stepper.momentum()
        if on_epoch is not None:
            on_epoch(records[-1], state)
    return records


def _epoch(
    stepper: Stepper, supernet: Supernet, loader: TrainLoader, sampler: Sampler,
    settings: TrainSettings, epoch: int,
) -> EpochRecord:  # fmt: skip
    began = time.perf_counter()
    lr, paths = settings.lr_at(epoch), settings.paths
    networks = sampler.draw(epoch, loader.steps_per_epoch * paths)
    program = build_training(supernet.layout, networks)
    image = loader.image_set.images.shape[1:]
    _, height, width = image
    stepper.begin(program, height, width, loader.batch_size)
    loss_sum, correct, images, step = 0.0, 0, 0, 0
    held = _HELD_BYTES // (image.numel() * loader.dtype.itemsize)
    for batches in loader.groups(epoch, held):
        end = step + len(batches)
        lanes = program.lane_of_request[step * paths : end * paths].tolist()
        taken = stepper.take(lanes, batches, lr)
        for losses, batch in zip(taken.loss.tolist(), batches, strict=False):
            loss_sum += sum(losses) / paths * len(batch.labels)
        correct += int(taken.correct.sum())
        images += sum(len(batch.labels) for batch in batches)
        step += len(taken.loss)
        if taken.problem:
            names = ", ".join(str(n) for n in networks[step * paths : (step + 1) * paths])
            raise FloatingPointError(
                f"{taken.problem} at epoch {epoch}, step {step} ({names}); try a smaller lr or clip"
            )
    elapsed_s = time.perf_counter() - began
    return EpochRecord(epoch, loss_sum / images, correct / (images * paths), lr, elapsed_s)


def _check_precision(supernet: Supernet, precision: Precision | None) -> Precision:
    dtype = supernet.arena.dtype
    if precision is None:
        return "fp64" if dtype == torch.float64 else "fp32"
    wanted = DTYPES.get(precision, dtype)  # an unknown one is refused later
    if dtype != wanted:
        raise ValueError(f"supernet: wanted {wanted} weights for {precision!r}, got {dtype}")
    return precision


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
