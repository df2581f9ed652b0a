# SPDX-License-Identifier: MIT
"""What every test shares: one torch thread, steady hypothesis runs, the folder of real data."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).parents[1]

# No deadline: a shared machine stalls. In CI the same examples every time.
settings.register_profile("nasfast", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("nasfast")


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real tables and images, no part of the project: tests of them are skipped without."""
    folder = Path(os.environ.get("NASFAST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set NASFAST_DATA")
    return folder
