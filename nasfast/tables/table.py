# SPDX-License-Identifier: MIT
"""What every source of ground truth comes to: one value for each official index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Table:
    """Ground truth of some or all architectures of a space.

    Attributes:
        name: Name of the table, for people.
        truth_name: What one value is, for people.
        truth: Higher is better, float64 ``[num_archs]`` by official index; NaN where unknown.
    """

    name: str
    truth_name: str
    truth: npt.NDArray[np.float64]

    @property
    def known(self) -> npt.NDArray[np.int64]:
        """Official indices with a finite value, ascending."""
        return np.flatnonzero(np.isfinite(self.truth))
