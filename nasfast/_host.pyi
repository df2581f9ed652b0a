"""Planning helpers over packed program tables, pair counts, and cells of NAS-Bench-101."""

from collections.abc import Callable
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
def nb101_hashes(
    num_vertices: npt.NDArray[np.uint8], bits: npt.NDArray[np.uint32], ops: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]: ...
def nb101_cells(
    max_vertices: int, on_progress: Callable[[int, int], None] | None
) -> tuple[
    npt.NDArray[np.uint8],
    npt.NDArray[np.uint8],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint8],
    int,
]: ...
