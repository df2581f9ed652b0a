# SPDX-License-Identifier: MIT
"""Score architectures with the weights of a supernet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nasfast.data import Batch
from nasfast.layout import SupernetConfig
from nasfast.lower import Merge, Mode
from nasfast.plan import DEFAULT_MEMORY, Plan, plan
from nasfast.program import Network, Program, build, request_array
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights, loss_and_correct
from nasfast.spaces.spec import IntArray
from nasfast.supernet import Supernet

Precision = Literal["fp32", "fp64"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """Results of the lanes of one chunk.

    Attributes:
        lanes: Lanes, int32 ``[lanes]``.
        loss: Cross-entropy of each lane and image, float64 ``[lanes, images]``.
        correct: Top-1 correctness, bool ``[lanes, images]``.
    """

    lanes: IntArray
    loss: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]

    @property
    def mean_loss(self) -> npt.NDArray[np.float64]:
        """Mean cross-entropy of each lane; not finite where any image's is not, ``[lanes]``."""
        # Row by row: numpy's blocked sum over a matrix may depend on how many rows it has.
        return np.array([np.mean(row) for row in self.loss], dtype=np.float64)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Share of images classified correctly, ``[lanes]``."""
        return self.correct.sum(axis=1) / self.correct.shape[1]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of requested architectures.

    Attributes:
        loss: Mean cross-entropy over all images, float64 ``[archs]``; NaN or infinite marks a
            lane that left the finite numbers.
        accuracy: Top-1 accuracy, 0 to 1, float64 ``[archs]``.
        lane_of_arch: Row of the two arrays below that holds each architecture, int32 ``[archs]``:
            architectures with one row are the same function.
        lane_loss: Cross-entropy of each lane and image, float64 ``[lanes, images]``; without
            columns when images were not kept.
        lane_correct: Top-1 correctness, bool ``[lanes, images]``, likewise.
        program: What was computed.
    """

    loss: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    lane_of_arch: IntArray
    lane_loss: npt.NDArray[np.float64]
    lane_correct: npt.NDArray[np.bool_]
    program: Program


def compile_archs(
    supernet: Supernet, archs: Sequence[Network], *, bn: BatchNorm | str = "batch",
    merge: Merge = Merge.LINEAR,
) -> Program:  # fmt: skip
    """Lower architectures for evaluation with a supernet's weights.

    Args:
        supernet: Gives the shape of the network.
        archs: Architectures, or one for each search cell.
        bn: Batch-norm modes; a string as :meth:`nasfast.BatchNorm.parse` reads it.
        merge: How much equal work is recognised.

    Raises:
        ValueError: If the modes ask for running statistics that the supernet does not keep.
    """
    modes = check_batch_norm(supernet.config, bn)
    requests = request_array(supernet.layout, archs)
    mode = Mode(modes.cells, supernet.config.affine)
    return build(supernet.layout, requests, mode=mode, merge=merge)


def evaluate(
    supernet: Supernet,
    archs: Sequence[Network],
    batches: Sequence[Batch],
    *,
    bn: BatchNorm | str = "batch",
    calibration: Sequence[Batch] | None = None,
    precision: Precision = "fp32",
    merge: Merge = Merge.LINEAR,
    memory: int = DEFAULT_MEMORY,
    keep_images: bool = True,
) -> Scores:
    """Score architectures on minibatches with the shared weights of a supernet.

    Every lane sees the same minibatches in the same order, and its result is the same bit for bit
    whatever else is in the call, and whatever the memory budget.

    Args:
        supernet: Shared weights.
        archs: Architectures, or for each network a sequence of one architecture a search cell.
        batches: Minibatches: images ``[batch, channels, height, width]``, labels int64
            ``[batch]``.
        bn: Where batch norm takes its statistics from: ``"batch"``, ``"running"`` or
            ``"recalibrate"`` for all parts, or ``"cells/others"``, for example
            ``"batch/running"`` as the NAS-Bench-201 search code does.
        calibration: Images whose pooled statistics ``"recalibrate"`` uses; the evaluated images
            when left out (their labels play no part).
        precision: ``"fp32"`` or ``"fp64"``.
        merge: How much equal work is recognised.
        memory: Budget in bytes for feature maps; temporaries of PyTorch come on top.
        keep_images: Keep loss and correctness of every lane and image, 9 bytes each.

    Returns:
        Scores in the order of ``archs``.

    Raises:
        ValueError: If an argument does not fit; nothing is computed then.

    Source:
        Dong and Yang, NAS-Bench-201, ICLR 2020, section 2 (network); definition of each operation:
        :mod:`nasfast.reference`.
    """
    program = compile_archs(supernet, archs, bn=bn, merge=merge)
    images = sum(len(batch.labels) for batch in batches)
    loss, accuracy = np.empty(program.num_lanes), np.empty(program.num_lanes)
    kept = (program.num_lanes, images if keep_images else 0)
    lane_loss, lane_correct = np.empty(kept), np.empty(kept, dtype=np.bool_)
    for chunk in run(
        program, [supernet], [batches], bn=bn, calibration=calibration, precision=precision,
        memory=memory,
    ):  # fmt: skip
        loss[chunk.lanes], accuracy[chunk.lanes] = chunk.mean_loss, chunk.accuracy
        if keep_images:
            lane_loss[chunk.lanes], lane_correct[chunk.lanes] = chunk.loss, chunk.correct
    lane_of = program.lane_of_request
    return Scores(loss[lane_of], accuracy[lane_of], lane_of, lane_loss, lane_correct, program)


