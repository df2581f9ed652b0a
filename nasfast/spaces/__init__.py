# SPDX-License-Identifier: MIT
"""Search spaces as data; importable without torch."""

from __future__ import annotations

import difflib

from nasfast.spaces.nb201 import NB201
from nasfast.spaces.spec import Architecture, CellSpec, OpKind, OpSpec

__all__ = ["NB201", "Architecture", "CellSpec", "OpKind", "OpSpec", "get", "names", "register"]

_SPACES = {NB201.name: NB201}


def names() -> tuple[str, ...]:
    """Return the names that :func:`get` knows."""
    return tuple(_SPACES)


def register(spec: CellSpec) -> CellSpec:
    """Make a search space known by its name, so that a supernet of it can be built.

    Returns:
        The space.

    Raises:
        ValueError: If another space has this name.
    """
    if _SPACES.setdefault(spec.name, spec) != spec:
        raise ValueError(f"spec: another search space is called {spec.name!r}")
    return spec


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
