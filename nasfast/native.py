# SPDX-License-Identifier: MIT
"""The compiled modules, imported where they are used: a bare checkout then says what it lacks."""

from importlib import import_module
from types import ModuleType


def host() -> ModuleType:
    """Return ``nasfast._host``: work on program tables that needs no torch.

    Raises:
        ImportError: If it is not built.
    """
    return _load("_host", "")


def ops() -> ModuleType:
    """Return :mod:`nasfast.ops`, the torch operators.

    Raises:
        ImportError: If ``nasfast._ops`` is not built.
    """
    return _load("ops", ", or use backend='reference'")


def _load(name: str, otherwise: str) -> ModuleType:
    try:
        return import_module(f"nasfast.{name}")
    except ImportError as error:
        compiled = "_ops" if name == "ops" else name
        raise ImportError(
            f"nasfast.{compiled} cannot be imported ({error}); build it with 'make install'"
            f"{otherwise}"
        ) from None
