# SPDX-License-Identifier: MIT
"""Configuration of a run: one TOML file, checked before anything is computed."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nasfast import data, spaces
from nasfast.backends import Backend, Precision, choose_backend
from nasfast.data import Augmentation, ImageSet, Splits, TrainLoader
from nasfast.finetune import Schedule
from nasfast.lane_backends import choose_lane_backend
from nasfast.lane_training import Sgd
from nasfast.layout import SupernetConfig
from nasfast.reference import BatchNorm
from nasfast.spaces import Architecture, CellSpec
from nasfast.train import (
    FairSampler,
    Sampler,
    TrainSettings,
    UniformSampler,
    choose_train_backend,
)

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ConfigError(ValueError):
    """A configuration is wrong; the message names the file, the key, what was wanted, what came."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSection(_Section):
    """``[data]``: which images."""

    name: Literal["digits", "cifar10", "cifar100", "imagenet16-120", "npz"]
    path: str | None = None
    train_images: int | None = Field(default=None, ge=1)
    valid_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)

    def load(self, seed: int = 0) -> Splits:
        """Load the images; ``seed`` draws the subsets, as in :func:`nasfast.data.load`."""
        return data.load(seed=seed, **self.model_dump())


class _ShapeSection(_Section):
    space: str = "nb201"
    channels: int = Field(default=16, ge=1)
    cells_per_stage: int = Field(default=5, ge=1)

    @field_validator("space")
    @classmethod
    def _known_space(cls, value: str) -> str:
        spaces.get(value)
        return value

    @property
    def spec(self) -> CellSpec:
        """The search space."""
        return spaces.get(self.space)


class SupernetSection(_ShapeSection):
    """``[supernet]``: shape of the network; classes and image channels come from the data."""

    affine: bool = False
    track: bool = False
    fixed_affine: bool = True
    fixed_track: bool = True
    last_affine: bool = True
    last_track: bool = True
    weights_on: Literal["edge", "node"] = "edge"


class NetworkSection(_ShapeSection):
    """``[supernet]`` of a table: shape of each network, which has weights of its own.

    Running statistics are kept everywhere; ``affine`` is about the cells.
    """

    affine: bool = True


