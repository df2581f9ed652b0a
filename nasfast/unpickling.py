# SPDX-License-Identifier: MIT
"""Reading pickles of others without running what they say, in time and memory of their size.

A pickle may name any function of the machine and have it called. Here every name is answered by a
stand-in that a subclass chooses, or refused: nothing is imported, and no function or type of the
pickle's choice is called. Python's unpickler in C can crash on damaged bytes, so the one written
in Python is the base. What is short in a file and endless in memory is refused too: lengths and
references beyond the file's own size, sets, and dictionary keys other than text, whose hash can
take for ever or overflow the stack.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

__all__ = ["CarefulUnpickler", "RefusedError", "shown"]

_MOST_ARGUMENTS = 64
_SHOWN = 60


class RefusedError(pickle.UnpicklingError):
    """A pickle asks for what its kind of file does not need."""


def shown(text: str, most: int = _SHOWN) -> str:
    """Return what a file says as one short printable line, for a message."""
    line = text[:most].encode("unicode_escape").decode("ascii")[:most]
    return line if len(text) <= most else f"{line}..."


class _Memo(dict[int, Any]):
    """What a pickle refers back to; numbers beyond its size could all have one hash."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, place: int, value: Any) -> None:
        if place > self._most:
            raise RefusedError("it has a reference beyond its own size")
        super().__setitem__(place, value)


class CarefulUnpickler(pickle._Unpickler):
    """Base of readers that answer names by stand-ins, in a :meth:`find_class` of their own.

    Args:
        stream: Where the pickle begins.
        size: Bytes of the pickle, or of all that are read from the stream.

    Attributes:
        budget: Bytes that stand-ins may still make; text becomes bytes and those an array, so
            twice as many as the pickle has.
    """

    def __init__(self, stream: io.BytesIO, size: int) -> None:
        super().__init__(stream, encoding="latin1")
        self.budget = 2 * size
        self.memo: Any = _Memo(size)
        self.read: Any  # set by load(), as are the stacks
        self.pop_mark: Any
        self.stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every name."""
        raise RefusedError(f"it asks for {shown(module)}.{shown(name)}")

    def spend(self, count: int) -> None:
        """Note that a stand-in makes some bytes.

        Raises:
            RefusedError: If all of them together are more than the pickle has.
        """
        self.budget -= count
        if self.budget < 0:
            raise RefusedError("it unfolds into more bytes than it has")

    def put(self, mapping: Any, key: Any, value: Any) -> None:
        """Put an entry into a dictionary.

        Raises:
            RefusedError: If its key is no text.
        """
        if not isinstance(key, str | bytes):
            raise RefusedError(f"it has a dictionary with a key of type {type(key).__name__}")
        mapping[key] = value

    def _put_all(self, mapping: Any, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.put(mapping, key, value)

    def _load_dict(self) -> None:
        items, mapping = self.pop_mark(), {}  # type: ignore[var-annotated]
        self._put_all(mapping, items)
        self.stack.append(mapping)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put(self.stack[-1], key, value)

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._put_all(self.stack[-1], items)

    def _load_set(self) -> None:
        raise RefusedError("it holds a set")

    def _load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(size)))

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise RefusedError("it has a call with too many arguments")
        self.stack[-1] = self.stack[-1](*arguments)

    def _load_new(self) -> None:
        raise RefusedError("it makes an object of a type")

    dispatch = pickle._Unpickler.dispatch | {  # type: ignore[assignment]
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_new,
        pickle.NEWOBJ_EX[0]: _load_new,
        **dict.fromkeys((pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), _load_set),
    }