def run(
    program: Program,
    supernets: Sequence[Supernet],
    data_orders: Sequence[Sequence[Batch]],
    *,
    bn: BatchNorm | str = "batch",
    calibration: Sequence[Batch] | None = None,
    precision: Precision = "fp32",
    memory: int = DEFAULT_MEMORY,
) -> Iterator[ChunkScores]:
    """Run a program on the reference backend, chunk by chunk.

    PyTorch computes with one thread meanwhile: some of its kernels round differently with more.

    Args:
        program: What to compute.
        supernets: Weight sets that its lanes name.
        data_orders: Minibatches of each data order that its lanes name; all with equally many
            images.
        bn: Batch-norm modes, as in :func:`evaluate`.
        calibration: As in :func:`evaluate`.
        precision: ``"fp32"`` or ``"fp64"``.
        memory: Budget in bytes for feature maps, as in :func:`evaluate`.

    Yields:
        The scores of each chunk as it is done.

    Raises:
        ValueError: If an argument does not fit; raised before the first chunk.
    """
    if precision not in DTYPES:
        raise ValueError(
            f"precision: the reference backend has {', '.join(DTYPES)}, got {precision!r}"
        )
    dtype, config = DTYPES[precision], program.layout.config
    modes = check_batch_norm(config, bn)
    if program.mode != Mode(modes.cells, config.affine):
        raise ValueError(f"bn: the program was built for {program.mode}, got {modes}")
    if calibration is not None and not modes.recalibrates:
        raise ValueError(f"calibration: no part of bn={str(modes)!r} recalibrates")
    _check_lanes(program, len(supernets), len(data_orders))
    for k, supernet in enumerate(supernets):
        if supernet.config != config:
            raise ValueError(
                f"supernets[{k}]: wanted a supernet of {config}, got {supernet.config}"
            )
    streams = _check_streams(config, data_orders, dtype)
    pooled = None
    if calibration is not None:
        pooled = check_batches(config, calibration, "calibration", dtype)
    at_once = max(len(b.labels) for stream in streams for b in stream)
    if modes.recalibrates:  # layer by layer over all images
        at_once = max(at_once, sum(len(b.labels) for b in pooled or streams[0]))
    height, width = streams[0][0].images.shape[2:]
    cut = plan(
        program, batch=at_once, height=height, width=width, itemsize=dtype.itemsize, memory=memory
    )
    weights = [
        Weights(program.layout, dict(supernet.copy(dtype).named_tensors()))
        for supernet in supernets
    ]
    for chunk in range(cut.num_chunks):
        _, weight_set, order = program.lanes[cut.lanes_of(chunk)[0]].tolist()
        executor = Executor(program, weights[weight_set])
        with one_thread():
            scores = _run_chunk(executor, cut, chunk, streams[order], modes, pooled)
        yield scores


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _run_chunk(
    executor: Executor, cut: Plan, chunk: int, stream: list[Batch], modes: BatchNorm,
    calibration: list[Batch] | None,
) -> ChunkScores:  # fmt: skip
    lanes, shared = cut.lanes_of(chunk), cut.shared_of(chunk)
    networks = [int(network) for network in cut.program.lanes[lanes, 0]]
    norms = [Normaliser(modes)] * len(lanes)
    common = norms[0]
    if modes.recalibrates:
        common, norms = _calibrate(executor, networks, shared, calibration or stream, modes)
    images = sum(len(batch.labels) for batch in stream)
    loss = np.empty((len(lanes), images))
    correct = np.empty((len(lanes), images), dtype=np.bool_)
    begin = 0
    for batch in stream:
        stem = executor.stem(batch.images, common)
        values = executor.shared(stem, shared, common)
        end = begin + len(batch.labels)
        for row, network in enumerate(networks):
            logits = executor.logits(network, stem, values, norms[row])
            lane_loss, lane_correct = loss_and_correct(logits, batch.labels)
            loss[row, begin:end] = lane_loss.numpy()
            correct[row, begin:end] = lane_correct.numpy()
        begin = end
    return ChunkScores(lanes, loss, correct)


