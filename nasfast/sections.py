# SPDX-License-Identifier: MIT
"""The sections of a configuration file, each with its keys, their ranges and defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nasfast import data, spaces
from nasfast.backends import Backend, Precision, ScoreBackend
from nasfast.data import Augmentation, ImageSet, Splits, TrainLoader
from nasfast.finetune import Schedule
from nasfast.lane_backends import check_finetune_backend
from nasfast.lane_training import Sgd
from nasfast.layout import SupernetConfig, searched, searched_spaces
from nasfast.reference import BatchNorm
from nasfast.spaces import BlockSpec, CellSpec
from nasfast.train import FairSampler, Sampler, TrainSettings, UniformSampler

Seed = Annotated[int, Field(ge=0, lt=2**63)]
NotNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Operations = Annotated[tuple[str, ...], Field(strict=False)]  # names; TOML gives a list


class Section(BaseModel):
    """Keys of a part of a configuration, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSection(Section):
    """``[data]``: which images."""

    name: Literal["digits", "cifar10", "cifar100", "imagenet16-120", "npz"]
    path: str | None = None
    train_images: int | None = Field(default=None, ge=1)
    valid_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)

    def load(self, seed: int = 0) -> Splits:
        """Load the images; ``seed`` draws the subsets, as in :func:`nasfast.data.load`."""
        return data.load(seed=seed, **self.model_dump())


class SupernetSection(Section):
    """``[supernet]``: shape of the network; classes and image channels come from the data.

    What is left out is as in the published supernet of the space; the defaults here are those of
    NAS-Bench-201.
    """

    space: str = "nb201"
    channels: int = Field(default=16, ge=1)
    cells_per_stage: int = Field(default=5, ge=1)
    affine: bool = False
    track: bool = False
    fixed_affine: bool = True
    fixed_track: bool = True
    last_affine: bool = True
    last_track: bool = True
    weights_on: Literal["edge", "node"] = "edge"

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, values: Any) -> Any:
        space = values.get("space") if isinstance(values, dict) else None
        if not isinstance(space, str) or space not in searched_spaces():
            return values  # the fields say what is wrong
        published = SupernetConfig.published(space).to_dict()
        return {key: published[key] for key in cls.model_fields} | values

    @field_validator("space")
    @classmethod
    def _known_space(cls, value: str) -> str:
        searched(value)
        return value

    @model_validator(mode="after")
    def _fits_the_space(self) -> Self:
        SupernetConfig(**self.model_dump())
        return self

    @property
    def spec(self) -> CellSpec | BlockSpec:
        """The search space."""
        return searched(self.space)


class NetworkSection(Section):
    """``[supernet]`` of a table: shape of each network, which has weights of its own.

    Running statistics are kept everywhere; ``affine`` is about the cells. Spaces of choice blocks
    have no such tables: their networks, trained on their own, are those of NAS-Bench-101.
    """

    space: str = "nb201"
    channels: int = Field(default=16, ge=1)
    cells_per_stage: int = Field(default=5, ge=1)
    affine: bool = True

    @field_validator("space")
    @classmethod
    def _known_space(cls, value: str) -> str:
        spaces.get(value, CellSpec)
        return value

    @property
    def spec(self) -> CellSpec:
        """The search space."""
        return spaces.get(self.space, CellSpec)


class TrainSection(Section):
    """``[train]`` of a table: training by SGD."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: NotNegative = 0.025
    lr_min: NotNegative = 0.001
    momentum: Momentum = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    clip: NotNegative = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    crop_padding: int = Field(default=0, ge=0)
    flip: bool = False
    cutout: int = Field(default=0, ge=0)
    scope: Literal["network", "cell"] = "network"
    without: Operations = ()

    def settings(self) -> TrainSettings:
        """Return the hyper-parameters of SGD."""
        return TrainSettings(**self.model_dump(include={f.name for f in fields(TrainSettings)}))

    def loader(self, images: ImageSet, seed: int) -> TrainLoader:
        """Return the minibatches of this training."""
        changes = self.model_dump(include={f.name for f in fields(Augmentation)})
        return TrainLoader(images, self.batch_size, Augmentation(**changes), seed)


class SupernetTrainSection(TrainSection):
    """``[train]`` of a run: single-path training of a supernet.

    ``paths``: networks of a step. ``sampler``: ``"fair"`` wants as many paths as an edge or a block
    has operations, or a multiple.
    """

    paths: int = Field(default=1, ge=1)
    sampler: Literal["uniform", "fair"] = "uniform"
    precision: Precision = "fp32"
    backend: ScoreBackend = "auto"

    def draws(self, spec: CellSpec | BlockSpec, cells: int, seed: int) -> Sampler:
        """Return what draws the networks of each step."""
        kind = UniformSampler if self.sampler == "uniform" else FairSampler
        return kind(spec, seed, spec.mask(self.without), self.scope, cells)


class RankSection(Section):
    """``[rank]``: which architectures are scored, on what, and how.

    ``precision``: ``"tf32"`` is for a card, with backend ``"cuda"`` or ``"auto"``.
    """

    images: Literal["valid", "test"] = "valid"
    batch_size: int = Field(default=256, ge=1)
    last_batch: Literal["error", "drop", "keep"] = "drop"
    bn: str = "batch"
    precision: Precision = "fp32"
    backend: ScoreBackend = "auto"
    archs: int | None = Field(default=None, ge=1)
    without: Operations = ()
    memory_mib: int = Field(default=2048, ge=1)

    @field_validator("bn")
    @classmethod
    def _known_modes(cls, value: str) -> str:
        BatchNorm.parse(value)
        return value


class FinetuneSection(Section):
    """``[finetune]``: which architectures are fine-tuned, how, and what is recorded.

    ``validate_at``: before the first step and after the last when left out. ``precision``: as in
    ``[rank]``.
    """

    archs: int = Field(default=200, ge=1)
    sample_seed: Seed = 0
    without: Operations = ()
    control: bool = True
    steps: int = Field(default=100, ge=1, le=1_000_000)  # a loss of each is kept
    lr: float = Field(default=0.01, gt=0)
    batch_size: int = Field(default=64, ge=1)
    momentum: Momentum = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    clip: NotNegative = 0.0
    images: Literal["valid", "test"] = "valid"
    validate_at: tuple[int, ...] | None = Field(default=None, strict=False)
    mini_every: int = Field(default=10, ge=1)
    epoch_steps: int = Field(default=10, ge=1)
    bn: str = "batch"
    precision: Precision = "fp32"
    backend: ScoreBackend = "auto"
    memory_mib: int = Field(default=2048, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.schedule()
        check_finetune_backend(self.backend, self.precision, BatchNorm.parse(self.bn))
        return self

    def schedule(self) -> Schedule:
        """Return steps and evaluations."""
        validate_at = (0, self.steps) if self.validate_at is None else self.validate_at
        mini_at = tuple(range(0, self.steps + 1, self.mini_every))
        sgd = Sgd(self.momentum, self.nesterov, self.weight_decay, self.clip)
        return Schedule(self.steps, sgd, validate_at, mini_at, self.bn)


class TruthSection(Section):
    """``[truth]``: ground truth to correlate with."""

    table: str
    column: str | None = None


class TableSection(Section):
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
