# SPDX-License-Identifier: MIT
"""Configuration of a run: one TOML file, checked before anything is computed."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from nasfast.backends import check_score_backend
from nasfast.lane_backends import check_train_backend, choose_lane_backend
from nasfast.layout import SupernetConfig
from nasfast.reference import BatchNorm
from nasfast.sections import (
    DataSection,
    FinetuneSection,
    NetworkSection,
    RankSection,
    Section,
    Seed,
    SupernetSection,
    SupernetTrainSection,
    TableSection,
    TrainSection,
    TruthSection,
)
from nasfast.spaces import Architecture, BlockSpec, CellSpec


class ConfigError(ValueError):
    """A configuration is wrong; the message names the file, the key, what was wanted, what came."""


class RunConfig(Section):
    """A whole run.

    Attributes:
        name: Name of the run folder.
        seed: Seed of everything: initial weights, paths, minibatches, samples.
        threads: Threads of the CPU engine, and of PyTorch where it trains the supernet.
        data: Which images.
        supernet: Shape of the network.
        train: Training.
        rank: Ranking.
        finetune: Fine-tuning.
        truth: Ground truth, if any.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: Seed = 0
    threads: int = Field(default=1, ge=1)
    data: DataSection
    supernet: SupernetSection = SupernetSection()
    train: SupernetTrainSection
    rank: RankSection = RankSection()
    finetune: FinetuneSection = FinetuneSection()
    truth: TruthSection | None = None

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        spec = self.supernet.spec
        _check_drawn(spec, "train", self.train.without, None)
        _check_drawn(spec, "rank", self.rank.without, self.rank.archs)
        _check_drawn(spec, "finetune", self.finetune.without, None)
        operations = int(spec.mask(self.train.without)[0].sum())
        if self.train.sampler == "fair" and self.train.paths % operations:
            raise ValueError(
                f"train.paths: sampler 'fair' wants a multiple of the {operations} operations of "
                f"{'an edge' if isinstance(spec, CellSpec) else 'a block'}, got {self.train.paths}"
            )
        return self

    @model_validator(mode="after")
    def _computable(self) -> Self:
        t = self.train
        try:
            check_train_backend(t.backend, t.precision, self.supernet.weights_on)
        except ValueError as error:
            raise ValueError(f"train.{error}") from None
        try:
            rank = self.rank
            check_score_backend(rank.backend, rank.precision, BatchNorm.parse(rank.bn))
        except ValueError as error:
            raise ValueError(f"rank.{error}") from None
        return self

    def with_options(
        self, section: str = "rank", *, threads: int | None = None, **options: Any
    ) -> RunConfig:  # fmt: skip
        """Return the configuration with other values in a section; None leaves one as it is.

        Args:
            section: Name of the section.
            threads: In place of ``threads``.
            **options: In place of values of the section.

        Raises:
            ConfigError: If a value is out of range, or the backend does not have the precision.
        """
        values = self.model_dump(mode="json")
        values[section] |= {key: value for key, value in options.items() if value is not None}
        if threads is not None:
            values["threads"] = threads
        return parse_config(values, RunConfig, where="option")

    def supernet_config(self, classes: int, in_channels: int) -> SupernetConfig:
        """Return the shape of the supernet for a data set."""
        return SupernetConfig(
            classes=classes, in_channels=in_channels, **self.supernet.model_dump()
        )


class TableConfig(Section):
    """A table of stand-alone accuracies (``nasfast build-table``).

    Attributes:
        name: Name of the table.
        data: Which images; networks train on the training part, and count on the others.
        supernet: Shape of each network.
        train: Training.
        table: Which architectures, which seeds, and what trains them.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataSection
    supernet: NetworkSection = NetworkSection()
    train: TrainSection
    table: TableSection

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        _check_drawn(self.supernet.spec, "train", self.train.without, None)
        _check_drawn(self.supernet.spec, "table", self.train.without, self.table.archs)
        return self

    @model_validator(mode="after")
    def _computable(self) -> Self:
        try:
            choose_lane_backend(self.table.backend, self.table.precision)
        except ValueError as error:
            raise ValueError(f"table.{error}") from None
        return self

    def with_options(self, **options: str | None) -> TableConfig:
        """Return the configuration with other values in ``[table]``; None leaves one as it is.

        Raises:
            ConfigError: If a value is not one of those that it may have.
        """
        values = self.model_dump(mode="json")
        values["table"] |= {key: value for key, value in options.items() if value is not None}
        return parse_config(values, TableConfig, where="option")


def _check_drawn(
    spec: CellSpec | BlockSpec, section: str, without: tuple[str, ...], archs: int | None
) -> None:  # fmt: skip
    try:
        allowed = spec.mask(without)
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None
    if archs is None:
        return
    if isinstance(spec, CellSpec):
        most = int(allowed.sum(axis=1).prod())
    else:
        most = len(spec.enumerate(allowed)) if without else spec.num_archs
    if archs > most:
        raise ValueError(f"{section}.archs: wanted at most the {most} allowed, got {archs}")


_Model = TypeVar("_Model", bound=Section)


def chosen_archs(
    spec: CellSpec | BlockSpec, count: int | None, seed: int, without: Sequence[str]
) -> list[Architecture]:
    """Return the architectures that a section names, in official order.

    Args:
        spec: The space.
        count: How many to draw, without replacement; None for all.
        seed: Seed of the draw.
        without: Operations left out.
    """
    mask = spec.mask(without)
    if count is None:
        return spec.enumerate(mask)
    drawn = spec.sample(count, seed, mask, distinct=True)
    return spec.from_indices(sorted(spec.to_indices(drawn).tolist()))


def load_config(path: str | os.PathLike[str], model: type[_Model]) -> _Model:
    """Read and check a TOML file.

    Args:
        path: The file.
        model: :class:`RunConfig` or :class:`TableConfig`.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is no TOML, a key is unknown or missing, or a value is out of range.
    """
    return parse_config(read_toml(path), model, where=str(path))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the plain values of a TOML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is no TOML.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config file not found: {path}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse_config(values: dict[str, Any], model: type[_Model], *, where: str = "config") -> _Model:
    """Check plain values.

    Args:
        values: Nested values as TOML gives them.
        model: :class:`RunConfig`, :class:`TableConfig`, or another section.
        where: What messages call them.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(problem), model) for problem in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explain(problem: dict[str, Any], model: type[BaseModel]) -> str:
    place = tuple(str(part) for part in problem["loc"])
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, place[:-1]))
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.0)
        hint = f"; nearest: {near[0]}" if near else ""
        return f"unknown key {name!r}, wanted one of {', '.join(known)}{hint}"
    if problem["type"] == "missing":
        return f"key {name!r} is missing"
    if problem["type"] == "value_error":  # our own checks: they say what was wanted and got
        message = problem["msg"].removeprefix("Value error, ")
        return f"{name}: {message.removeprefix(place[-1] + ': ')}" if place else message
    got = f"{problem['msg']}, got {problem['input']!r}"
    return f"{name}: {got}" if name else got


def _fields_at(model: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    """Return the keys that a section takes."""
    for part in place:
        annotation = model.model_fields[part].annotation
        kinds = (annotation, *get_args(annotation))  # a section, or "section or none"
        model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(model.model_fields)
