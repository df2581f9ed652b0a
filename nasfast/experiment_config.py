# SPDX-License-Identifier: MIT
"""An experiment as one TOML file: the configuration of a run, a grid of changes to it, and seeds.

Beside the sections of a run (without ``name`` and ``seed``)::

    [experiment]
    name = "rates"
    seeds = [0, 1, 2]
    steps = ["rank"]              # after training: rank, finetune
    [experiment.grid]             # may be left out: one grid point
    "train.lr" = [0.01, 0.025]
    "supernet.channels" = [4, 8]
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nasfast.config import ConfigError, RunConfig, parse_config, read_toml
from nasfast.sections import Section, Seed

Step = Literal["rank", "finetune"]

# Keys of a run that are no part of a grid, and what sets them instead.
_ELSEWHERE = {"name": "experiment.name", "seed": "experiment.seeds", "threads": "'threads' itself"}
_LONGEST_LABEL = 120  # characters; file systems end at 255


class ExperimentSection(Section):
    """``[experiment]``: what varies, and what is done with each run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, strict=False)] = ("rank",)
    grid: dict[str, Any] | None = None

    @field_validator("seeds", "steps")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"wanted distinct values, got {list(value)}")
        return value

    @field_validator("grid")
    @classmethod
    def _values_to_try(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        grid: dict[str, Any] = {}
        for key, values in _dotted(value):
            _check_values(key, values)
            if key in grid:
                raise ValueError(f"wanted each key once, got {key!r} twice")
            grid[key] = values
        if not grid:
            raise ValueError("wanted at least one key with a list of values, got none")
        return grid


class _ExperimentFile(Section):
    experiment: ExperimentSection


@dataclass(frozen=True)
class GridPoint:
    """One combination of values.

    Attributes:
        label: Readable and distinct: the name of its folder.
        settings: Value of each key of the grid.
    """

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """A run of an experiment.

    Attributes:
        point: Its grid point.
        config: Its configuration.
        folder: Its folder.
    """

    point: GridPoint
    config: RunConfig
    folder: Path

    @property
    def label(self) -> str:
        """Name inside the folder of the experiment."""
        return f"{self.point.label}/{self.folder.name}"


@dataclass(frozen=True)
class Experiment:
    """What an experiment does.

    Attributes:
        name: Name.
        folder: Where its runs and tables are.
        points: The grid, the last key varying fastest.
        seeds: Of each point.
        steps: What follows training.
        runs: Every point with the first seed, then every point with the next: a killed experiment
            has compared all points.
    """

    name: str
    folder: Path
    points: tuple[GridPoint, ...]
    seeds: tuple[int, ...]
    steps: tuple[Step, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the grid."""
        return tuple(self.points[0].settings)


def load_experiment(
    path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> Experiment:
    """Read and check an experiment: the configurations of all of its runs.

    Args:
        path: TOML file.
        folder: Of the experiment; ``runs/NAME`` when left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is no TOML, or a key or a value of any run is wrong.
    """
    values = read_toml(path)
    section = parse_config(
        {"experiment": values.pop("experiment", {})}, _ExperimentFile, where=str(path)
    ).experiment
    for key in ("name", "seed"):
        if key in values:
            raise ConfigError(
                f"{path}: {key}: wanted none beside [experiment], as {_ELSEWHERE[key]} sets it, "
                f"got {values[key]!r}"
            )
    place = Path("runs") / section.name if folder is None else Path(folder)
    points = grid_points(section.grid or {})
    runs = []
    for seed, point in itertools.product(section.seeds, points):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{section.name}-{point.label}-seed-{seed}")
        changed = _changed(values, point.settings, str(path)) | {"name": name, "seed": seed}
        where = f"{path}: {point.label}" if point.settings else str(path)
        config = parse_config(changed, RunConfig, where=where)
        runs.append(PlannedRun(point, config, place / point.label / f"seed-{seed}"))
    return Experiment(section.name, place, tuple(points), section.seeds, section.steps, tuple(runs))


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[GridPoint]:
    """Return the product of the values of a grid; one point without settings of an empty one.

    Args:
        grid: Values of each dotted key.
    """
    ends = [key.rpartition(".")[2] for key in grid]
    names = [end if ends.count(end) == 1 else key for key, end in zip(grid, ends, strict=True)]
    points: list[GridPoint] = []
    labels: set[str] = set()
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        parts = [f"{name}={_word(value)}" for name, value in zip(names, values, strict=True)]
        label = ",".join(parts) or "base"
        if label in labels or len(label) > _LONGEST_LABEL:
            digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
            label = f"{label[:_LONGEST_LABEL]},{digest}"
        labels.add(label)
        points.append(GridPoint(label, settings))
    return points


def _word(value: Any) -> str:
    """Return a value as a part of a file name."""
    if isinstance(value, list):
        return "+".join(_word(item) for item in value)
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield keys and values; unquoted dotted keys, which TOML nests, count as quoted ones."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_values(key: str, values: Any) -> None:
    if key in _ELSEWHERE:
        raise ValueError(f"{key!r} is set by {_ELSEWHERE[key]}, so wanted no grid of it")
    if not isinstance(values, list) or not values:
        raise ValueError(f"{key!r}: wanted a list of at least one value, got {values!r}")
    for k, value in enumerate(values):
        if isinstance(value, dict):
            raise ValueError(f"{key!r}: wanted values of one key, got a section {value!r}")
        if value in values[:k]:
            raise ValueError(f"{key!r}: wanted distinct values, got {value!r} twice")


def _changed(base: dict[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = copy.deepcopy(base)
    for dotted, value in settings.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(
                    f"{where}: experiment.grid: {dotted!r}: wanted a key of a section, "
                    f"got one of {section!r}, which is {place!r}"
                )
        place[key] = value
    return values
