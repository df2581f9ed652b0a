"""What a run survives: kills at any moment, a full disk, a damaged file, a clock that jumps."""

import contextlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import (
    REPOSITORY,
    RUN,
    changed,
    cli,
    edit_config,
    refusal,
    run_config,
    scores,
    tiny_run,
    write_toml,
)

from nasfast.image_bits import ImageBits
from nasfast.runs import Run
from nasfast.spaces import NB201
from nasfast.steps import train_run

KILLS = {"train": 20, "rank": 50, "finetune": 50, "until": 20}  # seeded random moments of each
CHANGES = {
    "rank__archs": 40, "finetune__archs": 8, "finetune__steps": 3, "finetune__batch_size": 24,
}  # fmt: skip


class Killable:
    """Steps of runs in a process that can be killed."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.parent = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killable.py"))], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, step: str, folder: Path, kill_after_s: float | None = None,
        kill_when: Callable[[], bool] | None = None,
    ) -> int:  # fmt: skip
        """Exit code of a step: 0 done, -9 killed."""
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write(json.dumps([step, str(folder)]) + "\n")
        self.parent.stdin.flush()
        child = os.pidfd_open(int(self.parent.stdout.readline()))
        try:
            if kill_when is not None:
                while not kill_when() and not select.select([child], [], [], 0.001)[0]:
                    pass
            if kill_after_s is not None:
                time.sleep(kill_after_s)
            if kill_after_s is not None or kill_when is not None:
                with contextlib.suppress(ProcessLookupError):  # it was done
                    signal.pidfd_send_signal(child, signal.SIGKILL)
        finally:
            os.close(child)
        return int(self.parent.stdout.readline())


@pytest.fixture(scope="module")
def killable():
    own = Killable()
    yield own
    own.parent.kill()
    own.parent.communicate()


def content(folder: Path) -> dict[str, object]:
    """All results in a run folder; of a database what it says, as pages may lie in any order.

    Without what depends on the clock: how long the work took.
    """
    found: dict[str, object] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".sqlite":
            with sqlite3.connect(file) as db:
                found[file.name] = sorted(line for line in db.iterdump() if "'work'" not in line)
        elif file.name not in {"environment.json", "lock"} and not file.name.endswith(
            ("-wal", "-shm")
        ):
            found[file.name] = file.read_bytes()
    return found


def fresh(folder: Path, step: str) -> Path:
    """A run at the beginning of a step."""
    edit_config(tiny_run(folder), **CHANGES)
    if step == "train":
        for name in ("supernet.safetensors", "training.jsonl"):
            (folder / name).unlink()
        edit_config(folder, train__epochs=6)
    return folder


def comparable(folder: Path) -> dict[str, object]:
    """The same but for the seconds that training took."""
    found = content(folder)
    if "training.jsonl" in found:
        lines = [json.loads(line) for line in found["training.jsonl"].splitlines()]
        found["training.jsonl"] = [line | {"elapsed_s": 0} for line in lines]
    return found


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux, for process descriptors")
@pytest.mark.parametrize("step", KILLS)
def test_killed_at_any_moment(tmp_path, killable, step):
    """Every lane once, and the bytes of a run that nobody killed."""
    unbroken = fresh(tmp_path / "unbroken", step)
    killable.run(step, fresh(tmp_path / "warm", step))
    began = time.perf_counter()
    assert killable.run(step, unbroken) == 0
    duration = time.perf_counter() - began
    wanted = comparable(unbroken)
    rng = np.random.default_rng(list(step.encode()))
    kills = runs = 0
    while kills < KILLS[step]:
        folder = fresh(tmp_path / f"run {runs}", step)
        runs += 1
        while True:
            enough = kills >= KILLS[step]
            code = killable.run(step, folder, None if enough else duration * rng.random())
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert comparable(folder) == wanted
    assert [f.name for f in tmp_path.glob("*/*.partial")] == []


def rows_of(file: Path) -> int:
    """Scores that are committed."""
    if not file.is_file():
        return 0
    with contextlib.closing(sqlite3.connect(file)) as db:
        try:
            rows = db.execute("SELECT arch FROM scores WHERE weights = 'supernet'").fetchall()
        except sqlite3.OperationalError:  # the table is not there yet, or just being made
            return 0
    return len(rows)


def test_killed_runs_are_resumed_not_begun_anew(tmp_path, killable):
    """Killed as soon as it got anywhere, again and again: it arrives."""
    folder = fresh(tmp_path / "run", "rank")
    counts = [0]
    while True:
        code = killable.run(
            "rank", folder, kill_when=lambda: rows_of(folder / "scores.sqlite") > counts[-1]
        )
        counts.append(rows_of(folder / "scores.sqlite"))
        assert counts[-1] >= counts[-2]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert counts[-1] > counts[-2]
    assert counts[-1] == CHANGES["rank__archs"]
    assert len(counts) > 4


def test_killed_between_the_last_two_files(tmp_path):
    """The supernet is there, and the state that it came from is still there: it goes."""
    folder = fresh(tmp_path / "run", "rank")
    (folder / "training.safetensors").write_bytes(b"left")
    train_run(Run.open(folder))
    assert not (folder / "training.safetensors").exists()


def test_the_configuration_of_a_run_that_is_being_trained_stays(tmp_path):
    """Before its first epoch too, when a folder without results could still take another one."""
    file, folder = write_toml(tmp_path / "c.toml", changed(RUN, {"seed": 1})), tmp_path / "run"
    Run.create(run_config(), folder)
    before = (folder / "config.json").read_bytes()
    with Run.open(folder).locked("train"):
        assert "another process works on this run" in refusal(cli("train", file, "--run", folder))
    assert (folder / "config.json").read_bytes() == before
    assert cli("train", file, "--run", folder, "--json").exit_code == 0
    assert (folder / "config.json").read_bytes() != before


def test_two_processes(tmp_path):
    """The second is told who works there; nothing breaks."""
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, finetune__batch_size=24)
    with Run.open(folder).locked("finetune"):
        for command in ("rank", "finetune"):
            message = refusal(cli(command, folder))
            assert message == (
                f"{folder}: another process works on this run (nasfast finetune, process "
                f"{os.getpid()}); wait for it, or stop it"
            )
        assert not (folder / "scores.sqlite").exists() or scores(folder)[0] == []
    assert cli("rank", folder).exit_code == 0


# What disks do.


def in_small_disk(size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a small file system at ``$DISK``, in a namespace of its own."""
    mount = f'set -e; DISK=$(mktemp -d); mount -t tmpfs -o size={size} none "$DISK"; export DISK; '
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount + script]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def namespaces() -> bool:
    try:
        return in_small_disk("64k", 'echo x > "$DISK/x"').returncode == 0
    except OSError:
        return False


