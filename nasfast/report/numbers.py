# SPDX-License-Identifier: MIT
"""Numbers as a reader wants them: few digits, true minus signs, a word where there is none."""

from __future__ import annotations

import math

_MINUS = "\N{MINUS SIGN}"
_THIN = "\N{NARROW NO-BREAK SPACE}"


def count(value: int) -> str:
    """An integer with its thousands separated."""
    return f"{value:,}".replace("-", _MINUS)


def things(value: int, singular: str, plural: str) -> str:
    """A count with its noun in the right number."""
    return f"{count(value)} {singular if value == 1 else plural}"


def correlation(value: float) -> str:
    """A correlation to three decimals, or ``undefined``."""
    if not math.isfinite(value):
        return "undefined"
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}".replace("-", _MINUS)


def interval(bounds: tuple[float, float]) -> str:
    """Both ends of an interval of a correlation."""
    return f"{correlation(bounds[0])} to {correlation(bounds[1])}"


def percent(fraction: float, decimals: int = 2) -> str:
    """A fraction as a percentage."""
    if not math.isfinite(fraction):
        return "not finite"
    return f"{100.0 * fraction:.{decimals}f}{_THIN}%".replace("-", _MINUS)


def significant(value: float, digits: int = 4) -> str:
    """A number to so many significant digits, without an exponent in the usual range."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0.0:
        return "0"
    # The exponent after rounding: 9.9999 to four digits is 10.00, not 10.000.
    mantissa, exponent_text = f"{value:.{digits - 1}e}".split("e")
    exponent = int(exponent_text)
    if not -5 <= exponent < 7:
        return f"{mantissa}e{exponent}".replace("-", _MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", _MINUS)


def millions(value: float) -> str:
    """A number in millions to three significant digits, without the unit."""
    return significant(value / 1e6, 3)
