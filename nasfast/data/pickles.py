# SPDX-License-Identifier: MIT
"""Reading the pickled batches of CIFAR and ImageNet16 without trusting them.

The official batches need a handful of NumPy names only, so each is answered by a stand-in that
notes what it is given, and every other name is refused (:mod:`nasfast.unpickling`). Arrays are
made from the notes once the pickle has been read: NumPy's own unpickling can crash the process on
damaged bytes. A CIFAR-10 batch takes a fraction of a second.
"""

import io
import math
import pickle
import re
from typing import Any, Literal

import numpy as np

from nasfast.unpickling import CarefulUnpickler, RefusedError, shown

__all__ = ["load_batch"]

_RAW_ENCODINGS = ("latin1", "latin-1", "iso-8859-1")
_NUMBER_TYPE = re.compile("b1|[iu][1248]|f[248]")
_BYTE_ORDERS = ("|", "<", ">", "=")
_MOST_DIMENSIONS, _MOST_SIZE = 32, 1 << 40


def load_batch(content: bytes, where: str) -> dict[str, Any]:
    """Unpickle one batch written by Python 2 or 3.

    Args:
        content: The pickle, any protocol.
        where: What messages call it.

    Returns:
        The dictionary, with byte-string keys turned into text.

    Raises:
        ValueError: If `content` is cut off or damaged, names something that such a batch does
            not need, or holds no dictionary.
    """
    if content[-1:] != pickle.STOP:
        raise ValueError(
            f"{where} must be a whole pickled batch, got {len(content)} bytes without a pickle's "
            "end; it may be cut off"
        )
    try:
        reader = _Unpickler(io.BytesIO(content), len(content))
        value = reader.load()
        if isinstance(value, dict):
            value = {_text(key): _finished(entry, reader) for key, entry in value.items()}
    except RefusedError as error:
        raise ValueError(f"{where} is refused: {error}") from None
    # Damaged opcodes call the stand-ins with anything, so any kind of exception can come.
    except Exception as error:
        reason = f"{type(error).__name__}: {shown(str(error), 200)}"
        raise ValueError(f"{where} must be a whole pickled batch, got {reason}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a dictionary, got {type(value).__name__}")
    return value


def _text(key: Any) -> Any:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _finished(entry: Any, reader: CarefulUnpickler) -> Any:
    return entry.to_numpy(reader) if isinstance(entry, _Array) else entry


class _NumberType:
    """What a pickle says of a dtype; numbers only, as objects could hold anything."""

    __slots__ = ("byte_order", "name")

    def __init__(self, name: str) -> None:
        if not _NUMBER_TYPE.fullmatch(name):
            raise RefusedError(f"an array of type '{shown(name)}', wanted one of numbers")
        self.name = name
        self.byte_order: Literal["|", "<", ">"] = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in _BYTE_ORDERS:
            raise ValueError("a number type without a byte order")
        self.byte_order = order

    def to_numpy(self) -> "np.dtype[Any]":
        return np.dtype(self.name).newbyteorder(self.byte_order)


class _Array:
    """What a pickle says of an array: shape, type, order and bytes."""

    __slots__ = ("state",)

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.state = (shape, kind, fortran, raw)

    def to_numpy(self, reader: CarefulUnpickler) -> np.ndarray:
        shape, kind, fortran, raw = self.state
        if not isinstance(kind, _NumberType):
            raise TypeError(f"array of {type(kind).__name__}")
        if not isinstance(raw, str | bytes | bytearray):
            raise TypeError(f"array with content of type {type(raw).__name__}")
        reader.spend(len(raw))
        # Text if Python 2 wrote it.
        content = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        dtype = kind.to_numpy()
        # Each size alone first: a product of many large numbers takes for ever.
        fits = type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS and all(
            type(size) is int and 0 <= size <= _MOST_SIZE for size in shape
        )  # fmt: skip
        if not fits or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes for an array of {dtype} and another shape")
        flat = np.frombuffer(content, dtype=dtype)
        return flat.reshape(shape, order="F" if fortran else "C")


class _StandIn:
    """Base of the stand-ins; no attributes, so a pickle cannot change them for the next."""

    __slots__ = ()


class _ArrayType(_StandIn):
    """For ``numpy.ndarray``: only ever an argument of `_NewArray`."""

    __slots__ = ()


class _NewArray(_StandIn):
    """For ``_reconstruct``: an array that the pickle's next step fills."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _NewNumberType(_StandIn):
    """For ``numpy.dtype``; the flags after the name say how to copy."""

    __slots__ = ()

    def __call__(self, name: str | bytes, *_: Any) -> _NumberType:
        return _NumberType(_text(name))


class _ArrayFromBuffer(_StandIn):
    """For ``_frombuffer``, which protocol 5 uses."""

    __slots__ = ()

    def __call__(self, buffer: Any, kind: Any, shape: Any, order: Any) -> _Array:
        return _Array(shape, kind, order == "F", buffer)


class _RawBytes(_StandIn):
    """For ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""

    __slots__ = ("reader",)

    def __init__(self, reader: CarefulUnpickler) -> None:
        self.reader = reader

    def __call__(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or not isinstance(encoding, str):
            raise TypeError("wanted text and an encoding")
        if encoding not in _RAW_ENCODINGS:
            raise RefusedError(f"bytes in the encoding '{shown(encoding)}'")
        self.reader.spend(len(text))
        return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _NewNumberType(),
    # NumPy 2 renamed its private package from `core` to `_core`; files of both kinds exist.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _NewArray() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _ArrayFromBuffer() for core in ("core", "_core")},
}


class _Unpickler(CarefulUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _RawBytes(self)
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise RefusedError(
                f"it asks for {shown(module)}.{shown(name)}, which no batch of images needs"
            ) from None
