# SPDX-License-Identifier: MIT
"""Image sets for supernet training and evaluation.

:func:`load` reads one of the known data sets into three :class:`ImageSet` parts, :func:`batches`
makes the fixed minibatches that architectures are scored on, and :class:`TrainLoader` makes the
augmented minibatches of a training run. Images stay uint8 until a minibatch is made.
"""

from nasfast.data.augmentation import Augmentation, augment
from nasfast.data.batching import Batch, TrainLoader, batches
from nasfast.data.loading import load
from nasfast.data.sets import ImageSet, Splits

__all__ = [
    "Augmentation",
    "Batch",
    "ImageSet",
    "Splits",
    "TrainLoader",
    "augment",
    "batches",
    "load",
]