class TrainSection(_Section):
    """``[train]`` of a table: training by SGD."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=0.025, ge=0)
    lr_min: float = Field(default=0.001, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    clip: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    crop_padding: int = Field(default=0, ge=0)
    flip: bool = False
    cutout: int = Field(default=0, ge=0)
    scope: Literal["network", "cell"] = "network"
    without: tuple[str, ...] = Field(default=(), strict=False)

    def settings(self) -> TrainSettings:
        """Return the hyper-parameters of SGD."""
        return TrainSettings(**self.model_dump(include={f.name for f in fields(TrainSettings)}))

    def loader(self, images: ImageSet, seed: int) -> TrainLoader:
        """Return the minibatches of this training."""
        changes = self.model_dump(include={f.name for f in fields(Augmentation)})
        return TrainLoader(images, self.batch_size, Augmentation(**changes), seed)


class SupernetTrainSection(TrainSection):
    """``[train]`` of a run: single-path training of a supernet.

    ``paths``: networks of a step. ``sampler``: ``"fair"`` wants as many paths as an edge has
    operations, or a multiple.
    """

    paths: int = Field(default=1, ge=1)
    sampler: Literal["uniform", "fair"] = "uniform"
    precision: Precision = "fp32"
    backend: Backend = "auto"

    def draws(self, spec: CellSpec, cells: int, seed: int) -> Sampler:
        """Return what draws the networks of each step."""
        kind = UniformSampler if self.sampler == "uniform" else FairSampler
        return kind(spec, seed, spec.mask(self.without), self.scope, cells)


class RankSection(_Section):
    """``[rank]``: which architectures are scored, on what, and how."""

    images: Literal["valid", "test"] = "valid"
    batch_size: int = Field(default=256, ge=1)
    last_batch: Literal["error", "drop", "keep"] = "drop"
    bn: str = "batch"
    precision: Precision = "fp32"
    backend: Backend = "auto"
    archs: int | None = Field(default=None, ge=1)
    without: tuple[str, ...] = Field(default=(), strict=False)
    memory_mib: int = Field(default=2048, ge=1)

    @field_validator("bn")
    @classmethod
    def _known_modes(cls, value: str) -> str:
        BatchNorm.parse(value)
        return value


class FinetuneSection(_Section):
    """``[finetune]``: which architectures are fine-tuned, how, and what is recorded.

    ``validate_at``: before the first step and after the last when left out.
    """

    archs: int = Field(default=200, ge=1)
    sample_seed: Seed = 0
    without: tuple[str, ...] = Field(default=(), strict=False)
    control: bool = True
    steps: int = Field(default=100, ge=1)
    lr: float = Field(default=0.01, gt=0)
    batch_size: int = Field(default=64, ge=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    clip: float = Field(default=0.0, ge=0)
    images: Literal["valid", "test"] = "valid"
    validate_at: tuple[int, ...] | None = Field(default=None, strict=False)
    mini_every: int = Field(default=10, ge=1)
    epoch_steps: int = Field(default=10, ge=1)
    bn: str = "batch"
    precision: Precision = "fp32"
    backend: Backend = "auto"
    memory_mib: int = Field(default=2048, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.schedule()
        choose_lane_backend(self.backend, self.precision)
        return self

    def schedule(self) -> Schedule:
        """Return steps and evaluations."""
        validate_at = (0, self.steps) if self.validate_at is None else self.validate_at
        mini_at = tuple(range(0, self.steps + 1, self.mini_every))
        sgd = Sgd(self.momentum, self.nesterov, self.weight_decay, self.clip)
        return Schedule(self.steps, sgd, validate_at, mini_at, self.bn)


class TruthSection(_Section):
    """``[truth]``: ground truth to correlate with."""

    table: str
    column: str | None = None


class RunConfig(_Section):
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
                f"an edge, got {self.train.paths}"
            )
        return self

    @model_validator(mode="after")
    def _computable(self) -> Self:
        t = self.train
        try:
            choose_train_backend(t.backend, t.precision, self.supernet.weights_on)
        except ValueError as error:
            raise ValueError(f"train.{error}") from None
        try:
            choose_backend(self.rank.backend, self.rank.precision)
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


class TableSection(_Section):
    """``[table]``: which architectures are trained on their own, and by what."""

    archs: int | None = Field(default=None, ge=1)
    sample_seed: Seed = 0
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, strict=False)
    merging: Literal["linear", "none"] = "linear"
    precision: Precision = "fp32"
    backend: Backend = "auto"
    truth_name: str

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"wanted distinct seeds, got {list(value)}")
        return value


class TableConfig(_Section):
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


def _check_drawn(spec: CellSpec, section: str, without: tuple[str, ...], archs: int | None) -> None:
    try:
        allowed = spec.mask(without)
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None
    most = int(allowed.sum(axis=1).prod())
    if archs is not None and archs > most:
        raise ValueError(f"{section}.archs: wanted at most the {most} allowed, got {archs}")


_Model = TypeVar("_Model", RunConfig, TableConfig)


def chosen_archs(
    spec: CellSpec, count: int | None, seed: int, without: Sequence[str]
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
    return sorted(spec.sample(count, seed, mask, distinct=True), key=spec.to_index)


def load_config(path: str | os.PathLike[str], model: type[_Model]) -> _Model:
    """Read and check a TOML file.

    Args:
        path: The file.
        model: :class:`RunConfig` or :class:`TableConfig`.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is no TOML, a key is unknown or missing, or a value is out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config file not found: {path}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return parse_config(values, model, where=str(path))


def parse_config(values: dict[str, Any], model: type[_Model], *, where: str = "config") -> _Model:
    """Check plain values.

    Args:
        values: Nested values as TOML gives them.
        model: :class:`RunConfig` or :class:`TableConfig`.
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
