# SPDX-License-Identifier: MIT
"""The package builds from a clean copy of the sources, and says what to do where it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NOT_SOURCES = (".*", "__pycache__", "bench", "build", "dist", "runs", "tests", "*.egg-info", "*.so")
INSTALLED = (".py", ".pyi", ".json", ".html.j2", ".csv.gz", "py.typed")


@pytest.fixture
def sources(tmp_path):
    return shutil.copytree(
        REPOSITORY, tmp_path / "sources", ignore=shutil.ignore_patterns(*NOT_SOURCES)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # it compiles everything, on cores that other tests use
def test_install_from_a_clean_copy(sources, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(site), str(sources)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    installed = subprocess.run(
        [sys.executable, "-c", "import nasfast._host; print(nasfast._host.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    assert Path(installed.stdout.strip()).parent == site / "nasfast"
    wanted = [path for path in sources.glob("nasfast/**/*") if path.name.endswith(INSTALLED)]
    missing = [path for path in wanted if not (site / path.relative_to(sources)).is_file()]
    assert missing == []


def test_isolated_build_says_what_to_do(sources):
    """An isolated build has no torch; it is hidden here, as a real one needs a package index."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'egg_info'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (message,) = done.stderr.splitlines()
    assert message.startswith("cannot build nasfast")
    assert "torch" in message
    assert "pip install --no-build-isolation ." in message