needs_namespaces = pytest.mark.skipif(
    not namespaces(), reason="needs unshare, and permission to mount a small file system with it"
)


@needs_namespaces
@pytest.mark.parametrize("command", ["train", "rank", "finetune"])
def test_full_disk(tmp_path, command):
    """A clear message; when there is room, the same command goes on to the same result."""
    step = command
    folder = fresh(tmp_path / "run", step)
    whole = fresh(tmp_path / "whole", step)
    arguments = f'"{folder}/config.toml" --run' if command == "train" else ""
    if command == "train":
        write_config(folder)
    nasfast = f"{sys.executable} -m nasfast {command} {arguments}"
    script = f"""
        cp -r "{folder}/." "$DISK/run"
        dd if=/dev/zero of="$DISK/filling" bs=1k count=100000 2> /dev/null || true
        {nasfast} "$DISK/run" --json && exit 77
        echo "then" >&2
        rm "$DISK/filling"
        {nasfast} "$DISK/run" --json > /dev/null
        rm -f "$DISK/run/config.toml"; cp -r "$DISK/run/." "{tmp_path}/after"
    """
    done = in_small_disk("3m", script)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    first, _, rest = done.stderr.partition("then\n")
    assert first.count("error: ") == 1
    assert "Traceback" not in first
    assert any(word in first for word in ("No space left", "disk is full", "disk I/O error")), first
    assert "error" not in rest
    arguments = [write_config(whole), "--run", whole] if command == "train" else [whole]
    assert cli(command, *arguments, "--json").exit_code == 0
    (whole / "config.toml").unlink(missing_ok=True)
    report = {"report.html", "plots"}
    after, wanted = (
        {name: value for name, value in comparable(path).items() if name not in report}
        for path in map(without_report, (tmp_path / "after", whole))
    )
    assert after == wanted


def without_report(folder: Path) -> Path:
    for file in sorted((folder / "plots").glob("*")):
        file.unlink()
    if (folder / "plots").is_dir():
        (folder / "plots").rmdir()
    return folder


