# SPDX-License-Identifier: MIT
"""Training of supernet weights: what is drawn at each step, and the step itself."""

from nasfast.train.samplers import FixedSampler, Sampler, UniformSampler
from nasfast.train.single_path import EpochRecord, TrainSettings, TrainState, train

__all__ = [
    "EpochRecord",
    "FixedSampler",
    "Sampler",
    "TrainSettings",
    "TrainState",
    "UniformSampler",
    "train",
]
