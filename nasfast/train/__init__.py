# SPDX-License-Identifier: MIT
"""Training of supernet weights: what is drawn at each step, and the step itself."""

from nasfast.train.samplers import FairSampler, FixedSampler, Sampler, UniformSampler
from nasfast.train.settings import EpochRecord, TrainSettings, TrainState
from nasfast.train.single_path import train

__all__ = [
    "EpochRecord",
    "FairSampler",
    "FixedSampler",
    "Sampler",
    "TrainSettings",
    "TrainState",
    "UniformSampler",
    "train",
]
