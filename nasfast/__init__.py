# SPDX-License-Identifier: MIT
"""nasfast: a compiler and runtime for neural-architecture-search spaces.

A researcher hands over a supernet (shared weights) and a set of architectures; nasfast lowers
them to one program, computes equal parts once, and scores them all.
"""

__version__ = "0.1.0"

from nasfast import data, nn, spaces
from nasfast.curves import FineTuning, Trainings
from nasfast.evaluate import Scores, compile_archs, evaluate
from nasfast.explain import Explanation, explain
from nasfast.finetune import finetune
from nasfast.joint import joint_forward, joint_loss
from nasfast.lane_training import Sgd
from nasfast.layout import SupernetConfig
from nasfast.lower import Merge, Mode
from nasfast.program import Program
from nasfast.reference import BatchNorm
from nasfast.spaces import Architecture, CellSpec
from nasfast.supernet import Supernet, load
from nasfast.train import FairSampler, FixedSampler, TrainSettings, UniformSampler, train

__all__ = [
    "Architecture",
    "BatchNorm",
    "CellSpec",
    "Explanation",
    "FairSampler",
    "FineTuning",
    "FixedSampler",
    "Merge",
    "Mode",
    "Program",
    "Scores",
    "Sgd",
    "Supernet",
    "SupernetConfig",
    "TrainSettings",
    "Trainings",
    "UniformSampler",
    "__version__",
    "compile_archs",
    "data",
    "evaluate",
    "explain",
    "finetune",
    "joint_forward",
    "joint_loss",
    "load",
    "nn",
    "spaces",
    "train",
]
