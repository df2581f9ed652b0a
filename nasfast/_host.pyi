"""Planning helpers over packed program tables, and pair counts of rank metrics."""

from typing import TypedDict

import numpy as np
import numpy.typing as npt

class Work(TypedDict):
    evaluations: dict[str, int]
    macs: int
    cell_macs: int
    shared_macs: int
    chunk_macs: list[int]

def check_table(table: npt.NDArray[np.int32]) -> None: ...
def count_work(table: npt.NDArray[np.int32], height: int, width: int) -> Work: ...
def count_pairs(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]: ...
def bootstrap_pairs(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    resamples: int,
    seed: int,
    threads: int,
) -> npt.NDArray[np.int64]: ...
