# SPDX-License-Identifier: MIT
"""The pickles of NAS-Bench-201 and NATS-Bench, read run by run without running what they say.

Both benchmarks keep a nested dictionary for each architecture, which their classes ``ArchResults``
and ``ResultsCount`` write; here every dictionary of a run becomes a few small arrays as soon as it
is complete. So the one file of NAS-Bench-201, which takes 28 GB in the authors' reader, takes its
curves, and four bytes for everything that the pickle could refer back to. That is so for the files
of the authors: one made to do harm can have an object, of some fifty bytes, for each of its bytes.

Names are answered as :mod:`nasfast.unpickling` says: nothing of the file's choice is called.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from nasfast.tables.official_runs import ArchRuns, arch_runs_of, is_number, is_run, run_of
from nasfast.unpickling import CarefulUnpickler, RefusedError, shown

__all__ = ["OfficialUnpickler"]

_RAW_ENCODINGS = ("latin1", "latin-1", "iso-8859-1")


class _Memo:
    """What a pickle refers back to, four bytes a place: equal texts are kept once."""

    def __init__(self) -> None:
        self._numbers = array("I")
        self._values: list[Any] = []
        self._texts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __setitem__(self, place: int, value: Any) -> None:
        number = len(self._values)
        if type(value) is str:
            number = self._texts.setdefault(value, number)
        if number == len(self._values):
            self._values.append(value)
        if place == len(self._numbers):
            self._numbers.append(number)
        elif place < len(self._numbers):
            self._numbers[place] = number
        else:
            raise RefusedError("its references are not in order")

    def __getitem__(self, place: int) -> Any:
        if place >= len(self._numbers):
            raise RefusedError("it refers back to what it does not have")
        return self._values[self._numbers[place]]


class _Ignored:
    """For what is of no use here, such as weights: takes what it is given, keeps none of it."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Ignored:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Of a list."""

    def extend(self, values: Any) -> None:
        """Of a list."""


class _NumberType:
    """For ``numpy.dtype``: a type of numbers."""

    __slots__ = ("_name", "_order")

    def __init__(self, name: str) -> None:
        if name not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise RefusedError(f"a number of type '{shown(str(name))}'")
        self._name, self._order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1] if state[1] in ("<", ">") else "|"

    def number(self, raw: bytes) -> float:
        dtype = np.dtype(self._name).newbyteorder(self._order)  # type: ignore[arg-type]
        if len(raw) != dtype.itemsize:
            raise RefusedError(f"a number of {len(raw)} bytes, wanted {dtype.itemsize}")
        return float(np.frombuffer(raw, dtype)[0])


def _new_number_type(name: Any, *_: Any) -> _NumberType:
    return _NumberType(name.decode("latin1") if isinstance(name, bytes) else name)


def _new_number(kind: Any, raw: Any) -> float:
    if not isinstance(kind, _NumberType) or not isinstance(raw, bytes):
        raise RefusedError("a number without its type or its bytes")
    return kind.number(raw)


def _new_bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in _RAW_ENCODINGS:
        raise RefusedError("bytes that are no text in latin1")
    return text.encode("latin1")


class _Mapping(dict[Any, Any]):
    """What comes of ``OrderedDict``; its attributes, as those of weights, are of no use here."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _new_mapping(*_: Any) -> _Mapping:
    return _Mapping()


def _new_list(values: Any = ()) -> list[Any]:
    return values if isinstance(values, list) else []


_IGNORED = _Ignored()
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _new_mapping,
    ("numpy", "dtype"): _new_number_type,
    ("_codecs", "encode"): _new_bytes,
    **{(f"numpy.{core}.multiarray", "scalar"): _new_number for core in ("core", "_core")},
    **{(module, "set"): _new_list for module in ("builtins", "__builtin__")},
}


class OfficialUnpickler(CarefulUnpickler):
    """Reads a pickle of either benchmark; dictionaries of runs become :class:`ArchRuns`.

    What ``ArchResults.state_dict`` made is replaced by ``{"": found}``, where found is the
    :class:`ArchRuns`, or what `on_arch` returns for it.

    Args:
        stream: Where the pickle begins.
        size: Bytes of the pickle at most.
        on_arch: Called with each architecture and schedule as it is complete.
    """

    def __init__(
        self, stream: BinaryIO, size: int, on_arch: Callable[[ArchRuns], Any] | None = None
    ) -> None:
        super().__init__(stream, size)  # type: ignore[arg-type]  # it reads, no more
        self.memo = _Memo()
        self._on_arch = on_arch or (lambda found: found)

    def find_class(self, module: str, name: str) -> Any:
        """Answer a name by a stand-in."""
        return _STAND_INS.get((module, name), _IGNORED)

    def persistent_load(self, pid: Any) -> Any:
        """Pass over a storage of ``torch.save``."""
        return _IGNORED

    def put(self, mapping: Any, key: Any, value: Any) -> None:
        """Put one entry into a dictionary."""
        self._put_all(mapping, [key, value])

    def _put_all(self, mapping: Any, items: list[Any]) -> None:
        if not isinstance(mapping, dict):
            return  # of something ignored
        keys = items[::2]
        for key in keys:
            if type(key) is not str and not is_number(key) and not is_run(key):
                raise RefusedError(f"it has a dictionary with a key of type {type(key).__name__}")
        mapping.update(zip(keys, items[1::2], strict=True))
        if "train_losses" in mapping and "eval_losses" in mapping:
            mapping[""] = run_of(mapping)
            _keep_only_found(mapping)
        elif "all_results" in mapping and "arch_index" in mapping:
            mapping[""] = self._on_arch(arch_runs_of(mapping))
            _keep_only_found(mapping)

    def _load_new(self) -> None:
        self.stack[-2:] = [_IGNORED]

    def _load_new_with_names(self) -> None:
        self.stack[-3:] = [_IGNORED]

    def _load_set(self) -> None:
        self.stack.append([])

    def _load_items(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _load_frozen(self) -> None:
        self.stack.append(self.pop_mark())

    dispatch = CarefulUnpickler.dispatch | {  # type: ignore[assignment]
        pickle.NEWOBJ[0]: _load_new,
        pickle.NEWOBJ_EX[0]: _load_new_with_names,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.ADDITEMS[0]: _load_items,
        pickle.FROZENSET[0]: _load_frozen,
    }


def _keep_only_found(mapping: dict[Any, Any]) -> None:
    """Empty a dictionary that the pickle may refer back to, and those in it."""
    found = mapping.pop("")
    for value in mapping.values():
        if isinstance(value, dict):
            value.clear()
    mapping.clear()
    mapping[""] = found
