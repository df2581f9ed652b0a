# SPDX-License-Identifier: MIT
"""Checks of plain arguments that several modules of the package share."""

import operator

__all__ = ["check_integer"]


def check_integer(argument: str, value: object, minimum: int) -> int:
    """Return `value` as an int, or raise ValueError naming `argument`."""
    wanted = f"{argument} must be an integer of at least {minimum}"
    if isinstance(value, bool):
        raise ValueError(f"{wanted}, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{wanted}, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{wanted}, got {number}")
    return number
