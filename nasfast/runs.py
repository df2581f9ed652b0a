# SPDX-License-Identifier: MIT
"""A run is a folder: resolved config, versions, weights, scores, report. A killed run continues.

=========================  ====================================================================
``config.json``            the resolved configuration; a run never changes it
``environment.json``       versions, commit and machine of each command that ran here, backend,
                           instruction set and threads
``training.safetensors``   weights, momentum and log after the last whole epoch, while training
``training.jsonl``         one line an epoch
``supernet.safetensors``   the trained weights
``scores.sqlite``          one row for each architecture scored
``scores.bits``            which images each of them classified correctly
``until.sqlite``           losses of minibatches, of a ranking that stops when it knows enough
``finetune.sqlite``        the curves of each architecture fine-tuned
``verification.json``      what computing a sample of the scores again came to
``report.html``            the report; its plots also under ``plots/``
``lock``                   held by the command that works here
=========================  ====================================================================
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nasfast import tables
from nasfast.config import RunConfig, chosen_archs, parse_config
from nasfast.data import Splits
from nasfast.files import differences, read_json, write_text
from nasfast.layout import SupernetConfig
from nasfast.spaces import Architecture
from nasfast.supernet import Supernet
from nasfast.train import EpochRecord


class RunError(RuntimeError):
    """A run folder cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """A run folder and its configuration.

    Attributes:
        folder: The folder.
        config: Its resolved configuration.
    """

    folder: Path
    config: RunConfig

    @property
    def supernet_file(self) -> Path:
        """The trained weights."""
        return self.folder / "supernet.safetensors"

    @property
    def state_file(self) -> Path:
        """Where training stands."""
        return self.folder / "training.safetensors"

    @property
    def log_file(self) -> Path:
        """One line for each epoch trained."""
        return self.folder / "training.jsonl"

    @property
    def score_file(self) -> Path:
        """The scores."""
        return self.folder / "scores.sqlite"

    @property
    def bits_file(self) -> Path:
        """Which images were classified correctly."""
        return self.folder / "scores.bits"

    @property
    def until_file(self) -> Path:
        """Losses of a ranking that stops when it knows enough."""
        return self.folder / "until.sqlite"

    @property
    def curve_file(self) -> Path:
        """The curves of fine-tuned architectures."""
        return self.folder / "finetune.sqlite"

    @classmethod
    def create(cls, config: RunConfig, folder: str | os.PathLike[str]) -> Run:
        """Make a run folder, or go on with one of the same configuration.

        A folder where nothing is trained yet takes the new configuration, so that a mistake in the
        first one can be mended.

        Raises:
            RunError: If the folder holds a run of another configuration, or something else.
            OSError: If the folder cannot be written.
        """
        path = Path(folder)
        run = cls(path, config)
        values = config.model_dump(mode="json")
        if not run._is_started:
            if not (path / "config.json").is_file() and path.exists() and not _nothing_in(path):
                raise RunError(f"{path}: exists and is no run folder; give another one with --run")
            path.mkdir(parents=True, exist_ok=True)
            with run.locked("train"):  # unless another process is about to begin here
                if not run._is_started:
                    write_text(path / "config.json", json.dumps(values, indent=1) + "\n")
                    return run
        changed = differences(cls.open(path).config.model_dump(mode="json"), values)
        if changed:
            raise RunError(
                f"{path}: holds a run of another configuration ({'; '.join(changed)}); "
                "give another folder with --run"
            )
        return run

    @property
    def _is_started(self) -> bool:
        files = (self.supernet_file, self.state_file, self.score_file, self.curve_file)
        return (self.folder / "config.json").is_file() and any(file.exists() for file in files)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Open an existing run folder.

        Raises:
            RunError: If it is none, or its configuration is damaged.
        """
        file = Path(folder) / "config.json"
        if not file.is_file():
            raise RunError(f"{folder}: not a run folder (it has no config.json)")
        try:
            return cls(Path(folder), parse_config(read_json(file), RunConfig, where=str(file)))
        except ValueError as error:
            raise RunError(str(error)) from None

    @contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Keep other processes from working on this run; the lock ends with the process.

        Args:
            command: What works, for the message that they get.

        Raises:
            RunError: If another process works on it.
            OSError: If the folder cannot be written.
        """
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
                raise RunError(
                    f"{self.folder}: another process works on this run ({holder or 'unknown'}); "
                    "wait for it, or stop it"
                ) from None
            os.ftruncate(file, 0)
            os.pwrite(file, f"nasfast {command}, process {os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(file)

    def with_options(
        self, section: str = "rank", *, threads: int | None = None, **options: Any
    ) -> Run:  # fmt: skip
        """Return the run with options of a command in place of values of its configuration.

        The folder keeps its configuration.

        Args:
            section: As of :meth:`nasfast.config.RunConfig.with_options`.
            threads: Likewise.
            **options: Likewise.

        Raises:
            ValueError: If a value is out of range, or the backend does not have the precision.
        """
        return Run(self.folder, self.config.with_options(section, threads=threads, **options))

    def shape(self, splits: Splits) -> SupernetConfig:
        """Return the shape of the supernet for the images of this run."""
        return self.config.supernet_config(splits.num_classes, splits.train.images.shape[1])

    def supernet(self, splits: Splits) -> Supernet:
        """Load the trained weights.

        Raises:
            RunError: If the run is not trained, or the file is not the supernet that this run's
                configuration describes.
        """
        if not self.supernet_file.is_file():
            raise RunError(f"{self.folder}: not trained yet; run 'nasfast train' first")
        try:
            supernet = Supernet.load(self.supernet_file)
        except ValueError as error:
            raise RunError(str(error)) from None
        wanted, got = self.shape(splits).to_dict(), supernet.config.to_dict()
        wrong = [f"wanted {key}={wanted[key]!r}, got {got[key]!r}"
                 for key in wanted if wanted[key] != got[key]]  # fmt: skip
        if wrong:
            raise RunError(
                f"{self.supernet_file}: not the supernet of this run: {'; '.join(wrong)}"
            )
        return supernet

    def splits(self) -> Splits:
        """Return the images that the configuration names; an archive is read once."""
        return self._splits

    @cached_property
    def _splits(self) -> Splits:
        return self.config.data.load(self.config.seed)

    def truth(self) -> tables.Table | None:
        """Load the ground truth that the configuration names, None without one."""
        truth = self.config.truth
        if truth is None:
            return None
        return tables.load(truth.table, self.config.supernet.spec, truth.column)

    def archs(self) -> list[Architecture]:
        """Return the architectures that this run ranks, in official order."""
        rank = self.config.rank
        return chosen_archs(self.config.supernet.spec, rank.archs, self.config.seed, rank.without)

    def records(self) -> list[EpochRecord]:
        """Return the record of each epoch trained; none if the log is missing.

        Raises:
            RunError: If the log is damaged.
        """
        if not self.log_file.is_file():
            return []
        try:
            lines = self.log_file.read_text(encoding="utf-8").splitlines()
            return [EpochRecord(**json.loads(line)) for line in lines]
        except (TypeError, ValueError, RecursionError) as error:
            raise RunError(f"{self.log_file}: damaged ({error}); it may be deleted") from None

    def environments(self) -> list[dict[str, Any]]:
        """Return versions, commit and machine of each command that ran here."""
        file = self.folder / "environment.json"
        return read_json(file, list) if file.is_file() else []

    def record_environment(self, command: str, **more: Any) -> None:
        """Append versions, commit and machine to ``environment.json``, and what else is given."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"command": command, "time": now, **environment(), **more}
        entries = [*self.environments(), entry]
        write_text(self.folder / "environment.json", json.dumps(entries, indent=1) + "\n")


def _nothing_in(folder: Path) -> bool:
    """Whether this is an empty folder, but for a lock and what a kill left of the first file."""
    kept = {"config.json.partial", "lock"}
    return folder.is_dir() and all(file.name in kept for file in folder.iterdir())


def environment() -> dict[str, Any]:
    """Return versions, commit and machine."""
    from nasfast import __version__

    return {
        "nasfast": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this package lies in, None for an installed one."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
