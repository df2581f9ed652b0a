# SPDX-License-Identifier: MIT
"""What computed the results in a file; it is told where a file goes on with something else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

_LOG = logging.getLogger(__name__)


def origin_of(where: str, path: Path, what: str, before: Sequence[str]) -> str:
    """Name what computes now, with a line in the log if that is new to a file with results.

    Args:
        where: Backend, and instruction set if it chose one.
        path: The file.
        what: What the results in it are called.
        before: Names of what computed them.
    """
    from nasfast import __version__  # here: the package imports this module's users

    origin = f"{where}, nasfast {__version__}"
    if before and origin not in before:
        _LOG.warning(
            "%s: %s so far come from %s, the next from %s: they round differently",
            path, what, ", ".join(before), origin,
        )  # fmt: skip
    return origin