def write_config(folder: Path) -> Path:
    """The configuration of a run as the file that it may have come from."""
    values = json.loads((folder / "config.json").read_text())
    plain = {
        key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
    return write_toml(folder / "config.toml", plain)


@needs_namespaces
def test_read_only_folder(tmp_path):
    """Said at once, by name."""
    folder = fresh(tmp_path / "run", "rank")
    script = f"""
        cp -r "{folder}/." "$DISK/run"; mount -o remount,ro "$DISK"
        {sys.executable} -m nasfast rank "$DISK/run"
    """
    done = in_small_disk("3m", script)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "/run/lock: Read-only file system" in done.stderr.replace("\n", "")


def test_corrupted_page(tmp_path):
    """What page of the database it may be: told by name, or harmless; never a traceback."""
    folder = tiny_run(tmp_path / "run", ranked=True)
    file = folder / "scores.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before, found = file.read_bytes(), 0
    for page in range(0, len(before), 4096):
        damaged = bytearray(before)
        damaged[page + 40 : page + 400] = np.random.default_rng(page).bytes(360)
        file.write_bytes(damaged)
        result = cli("rank", folder, "--json")
        if result.exit_code != 0:
            found += 1
            assert refusal(result, code=result.exit_code).startswith(f"{file}: ")
        for more in ("-wal", "-shm"):
            file.with_name(file.name + more).unlink(missing_ok=True)
    assert found > 0
    file.write_bytes(before)
    assert cli("rank", folder, "--json").exit_code == 0


def test_truncated_bits(tmp_path):
    """Refused with what to do; done, scores are what they were and the bits are back."""
    folder = tiny_run(tmp_path / "run", ranked=True)
    before, bits = scores(folder), (folder / "scores.bits").read_bytes()
    os.truncate(folder / "scores.bits", len(bits) // 2)
    message = refusal(cli("rank", folder))
    assert message.startswith(f"{folder / 'scores.bits'}: damaged (wanted {len(bits)} bytes, got")
    assert "delete it and rank again" in message
    (folder / "scores.bits").unlink()
    result = cli("rank", folder, "--json")
    assert result.exit_code == 0, result.stderr
    assert scores(folder) == before
    assert (folder / "scores.bits").read_bytes() == bits


def test_one_damaged_row_of_bits(tmp_path, caplog):
    """Only that architecture is scored again."""
    folder = tiny_run(tmp_path / "run", ranked=True)
    before, bits = scores(folder), (folder / "scores.bits").read_bytes()
    row = (len(bits) - 64) // NB201.num_archs
    index = before[0][3]
    damaged = bytearray(bits)
    damaged[64 + index * row + 5] ^= 4
    (folder / "scores.bits").write_bytes(damaged)
    with caplog.at_level("WARNING"):
        result = cli("rank", folder, "--json")
    assert json.loads(result.stdout)["this_call"]["architectures"] == 1
    assert "no valid bits of 1 architectures that have a score" in caplog.text
    assert scores(folder) == before
    assert (folder / "scores.bits").read_bytes() == bits


def test_bits_are_those_of_the_scores(tmp_path):
    folder = tiny_run(tmp_path / "run", ranked=True)
    archs, _, accuracy = scores(folder)
    with ImageBits(folder / "scores.bits", NB201.num_archs, 48) as bits:
        assert bits.read(archs).mean(axis=1).tolist() == accuracy
        assert bits.known(range(NB201.num_archs)).sum() == len(archs)


def test_bits_of_deleted_scores_are_not_kept(tmp_path):
    """Other minibatches, after the scores were deleted as the message says."""
    folder = tiny_run(tmp_path / "run", ranked=True)
    edit_config(folder, rank__batch_size=16, rank__archs=5)
    assert "delete this file" in refusal(cli("rank", folder))
    (folder / "scores.sqlite").unlink()
    assert cli("rank", folder, "--json").exit_code == 0
    with ImageBits(folder / "scores.bits", NB201.num_archs, 48) as bits:
        assert bits.known(range(NB201.num_archs)).sum() == 5


def test_clock_that_jumps(tmp_path, monkeypatch):
    """Ten years back between two commands, and within one."""
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, rank__archs=6)
    assert cli("rank", folder, "--json").exit_code == 0
    with contextlib.closing(sqlite3.connect(folder / "scores.sqlite")) as db:
        db.execute("DELETE FROM scores WHERE arch IN (SELECT arch FROM scores LIMIT 3)")
        db.commit()
    times = iter(range(10**9, -(10**9), -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(times)))
    monkeypatch.setattr(time, "strftime", lambda *_: "1999-12-31T23:59:59+0000")
    assert cli("rank", folder, "--json").exit_code == 0
    monkeypatch.undo()
    whole = tiny_run(tmp_path / "whole")
    edit_config(whole, rank__archs=6)
    assert cli("rank", whole, "--json").exit_code == 0
    assert scores(folder) == scores(whole)
    times_written = [entry["time"][:4] for entry in Run.open(folder).environments()]
    assert "1999" in times_written
