# SPDX-License-Identifier: MIT
"""Tensors in a file that ``torch.save`` wrote, read without running what its pickle says.

The files of xautodl hold more than weights: options, optimizers, genotypes, objects of its own
classes. ``torch.load`` makes all of that, or with ``weights_only=True`` refuses the file. Here
tensors are noted and everything else is passed over; a tensor is made when all that the file says
of it was checked against the bytes that are there. Both formats are read: the zip archive since
PyTorch 1.6, and the stream of pickles before.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasfast.unpickling import CarefulUnpickler, RefusedError, shown

__all__ = ["read_state"]

_MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}
_MOST_DIMENSIONS = 8


def read_state(path: Path, entry: str) -> dict[str, Tensor]:
    """Read the state dict under a key of a checkpoint, or the file's own if it is one.

    Args:
        path: The file.
        entry: The key, for example ``"search_model"``.

    Returns:
        Tensors by name, views of the file's storages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds no such state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint file not found: {path}")
    content = path.read_bytes()
    try:
        read = _read_archive if content[:2] == b"PK" else _read_stream
        value, storage_of = read(content)
        state = value.get(entry, value) if isinstance(value, dict) else None
        if not isinstance(state, dict):
            raise ValueError(f"neither a state dict nor one under {entry!r}")
        tensors = {name: note for name, note in state.items() if isinstance(note, _Note)}
        return {str(name): note.tensor(storage_of) for name, note in tensors.items()}
    # Damaged bytes fail in any layer: zipfile, the opcodes of a pickle, its numbers.
    except Exception as error:
        reason = f"{type(error).__name__}: {shown(str(error), 200)}"
        raise ValueError(f"{path}: not a usable checkpoint of torch.save ({reason})") from None


_StorageOf = Callable[[str], Tensor]  # bytes; all tensors of a storage are views of the same


def _read_archive(content: bytes) -> tuple[Any, _StorageOf]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("wanted one data.pkl")
    folder, left = pickles[0].removesuffix("data.pkl"), len(content)

    def member(name: str) -> bytes:
        nonlocal left
        info = archive.getinfo(folder + name)
        left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or left < 0:
            raise ValueError("wanted members that are stored as they are, one after the other")
        return archive.read(info)

    if f"{folder}byteorder" in archive.namelist() and member("byteorder") != b"little":
        raise ValueError("wanted numbers that begin with their lowest byte")
    pickled = member("data.pkl")
    value = _Unpickler(io.BytesIO(pickled), len(pickled)).load()
    return value, functools.cache(lambda key: _bytes(member(f"data/{key}")))


def _read_stream(content: bytes) -> tuple[Any, _StorageOf]:
    stream = io.BytesIO(content)
    magic, _, _ = (_Unpickler(stream, len(content)).load() for _ in range(3))
    if magic != _MAGIC:
        raise ValueError("it does not begin as one")
    reader = _Unpickler(stream, len(content))
    value, keys = reader.load(), _Unpickler(stream, len(content)).load()
    storages: dict[str, Tensor] = {}
    for key in keys:
        if type(key) is not str or key not in reader.dtypes:  # hashing others may never end
            raise ValueError("a storage that no tensor has")
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = _bytes(stream.read(count * reader.dtypes[key].itemsize))
    return value, storages.__getitem__


def _bytes(content: bytes) -> Tensor:
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class _Ignored:
    """For everything that is no tensor: takes what it is given and keeps none of it."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Ignored:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Of a list or a set."""


class _Mapping(dict[Any, Any]):
    """What comes of ``OrderedDict``; its attributes are of no use here."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _NewMapping:
    """For ``OrderedDict``."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Mapping:
        return _Mapping()


@dataclass(frozen=True, slots=True)
class _Storage:
    """A piece of memory that tensors are views of."""

    dtype: torch.dtype
    key: str


class _Note:
    """What a pickle says of a tensor, in the order of ``_rebuild_tensor_v2``."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def tensor(self, storage_of: _StorageOf) -> Tensor:
        """Make the tensor."""
        storage, size, stride = self.storage, self.size, self.stride
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        content = storage_of(storage.key)
        count, rest = divmod(len(content), storage.dtype.itemsize)
        lists = type(size) is type(stride) is tuple and len(size) == len(stride) <= _MOST_DIMENSIONS
        numbers = (*size, *stride, self.offset) if lists else ()
        # Each number alone first: a product of many large ones takes for ever.
        if not lists or rest or any(type(n) is not int or not 0 <= n <= count for n in numbers):
            raise ValueError("a tensor whose shape is not one of its storage")
        last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # No more elements than are there: one number is no tensor of thousands.
        if math.prod(size) > count or (0 not in size and last >= count):
            raise ValueError(f"a tensor {list(size)} beyond the {count} numbers of its storage")
        if math.prod(size) == 0:
            return torch.empty(size, dtype=storage.dtype)
        return content.view(storage.dtype).as_strided(size, stride, self.offset)


class _NewTensor:
    """For ``_rebuild_tensor_v2``; what follows the stride is about gradients."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Note:
        return _Note(storage, offset, size, stride)


class _Same:
    """For ``_rebuild_parameter`` and ``Size``: what they are made of."""

    __slots__ = ()

    def __call__(self, value: Any, *_: Any) -> Any:
        return value


_IGNORED = _Ignored()
_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _NewMapping(),
    ("torch", "Size"): _Same(),
    ("torch._utils", "_rebuild_parameter"): _Same(),
    ("torch._utils", "_rebuild_tensor"): _NewTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _NewTensor(),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(CarefulUnpickler):
    def __init__(self, stream: io.BytesIO, size: int) -> None:
        super().__init__(stream, size)
        self.dtypes: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _STAND_INS.get((module, name), _IGNORED)

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            raise RefusedError("a reference to something that is no storage")
        kind, key = pid[1], pid[2]
        if not isinstance(kind, torch.dtype) or type(key) is not str:
            return _IGNORED
        if self.dtypes.setdefault(key, kind) != kind:
            raise RefusedError("a storage of two types")
        return _Storage(kind, key)

    def put(self, mapping: Any, key: Any, value: Any) -> None:
        if isinstance(key, str):  # optimizers number their tensors
            mapping[key] = value

    def _load_new(self) -> None:
        self.stack[-2:] = [_IGNORED]

    def _load_new_with_names(self) -> None:
        self.stack[-3:] = [_IGNORED]

    def _load_set(self) -> None:
        self.stack.append(_IGNORED)

    def _load_items(self) -> None:
        self.pop_mark()

    def _load_frozen(self) -> None:
        self.pop_mark()
        self.stack.append(_IGNORED)

    dispatch = CarefulUnpickler.dispatch | {  # type: ignore[assignment]
        pickle.NEWOBJ[0]: _load_new,
        pickle.NEWOBJ_EX[0]: _load_new_with_names,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.ADDITEMS[0]: _load_items,
        pickle.FROZENSET[0]: _load_frozen,
    }
