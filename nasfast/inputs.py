# SPDX-License-Identifier: MIT
"""Checks of what is handed to the drivers: batch-norm modes, minibatches, labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nasfast.data import Batch
from nasfast.layout import Layout, SupernetConfig
from nasfast.program import Program
from nasfast.reference import BatchNorm
from nasfast.spaces.nb101_network import Nb101Network
from nasfast.supernet import Supernet


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
    if isinstance(config.spec, Nb101Network):
        del kept["last"]  # there is no batch norm before its classifier
    for part, (flag, tracked) in kept.items():
        if getattr(modes, part) == "running" and not tracked:
            raise ValueError(
                f"bn: running statistics asked for {part}, but this supernet keeps none "
                f"({flag}=False); use 'batch' or 'recalibrate' there"
            )
    return modes


def check_lanes(program: Program, num_weight_sets: int, num_data_orders: int) -> None:
    """Check that there are the weight sets and data orders that lanes name.

    Raises:
        ValueError: If not, or the program mixes operations.
    """
    if program.is_joint:
        raise ValueError("program: a joint supernet has no scores; run it by joint_forward")
    for column, name, count in ((1, "supernets", num_weight_sets), (2, "data_orders",
                                num_data_orders)):  # fmt: skip
        low, high = int(program.lanes[:, column].min()), int(program.lanes[:, column].max())
        if low < 0 or high >= count:
            raise ValueError(f"{name}: the program's lanes name {low}..{high}, got {count} of them")


def check_streams(
    config: SupernetConfig, data_orders: Sequence[Sequence[Batch]], dtype: torch.dtype
) -> list[list[Batch]]:
    """Return the minibatches of each data order in a precision, after checking every one.

    Raises:
        ValueError: If one is refused by :func:`check_batches`, or they differ in size.
    """
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


def check_supernets(supernets: Sequence[Supernet]) -> SupernetConfig:
    """Return the shape of weight sets.

    Raises:
        ValueError: If there are none, or they differ in shape.
    """
    if not supernets:
        raise ValueError("supernets: wanted at least one, got none")
    config = supernets[0].config
    for k, supernet in enumerate(supernets):
        if supernet.config != config:
            raise ValueError(
                f"supernets[{k}]: wanted a supernet of {config}, got {supernet.config}"
            )
    return config


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


def check_sizes(config: SupernetConfig, streams: list[list[Batch]], valid: list[Batch]) -> None:
    """Check that checked training and validation minibatches can be used together.

    Raises:
        ValueError: If images differ in size, or training would have to take a variance of one
            value.
    """
    size = streams[0][0].images.shape[2:]
    named = {f"batches[{k}]": stream for k, stream in enumerate(streams)}
    for name, stream in {**named, **({"validation": valid} if valid else {})}.items():
        if stream[0].images.shape[2:] != size:
            raise ValueError(
                f"{name}: wanted images of {list(size)} as in batches[0], "
                f"got {list(stream[0].images.shape[2:])}"
            )
    tracked = config.track or config.fixed_track or config.last_track
    layout = Layout(config)
    pixels = layout.pixels(size[0], size[1], layout.positions[-1].halvings)
    for name, stream in named.items():
        if tracked and pixels == 1 and min(len(batch.labels) for batch in stream) == 1:
            raise ValueError(
                f"{name}: running statistics need more than one value a channel: wanted larger "
                f"images or minibatches, got one image of {list(size)}"
            )


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
