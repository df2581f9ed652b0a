# SPDX-License-Identifier: MIT
"""Search spaces as data; importable without torch."""

from __future__ import annotations

import difflib
from typing import TypeVar, overload

from nasfast.spaces.arch_weights import discretise
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nats_sss import NATS_SSS, SizeSpec
from nasfast.spaces.nb1shot1 import NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3
from nasfast.spaces.nb101_network import PREFIX, Nb101Network
from nasfast.spaces.nb201 import NB201
from nasfast.spaces.space import Architecture, OpKind, OpSpec, Space
from nasfast.spaces.spec import CellSpec

__all__ = [
    "NATS_SSS",
    "NB1SHOT1_1",
    "NB1SHOT1_2",
    "NB1SHOT1_3",
    "NB201",
    "Architecture",
    "BlockSpec",
    "CellSpec",
    "Nb101Network",
    "OpKind",
    "OpSpec",
    "SizeSpec",
    "Space",
    "discretise",
    "get",
    "names",
    "register",
]

_SPACES: dict[str, Space] = {
    space.name: space for space in (NB201, NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3, NATS_SSS)
}
_Space = TypeVar("_Space", bound=Space)


def names(kind: type[Space] | None = None) -> tuple[str, ...]:
    """Return the names that :func:`get` knows, of every kind of space or of one."""
    return tuple(name for name, space in _SPACES.items() if kind is None or isinstance(space, kind))


def register(spec: _Space) -> _Space:
    """Make a search space known by its name, so that a supernet of it can be built.

    Returns:
        The space.

    Raises:
        ValueError: If another space has this name.
    """
    if _SPACES.setdefault(spec.name, spec) != spec:
        raise ValueError(f"spec: another search space is called {spec.name!r}")
    return spec


@overload
def get(name: str) -> Space: ...


@overload
def get(name: str, kind: type[_Space]) -> _Space: ...


def get(name: str, kind: type[Space] | None = None) -> Space:
    """Return a search space by its short name, for example ``"nb201"``.

    Args:
        name: The short name, or that of a :class:`Nb101Network`.
        kind: The kind of space that the caller can work with, for example :class:`CellSpec`.

    Raises:
        ValueError: If there is no such space (the message names the nearest), or it is of another
            kind.
    """
    known = names(kind)
    if name.startswith(PREFIX):
        network = Nb101Network.from_name(name)
        if kind is None or isinstance(network, kind):
            return network
        raise ValueError(f"space: {name!r} cannot be used here, wanted one of {', '.join(known)}")
    if name not in _SPACES:
        near = difflib.get_close_matches(name, _SPACES, n=1, cutoff=0.0)[0]
        raise ValueError(f"space: wanted one of {', '.join(known)}, got {name!r}; nearest: {near}")
    if name not in known:
        raise ValueError(f"space: {name!r} cannot be used here, wanted one of {', '.join(known)}")
    return _SPACES[name]
