# SPDX-License-Identifier: MIT
"""Search spaces as data; importable without torch."""

from __future__ import annotations

import difflib

from nasfast.spaces.nb201 import NB201
from nasfast.spaces.spec import Architecture, CellSpec, OpKind, OpSpec

__all__ = ["NB201", "Architecture", "CellSpec", "OpKind", "OpSpec", "get", "names"]

_SPACES = {NB201.name: NB201}


def names() -> tuple[str, ...]:
    """Return the names that :func:`get` knows."""
    return tuple(_SPACES)


def get(name: str) -> CellSpec:
    """Return a search space by its short name, for example ``"nb201"``.

    Raises:
        ValueError: If there is no such space; the message names the nearest.
    """
    if name not in _SPACES:
        near = difflib.get_close_matches(name, _SPACES, n=1, cutoff=0.0)
        raise ValueError(
            f"space: wanted one of {', '.join(_SPACES)}, got {name!r}; nearest: {near[0]}"
        )
    return _SPACES[name]
