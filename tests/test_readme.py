# SPDX-License-Identifier: MIT
"""The README's example runs as it stands, and is as long as it says."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(lines) == 10 - 1 and "Ten lines" in README  # and the import
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\|.*\|: loss \d\.\d{3}, accuracy \d+\.\d%\n", done.stdout)


def test_opens_with_the_two_commands():
    first_block = re.search(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    assert first_block is not None
    commands = [line.split("#")[0].strip() for line in first_block.group(1).splitlines()]
    assert commands == ["make rank", "make test"]
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        assert f"\n{command.split()[1]}: " in makefile


def test_measured_blocks_are_those_that_the_script_writes():
    done = subprocess.run(
        [sys.executable, "bench/report.py", "--check"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
