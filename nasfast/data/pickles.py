# SPDX-License-Identifier: MIT
"""Reading the pickled batches of CIFAR and ImageNet16 without trusting them.

A pickle may name any function of the machine and have it called. The official batches need a
handful of NumPy names only, so each is answered by a stand-in that notes what it is given, and
every other name is refused. Arrays are made from the notes once the pickle has been read: NumPy's
own unpickling can crash the process on damaged bytes, and so can the C unpickler, which is why
the one written in Python is used. It reads a CIFAR-10 batch in a fraction of a second.
"""

import io
import math
import pickle
import re
from typing import Any, Literal

import numpy as np

__all__ = ["load_batch"]

_RAW_ENCODINGS = ("latin1", "latin-1", "iso-8859-1")
_NUMBER_TYPE = re.compile("b1|[iu][1248]|f[248]")


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
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if isinstance(value, dict):
            value = {_text(key): _finished(entry) for key, entry in value.items()}
    except _RefusedError as error:
        raise ValueError(f"{where} is refused: {error}") from None
    # Damaged opcodes call the stand-ins with anything, so any kind of exception can come.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where} must be a whole pickled batch, got {reason}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a dictionary, got {type(value).__name__}")
    return value


def _text(key: Any) -> Any:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _finished(entry: Any) -> Any:
    return entry.to_numpy() if isinstance(entry, _Array) else entry


class _RefusedError(pickle.UnpicklingError):
    pass


class _NumberType:
    """What a pickle says of a dtype; numbers only, as objects could hold anything."""

    __slots__ = ("byte_order", "name")

    def __init__(self, name: str) -> None:
        if not _NUMBER_TYPE.fullmatch(name):
            raise _RefusedError(f"an array of type {name!r}, wanted one of numbers")
        self.name = name
        self.byte_order: Literal["|", "<", ">"] = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def to_numpy(self) -> "np.dtype[Any]":
        return np.dtype(self.name).newbyteorder(self.byte_order)


class _Array:
    """What a pickle says of an array: shape, type, order and bytes."""

    __slots__ = ("state",)

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state[1:]

    def to_numpy(self) -> np.ndarray:
        shape, kind, fortran, raw = self.state
        if not isinstance(kind, _NumberType):
            raise TypeError(f"array of {type(kind).__name__}")
        # Text if Python 2 wrote it.
        content = raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))
        dtype = kind.to_numpy()
        if any(type(size) is not int or size < 0 for size in shape) or (
            math.prod(shape) * dtype.itemsize != len(content)
        ):
            raise ValueError(f"{len(content)} bytes for an array {shape} of {dtype}")
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

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in _RAW_ENCODINGS:
            raise _RefusedError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _NewNumberType(),
    ("_codecs", "encode"): _RawBytes(),
    # NumPy 2 renamed its private package from `core` to `_core`; files of both kinds exist.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _NewArray() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _ArrayFromBuffer() for core in ("core", "_core")},
}


class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(
                f"it asks for {module}.{name}, which no batch of images needs"
            ) from None
