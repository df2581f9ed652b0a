# SPDX-License-Identifier: MIT
"""The curves of a run's fine-tuned architectures, in one SQLite file beside its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from nasfast.curves import Curves
from nasfast.store import Store

_ARRAYS = tuple(f.name for f in fields(Curves) if f.name != "diverged_at")
_FLOAT = np.dtype("<f8")


class CurveStore(Store):
    """Curves: for each architecture its arrays, little-endian float64, and where it diverged."""

    table = "curves"
    columns = ", ".join(["diverged_at INTEGER NOT NULL", *(f"{n} BLOB NOT NULL" for n in _ARRAYS)])
    noun = "curve"
    again = "fine-tune anew"

    def add(
        self, weights: str, archs: Sequence[int], curves: Curves,
        work: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Add the curves of a chunk in one transaction: all of them, or none.

        Args:
            weights: Name of the weight set.
            archs: Official indices, one for each row of the curves.
            curves: What was recorded.
            work: What computing them took, numbers by name, for :meth:`Store.work`.

        Raises:
            StoreError: If an architecture has curves already.
            OSError: If the disk refuses.
        """
        blobs = [getattr(curves, name).astype(_FLOAT, copy=False) for name in _ARRAYS]
        rows = [
            (weights, int(arch), int(curves.diverged_at[k]), *(b[k].tobytes() for b in blobs))
            for k, arch in enumerate(archs)
        ]
        self._insert(rows, *([] if work is None else [self._worked(weights, work)]))

    def read(self, weights: str) -> tuple[npt.NDArray[np.int64], Curves]:
        """Return official indices (ascending) and the curves of each.

        Raises:
            StoreError: If curves are damaged, or those of two differ in length.
        """
        rows = self._rows(f"arch, diverged_at, {', '.join(_ARRAYS)}", weights)
        archs = np.array([row[0] for row in rows], dtype=np.int64)
        try:
            columns = [[np.frombuffer(row[k], dtype=_FLOAT) for row in rows]
                       for k in range(2, 2 + len(_ARRAYS))]  # fmt: skip
            arrays = [np.array(column, dtype=np.float64) for column in columns]
            diverged_at = np.array([row[1] for row in rows], dtype=np.int32)
        except (OverflowError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from None
        return archs, Curves(**dict(zip(_ARRAYS, arrays, strict=True)), diverged_at=diverged_at)