def _calibrate(
    executor: Executor, networks: Sequence[int], shared: Sequence[int], batches: Sequence[Batch],
    modes: BatchNorm,
) -> tuple[Normaliser, list[Normaliser]]:  # fmt: skip
    """Measure pooled statistics, layer by layer over all images at once.

    Returns:
        Batch norm of what the lanes share, and of each lane.
    """
    images = torch.cat([batch.images for batch in batches])
    sizes = [len(batch.labels) for batch in batches]
    common = Normaliser(modes, recording=sizes)
    stem = executor.stem(images, common)
    values = executor.shared(stem, shared, common)
    common.recording = ()
    norms = []
    for network in networks:
        own = Normaliser(modes, recording=sizes)
        executor.logits(network, stem, values, own)
        own.recording = ()
        norms.append(own)
    return common, norms


# Checks of arguments.


def check_batch_norm(config: SupernetConfig, bn: BatchNorm | str) -> BatchNorm:
    """Return batch-norm modes that the supernet can serve.

    Raises:
        ValueError: If a part asks for running statistics that the supernet does not keep.
    """
    modes = BatchNorm.parse(bn) if isinstance(bn, str) else bn
    kept = {
        "cells": ("track", config.track),
        "fixed": ("fixed_track", config.fixed_track),
        "last": ("last_track", config.last_track),
    }
    for part, (flag, tracked) in kept.items():
        if getattr(modes, part) == "running" and not tracked:
            raise ValueError(
                f"bn: running statistics asked for {part}, but this supernet keeps none "
                f"({flag}=False); use 'batch' or 'recalibrate' there"
            )
    return modes


def _check_lanes(program: Program, num_weight_sets: int, num_data_orders: int) -> None:
    for column, name, count in ((1, "supernets", num_weight_sets), (2, "data_orders",
                                num_data_orders)):  # fmt: skip
        low, high = int(program.lanes[:, column].min()), int(program.lanes[:, column].max())
        if low < 0 or high >= count:
            raise ValueError(f"{name}: the program's lanes name {low}..{high}, got {count} of them")


def _check_streams(
    config: SupernetConfig, data_orders: Sequence[Sequence[Batch]], dtype: torch.dtype
) -> list[list[Batch]]:
    streams = [
        check_batches(config, order, f"data_orders[{k}]", dtype)
        for k, order in enumerate(data_orders)
    ]
    first = _shape_of(streams[0])
    for k, stream in enumerate(streams):
        if _shape_of(stream) != first:
            raise ValueError(
                f"data_orders[{k}]: wanted the images, height and width of data_orders[0] "
                f"{first}, got {_shape_of(stream)}"
            )
    return streams


def _shape_of(stream: list[Batch]) -> tuple[int, int, int]:
    height, width = stream[0].images.shape[2:]
    return sum(len(batch.labels) for batch in stream), height, width


def check_batches(
    config: SupernetConfig, batches: Sequence[Batch], name: str, dtype: torch.dtype
) -> list[Batch]:
    """Return minibatches in a precision, after checking every one.

    Raises:
        ValueError: If there are none, or one has a wrong shape, dtype or label, or an image that
            is not finite.
    """
    if not batches:
        raise ValueError(f"{name}: wanted at least one minibatch, got none")
    checked = []
    size = tuple(batches[0].images.shape[2:])
    for k, batch in enumerate(batches):
        _check_images(config, batch.images, f"{name}[{k}].images", size, dtype)
        _check_labels(config, batch.labels, f"{name}[{k}].labels", len(batch.images))
        # One layout: PyTorch's kernels round differently in another.
        images = batch.images.to(dtype, memory_format=torch.contiguous_format).contiguous()
        checked.append(Batch(images, batch.labels))
    return checked


def _check_images(
    config: SupernetConfig, images: Tensor, where: str, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    wanted = f"floating point [batch, {config.in_channels}, {', '.join(map(str, size))}]"
    fits = images.is_floating_point() and images.dim() == 4 and len(images) > 0
    if not fits or images.shape[1] != config.in_channels or tuple(images.shape[2:]) != size:
        raise ValueError(f"{where}: wanted {wanted}, got {images.dtype} {list(images.shape)}")
    if 0 in size:
        raise ValueError(f"{where}: wanted images of at least 1x1, got {list(images.shape)}")
    finite = torch.isfinite(images.to(dtype)).flatten(1).all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise ValueError(f"{where}: image {first} holds NaN or infinity (as {dtype})")


def _check_labels(config: SupernetConfig, labels: Tensor, where: str, count: int) -> None:
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise ValueError(
            f"{where}: wanted int64 [{count}], got {labels.dtype} {list(labels.shape)}"
        )
    outside = ((labels < 0) | (labels >= config.classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{where}: label {first} is {int(labels[first])}, "
            f"wanted 0..{config.classes - 1} for {config.classes} classes"
        )
