# SPDX-License-Identifier: MIT
"""Numbers as a report writes them."""

import math

import pytest

from nasfast.report import numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.count(15_625), "15,625"),
        (numbers.things(1, "tie", "ties"), "1 tie"),
        (numbers.correlation(0.70049), "0.700"),
        (numbers.correlation(-0.0001), "0.000"),
        (numbers.correlation(-0.25), "\N{MINUS SIGN}0.250"),
        (numbers.correlation(math.nan), "undefined"),
        (numbers.percent(0.96094), "96.09\N{NARROW NO-BREAK SPACE}%"),
        (numbers.significant(0.0816612), "0.08166"),
        (numbers.significant(9.99996), "10.00"),
        (numbers.significant(12_345.6), "12,346"),
        (numbers.significant(1.25e9, 3), "1.25e9"),
        (numbers.significant(0.0), "0"),
        (numbers.significant(math.inf), "not finite"),
        (numbers.millions(73_306), "0.0733"),
        (numbers.millions(153.27e6), "153"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected
