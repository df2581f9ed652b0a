# SPDX-License-Identifier: MIT
"""One record of NAS-Bench-101: from what its authors wrote to numbers.

The messages are decoded here: the library for protocol buffers would be one more dependency for
everyone, and reads one message at a time.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

VERTICES, EDGES = 7, 9  # at most
OPERATIONS = {"input": -1, "output": -2, "conv3x3-bn-relu": 0, "conv1x1-bn-relu": 1,
              "maxpool3x3": 2}  # fmt: skip
NO_VERTEX = -3
QUANTITIES = ("train_seconds", "train_accuracy", "valid_accuracy", "test_accuracy")


class RecordError(ValueError):
    """One of several records is not as it should be.

    Attributes:
        index: Which one, from 0.
    """

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index


def hash_of(text: Any) -> bytes:
    """Return the MD5 of a graph.

    Raises:
        ValueError: If it is none.
    """
    try:
        key = bytes.fromhex(text)
    except (ValueError, TypeError):
        key = b""
    if len(key) != 16:
        raise ValueError(f"hash: wanted 32 hexadecimal digits, got {text!r:.80}")
    return key


def graph_of(adjacency: str, operations: str) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return adjacency matrix, uint8 ``[vertices, vertices]``, and number of each operation.

    Raises:
        ValueError: If they are of no module of the space.
    """
    names = operations.split(",")
    count = len(names)
    labels = [OPERATIONS.get(name, NO_VERTEX) for name in names]
    inner = labels[1:-1]
    if (
        not 2 <= count <= VERTICES
        or (labels[0], labels[-1]) != (OPERATIONS["input"], OPERATIONS["output"])
        or (inner and min(inner) < 0)
    ):
        raise ValueError(
            f"operations: wanted input, up to {VERTICES - 2} of "
            f"{', '.join(list(OPERATIONS)[2:])}, output, got {operations!r:.120}"
        )
    if len(adjacency) != count * count or not set(adjacency) <= {"0", "1"}:
        raise ValueError(
            f"adjacency: wanted {count * count} digits 0 or 1 for {count} operations, "
            f"got {adjacency!r:.80}"
        )
    matrix = np.frombuffer(adjacency.encode(), dtype=np.uint8).reshape(count, count) - 48
    if np.tril(matrix).any():
        raise ValueError(f"adjacency: wanted an upper triangle, got {adjacency!r}")
    if matrix.sum() > EDGES:
        raise ValueError(f"adjacency: wanted at most {EDGES} edges, got {adjacency!r}")
    return matrix, labels


