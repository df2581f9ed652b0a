# SPDX-License-Identifier: MIT
"""The main job, timed: what ``make rank`` does after installation, in a folder of its own."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment

REPOSITORY = Path(__file__).parents[1]
CONFIG = "configs/nb201_digits.toml"


def run(*arguments: str) -> tuple[list[str], float]:
    """Run a nasfast command; return the lines it printed and its seconds."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "nasfast", *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines(), time.perf_counter() - begin


def main() -> None:
    """Train, rank, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_folder = str(Path(folder) / "nb201_digits")
        trained, train_s = run("train", CONFIG, "--run", run_folder)
        ranked, rank_s = run("rank", run_folder)
    lines = [line.replace(run_folder, "runs/nb201_digits") for line in (*trained, *ranked)]
    result = {
        "name": "rank_digits",
        "work": "train a supernet on the digits, score all 15,625 architectures of NAS-Bench-201",
        "output": lines,
        "train_s": round(train_s, 1),
        "rank_s": round(rank_s, 1),
        "environment": environment(threads=1),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
