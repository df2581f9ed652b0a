"""A thousand damaged files, and every hostile pickle we know: one clear error each, or harmless.

Files are read in another process, so that a crash, a hang or a hunger for memory is a failed test
and not the end of all. A failure names kind and seed: ``python tests/fuzz_worker.py KIND SEED``.
"""

import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import fuzz_pickles
import pytest
from fuzz_files import KINDS

LIMIT_S = 5  # of computing, as other processes may be at work
STALLED_S = 100
DOCUMENTED = ("ValueError", "StoreError", "RunError", "OSError")
LONGEST = 2500
REPOSITORY = Path(__file__).parents[1]


class Worker:
    """A process that reads damaged files; another one takes the place of one that died."""

    def __init__(self) -> None:
        self._process = None

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fuzz_worker.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        return process

    def read(self, kind: str, seed: int) -> dict[str, object]:
        """Return what reading a damaged file came to."""
        self._process = self._process or self._start()
        self._process.stdin.write(json.dumps([kind, seed]) + "\n")
        ready = self._wait()
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.close()
        return {"outcome": "crash" if ready else f"more than {LIMIT_S} s", "message": ""}

    def _wait(self) -> bool:
        """Wait for an answer; False if it computes for too long."""
        end, limit = time.monotonic() + STALLED_S, self._computed_s() + LIMIT_S
        while time.monotonic() < end and self._computed_s() < limit:
            if select.select([self._process.stdout], [], [], 0.1)[0]:
                return True
        return False

    def _computed_s(self) -> float:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


def fault(found: dict[str, object]) -> str:
    """What is wrong with an outcome, nothing if it is as it should be."""
    outcome, message = found["outcome"], str(found["message"])
    if outcome not in ("read", *DOCUMENTED):
        return f"{outcome} {message}"
    if found["heard"]:
        return f"ran {found['heard']}"
    if outcome == "read":
        return ""
    if str(found["name"]) not in message:
        return f"the message does not name the file: {message}"
    if "\n" in message or len(message) > LONGEST:
        return f"not one short line: {message}"
    return ""


def check(worker: Worker, kind: str, seeds: range) -> set[str]:
    """Read damaged files; return the different things that messages said."""
    faults, said = [], set()
    for seed in seeds:
        found = worker.read(kind, seed)
        problem = fault(found)
        if problem:
            faults.append(f"{kind} {seed}: {problem}")
        if found["message"]:
            said.add(re.sub(r"\d+|/\S+|'[^']*'", "#", str(found["message"]))[:90])
    assert not faults, "\n".join(faults[:5])
    return said


def test_there_are_a_thousand():
    assert sum(kind.cases for kind in KINDS.values()) >= 1000


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(worker, name):
    kind = KINDS[name]
    said = check(worker, name, range(kind.cases))
    # Many different messages: the damage got past the first check.
    assert len(said) >= kind.said, said


def test_hostile_pickles(worker):
    assert len(check(worker, "pickle", range(fuzz_pickles.count()))) >= 30


def test_a_crash_and_a_hang_are_noticed(worker, monkeypatch):
    assert worker.read("crash", 11)["outcome"] == "crash"
    monkeypatch.setattr("test_fuzz_files.LIMIT_S", 0.2)
    assert worker.read("hang", 0)["outcome"] == "more than 0.2 s"
    monkeypatch.undo()
    assert worker.read("memory", 0)["outcome"] == "MemoryError"
    assert worker.read("run", 0)["heard"] == ["os.system"]
    assert worker.read("bits", 0)["outcome"] == "StoreError"
