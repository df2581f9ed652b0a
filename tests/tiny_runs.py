"""Helpers: configurations and run folders small enough for a test, and the command line."""

import atexit
import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from nasfast.cli import app
from nasfast.config import RunConfig, parse_config
from nasfast.runs import Run
from nasfast.scoring import score_settings
from nasfast.steps import rank_run, train_run
from nasfast.store import ScoreStore

REPOSITORY = Path(__file__).parents[1]
RUN = {
    "name": "tiny",
    "data": {"name": "digits", "train_images": 64, "valid_images": 48, "test_images": 48},
    "supernet": {"channels": 2, "cells_per_stage": 1},
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.05},
    "rank": {"batch_size": 24, "archs": 12},
}
TABLE = {
    "name": "tiny-table",
    "data": {"name": "digits", "train_images": 32, "valid_images": 24, "test_images": 40},
    "supernet": {"channels": 2, "cells_per_stage": 1},
    "train": {"epochs": 2, "batch_size": 16},
    "table": {
        "archs": 2,
        "seeds": [0, 1],
        "truth_name": "accuracy of a test",
        "backend": "reference",
    },
}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values: ``{"train.lr": 0.1}``; None takes a key away."""
    values = copy.deepcopy(base)
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
        if value is None:
            place.pop(key, None)
        else:
            place[key] = value
    return values


def write_toml(path: Path, values: dict[str, Any]) -> Path:
    """Write plain values; JSON's scalars and lists are TOML too."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for section in values.keys() - plain.keys():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values[section].items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def run_config(**changes: Any) -> RunConfig:
    """The tiny configuration with changes: ``run_config(train__lr=0.1)``."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_config(changed(RUN, dotted), RunConfig)


@functools.cache
def _shared(ranked: bool) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nasfast-test-")) / "run"
    atexit.register(shutil.rmtree, folder.parent)
    if ranked:
        shutil.copytree(_shared(False), folder)
        rank_run(Run.open(folder))
    else:
        train_run(Run.create(run_config(), folder))
    return folder


def tiny_run(folder: Path, *, ranked: bool = False) -> Path:
    """A copy of a run that is trained, and maybe ranked."""
    shutil.copytree(_shared(ranked), folder)
    return folder


def edit_config(run: Path, **changes: Any) -> None:
    """Change the configuration of a run behind its back."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    file = run / "config.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), dotted)))


def scores(folder: Path, weights: str = "supernet") -> list[list[float]]:
    """Official indices, losses and accuracies in the score file of a run."""
    run = Run.open(folder)
    with ScoreStore(run.score_file, score_settings(run, run.supernet(run.splits()))) as store:
        return [array.tolist() for array in store.read(weights)]


def cli(*arguments: object) -> Any:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def printed(result):
    """The one JSON object that a command printed; JSON proper, without NaN."""
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(result.stdout, parse_constant=refuse)


def refusal(result: Any, code: int = 2) -> str:
    """The message of a command that failed as it should: one error, no traceback, no output."""
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    assert result.stdout == ""
    return result.stderr.partition("error: ")[2].strip()


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start a command as a process of its own, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "nasfast", *map(str, arguments)],
        cwd=cwd, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """Undo what a shell does to jobs in the background, this test run perhaps among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(what: Any, process: subprocess.Popen[str], limit_s: float = 60) -> None:
    """Wait until a condition holds while a process runs."""
    end = time.monotonic() + limit_s
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    """Whole lines of a file, 0 without one."""
    return path.read_text().count("\n") if path.is_file() else 0


def leftovers(folder: Path) -> list[str]:
    """Half-written files."""
    return [f.name for f in folder.rglob("*") if f.name.endswith((".partial", ".tmp"))]
