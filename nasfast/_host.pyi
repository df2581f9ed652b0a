"""Planning helpers over packed program tables (csrc/program/program_table.h)."""

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