def joined(
    vertices: npt.NDArray[np.int8], adjacency: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """Tell in which graphs a path leads from the input to the output.

    Args:
        vertices: Of each graph, ``[graphs]``.
        adjacency: Upper triangles, ``[graphs, 7, 7]``.
    """
    reached = np.zeros(adjacency.shape[:2], dtype=bool)
    reached[:, 0] = True
    for vertex in range(1, adjacency.shape[1]):
        into = adjacency[:, :vertex, vertex] > 0
        reached[:, vertex] = (reached[:, :vertex] & into).any(axis=1)
    return reached[np.arange(len(vertices)), vertices - 1]


# Metrics: messages of protocol buffers.

_DOUBLES = 5  # of an evaluation: epoch, seconds, accuracies in training, validation and test
_EVALUATIONS = 3


@dataclass(frozen=True)
class _Layout:
    """Where the values are in a message.

    Attributes:
        fixed: Bytes that say what follows; a message with the same has the same layout, int64.
        parameters: Bytes of the number of trainable parameters.
        doubles: Where the quantities halfway and at the end begin, int64 ``[2, quantities]``.
    """

    fixed: Places
    parameters: slice
    doubles: Places

    def same(self, messages: Bytes, template: Bytes) -> npt.NDArray[np.bool_]:
        """Tell which messages ``[n, bytes]`` have the layout of the one that it was made of."""
        number = self.parameters
        other = np.any(messages[:, self.fixed] != template[self.fixed], axis=1)
        # The bytes of a number are above 127 but for its last.
        other |= np.any((messages[:, number] ^ template[number]) > 127, axis=1)
        return ~other

    def read(self, messages: Bytes) -> tuple[Places, Doubles]:
        """Return the parameters ``[n]`` and quantities ``[n, 2, quantities]`` of messages."""
        digits = (messages[:, self.parameters] & 127).astype(np.int64)
        weights = 1 << (7 * np.arange(digits.shape[1], dtype=np.int64))
        places = (self.doubles[:, :, None] + np.arange(8)).reshape(-1)
        values = np.ascontiguousarray(messages[:, places]).view("<f8")
        return digits @ weights, values.reshape(-1, *self.doubles.shape)


def metrics_of(texts: Sequence[Any]) -> tuple[Places, Doubles]:
    """Decode the metrics of many trainings.

    Nearly all messages have one layout, so it is found once and the values of all messages that
    have it are read together.

    Args:
        texts: Base64 of each message.

    Returns:
        Trainable parameters, int64 ``[n]``, and ``QUANTITIES`` halfway and at the end, float64
        ``[n, 2, quantities]``.

    Raises:
        RecordError: If one is no message with the metrics of a training.
    """
    parameters = np.empty(len(texts), dtype=np.int64)
    values = np.empty((len(texts), 2, len(QUANTITIES)))
    by_length: dict[int, list[int]] = {}
    messages = []
    for index, text in enumerate(texts):
        try:
            messages.append(a2b_base64(text, strict_mode=True))
        except (ValueError, TypeError) as error:
            raise RecordError(
                index, f"metrics: wanted base64, got {text!r:.80} ({error})"
            ) from None
        by_length.setdefault(len(messages[-1]), []).append(index)
    for length, listed in by_length.items():
        left = np.array(listed, dtype=np.int64)
        content = np.frombuffer(b"".join([messages[index] for index in listed]), dtype=np.uint8)
        rows = content.reshape(len(listed), length)
        while len(left):
            try:
                layout = _layout(messages[left[0]])
            except ValueError as error:
                raise RecordError(int(left[0]), f"metrics: {error}") from None
            same = layout.same(rows, rows[0])
            parameters[left[same]], values[left[same]] = layout.read(rows[same])
            left, rows = left[~same], rows[~same]
    _check_ranges(parameters, values)
    return parameters, values


def _check_ranges(parameters: Places, values: Doubles) -> None:
    accuracies = values[:, :, 1:]
    # Written so that NaN is in no range.
    good = (values[:, :, 0] >= 0).all(axis=1) & np.isfinite(values[:, :, 0]).all(axis=1)
    good &= ((accuracies >= 0) & (accuracies <= 1)).all(axis=(1, 2))
    good &= (parameters >= 0) & (parameters < 1 << 31)
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        raise RecordError(
            bad,
            "metrics: wanted parameters as int32, seconds, and accuracies from 0 to 1, "
            f"got {parameters[bad]} parameters, {', '.join(QUANTITIES)}: {values[bad].tolist()}",
        )


def _layout(message: bytes) -> _Layout:
    """Find the values in a message; of a field given twice the last counts, as it always does."""
    fixed: list[int] = []
    evaluations: list[list[int]] = []
    parameters = None
    for number, kind, start, end in _fields(message, 0, len(message), fixed):
        if number == 1 and kind == _BYTES:
            places = [-1] * (_DOUBLES + 1)
            for inner, inner_kind, at, _ in _fields(message, start, end, fixed):
                if inner <= _DOUBLES and inner_kind == _DOUBLE:
                    places[inner] = at
            evaluations.append(places[2:])
        elif number == 2 and kind == _VARINT:
            parameters = slice(start, end)
    if len(evaluations) != _EVALUATIONS or parameters is None:
        raise ValueError(
            f"wanted {_EVALUATIONS} evaluations and the number of parameters, got "
            f"{len(evaluations)} and {'none' if parameters is None else 'one'}"
        )
    doubles = np.array(evaluations[1:], dtype=np.int64)
    if doubles.min() < 0:
        raise ValueError(f"wanted {', '.join(QUANTITIES)} as doubles in each evaluation")
    return _Layout(np.array(fixed, dtype=np.int64), parameters, doubles)


_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
_SIZES = {_DOUBLE: 8, _FLOAT: 4}


def _fields(
    message: bytes, at: int, end: int, fixed: list[int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, kind, and where the value begins and ends; collect which bytes say so."""
    while at < end:
        tag, start = _varint(message, at, end)
        kind = tag & 7
        if tag < 8:
            raise ValueError("there is no field 0")
        if kind == _VARINT:
            fixed.extend(range(at, start))
            at = _varint(message, start, end)[1]
        elif kind == _BYTES:
            size, first = _varint(message, start, end)
            fixed.extend(range(at, first))
            start, at = first, first + size
        elif kind in _SIZES:
            fixed.extend(range(at, start))
            at = start + _SIZES[kind]
        else:
            raise ValueError(f"there is no wire type {kind}")
        if at > end:
            raise ValueError("the message is cut off")
        yield tag >> 3, kind, start, at


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("the message is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has more than ten bytes")
