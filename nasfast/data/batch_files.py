# SPDX-License-Identifier: MIT
"""Turning the content of one batch file into images and labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasfast.data.pickles import load_batch
from nasfast.unpickling import shown

__all__ = ["RawImages", "join", "parse_binary", "parse_pickle"]

_SHOWN_ENTRIES = 20


@dataclass(frozen=True, eq=False)
class RawImages:
    """Images ``[n, 3, side, side]`` uint8 and labels ``[n]`` int64, labels not yet checked."""

    images: Tensor
    labels: Tensor


def parse_pickle(content: bytes, where: str, *, label_key: str, side: int) -> RawImages:
    """Read a pickled dictionary with ``data`` ``[n, 3 * side * side]`` and a list of labels.

    Raises:
        ValueError: If the pickle is damaged or refused, an entry is missing, or its type or
            shape is wrong. Messages begin with `where`.
    """
    batch = load_batch(content, where)
    for key in ("data", label_key):
        if key not in batch:
            got = sorted(shown(str(name)) for name in batch)[:_SHOWN_ENTRIES]
            raise ValueError(f"{where} must have the entry {key!r}, got {got}")
    data, pixels = batch["data"], 3 * side * side
    wanted = f"{where}: data must be a uint8 array [n, {pixels}]"
    if not isinstance(data, np.ndarray):
        raise ValueError(f"{wanted}, got {type(data).__name__}")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        raise ValueError(f"{wanted}, got {data.dtype} {list(data.shape)}")
    labels = _integers(batch[label_key], f"{where}: {label_key}")
    if len(labels) != len(data):
        raise ValueError(
            f"{where}: {label_key} must have one label for each of {len(data)} images, "
            f"got {len(labels)}"
        )
    # A copy, as the array may be a read-only view of the file's bytes.
    images = torch.from_numpy(np.array(data).reshape(-1, 3, side, side))
    return RawImages(images, torch.from_numpy(labels))


def parse_binary(content: bytes, where: str, *, label_bytes: int, side: int) -> RawImages:
    """Read records of `label_bytes` label bytes, the last of which counts, and the pixels.

    Raises:
        ValueError: If the size is no multiple of a record.
    """
    record = label_bytes + 3 * side * side
    if len(content) % record:
        raise ValueError(
            f"{where} must be a multiple of {record} bytes (one record an image), "
            f"got {len(content)} bytes; it may be cut off"
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    images = np.array(table[:, label_bytes:]).reshape(-1, 3, side, side)
    labels = table[:, label_bytes - 1].astype(np.int64)
    return RawImages(torch.from_numpy(images), torch.from_numpy(labels))


def join(batches: list[RawImages]) -> RawImages:
    """Put batches one after the other."""
    return RawImages(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )


def _integers(values: Any, where: str) -> np.ndarray:
    wanted = f"{where} must be a list of integers"
    if isinstance(values, np.ndarray):
        array = values
    elif isinstance(values, list | tuple) and all(type(value) is int for value in values):
        array = np.array(values, dtype=np.int64 if not values else None)
    else:  # nothing nested: a list that holds itself has no end
        kinds = {type(value).__name__ for value in values} if isinstance(values, list) else set()
        what = f"a list of {', '.join(sorted(kinds))}" if kinds else type(values).__name__
        got = "nested lists" if "list" in kinds else what
        raise ValueError(f"{wanted}, got {got}")
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{wanted}, got {array.dtype} {list(array.shape)}")
    return array.astype(np.int64)
