# SPDX-License-Identifier: MIT
"""Random subsets and splits that respect the classes."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from torch import Tensor

__all__ = ["balanced_subset", "mix_seeds", "stratified_split"]


def mix_seeds(*seeds: int) -> int:
    """One 64-bit seed from several non-negative ones, so that (0, 1) and (1, 0) differ."""
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])


def balanced_subset(labels: Tensor, count: int, seed: int) -> np.ndarray:
    """Positions of `count` random images with equal class sizes as far as the classes reach.

    Args:
        labels: ``[n]``, int64.
        count: Number of positions, at most ``n``.
        seed: Seed of the choice.

    Returns:
        ``[count]``, int64, ascending. Class sizes differ by at most 1, but for classes that are
        used up.
    """
    rank, _, ties = _shuffled_ranks(labels, seed)
    return np.sort(np.lexsort((ties, rank))[:count])


def stratified_split(labels: Tensor, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Disjoint random parts that each hold the classes in the proportions of the whole.

    Args:
        labels: ``[n]``, int64.
        sizes: Exact sizes of the parts; they add up to ``n``.
        seed: Seed of the choice.

    Returns:
        For each part its positions, int64, ascending.
    """
    if sum(sizes) != len(labels):
        raise ValueError(f"sizes must add up to {len(labels)}, got {list(sizes)}")
    rank, class_size, ties = _shuffled_ranks(labels, seed)
    # Spreading every class evenly over [0, 1) makes any stretch of the order hold the classes in
    # proportion, so plain cuts give parts of exact sizes.
    order = np.lexsort((ties, (rank + 0.5) / class_size))
    return [np.sort(part) for part in np.split(order, list(accumulate(sizes))[:-1])]


def _shuffled_ranks(labels: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image: its random rank in its class, the class's size, a random tie-break."""
    # RandomState rather than Generator: NumPy promises never to change its streams, and a split
    # must not move with the NumPy version.
    random_state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    shuffled = random_state.permutation(len(labels))
    classes, class_of, sizes = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    for index in range(len(classes)):
        members = shuffled[class_of[shuffled] == index]
        rank[members] = np.arange(len(members))
    return rank, sizes[class_of], random_state.permutation(len(labels))
