# SPDX-License-Identifier: MIT
"""Markdown tables that can be read as they are, and numbers for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "n/a"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table with its columns aligned.

    Args:
        head: Title of each column.
        rows: Cells, as many as titles in each.
        left: So many first columns are aligned to the left, the others to the right.
    """
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(line[k]) for line in lines)) for k in range(len(head))]
    lines.insert(1, ["-" * w if k < left else "-" * (w - 1) + ":" for k, w in enumerate(widths)])
    return "\n".join(
        "| " + " | ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ) + " |"
        for line in lines
    )  # fmt: skip


def number(value: float) -> str:
    """Return a number with three decimals; a word where there is none."""
    return f"{value:.3f}" if math.isfinite(value) else MISSING
