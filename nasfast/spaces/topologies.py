# SPDX-License-Identifier: MIT
"""Choices of parents as arrays: what a :class:`~nasfast.spaces.block_spec.BlockSpec` counts on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nasfast.spaces.space import BoolArray, IntArray

IndexArray = npt.NDArray[np.int64]
Parents = tuple[int, ...]
ParentChoices = tuple[tuple[Parents, ...], ...]  # of each node after the input, the output last


class Topologies(NamedTuple):
    """Every choice of parents, in lexicographic order of its decisions.

    Attributes:
        choices: Option of each decision on parents, int32 ``[topologies, parent decisions]``.
        edges: Whether an edge leads from one node to another, bool ``[topologies, nodes, nodes]``.
        used: Whether a path leads from each block to the output, bool ``[topologies, blocks]``.
    """

    choices: IntArray
    edges: BoolArray
    used: BoolArray


class SubnetList(NamedTuple):
    """The distinct pruned subnets as a table, operations of the blocks down and parents across.

    A subnet stands where its smallest encoding is, in which loose ends carry zeros; a column is
    the smallest choice of parents of its pruned topology.

    Attributes:
        first: Rank of the choice of parents of each column, ``[columns]``.
        column: Column of each choice of parents, ``[topologies]``.
        listed: Whether a smallest encoding stands there, ``[ops ** blocks, columns]``.
        positions: If so, its position in the list; otherwise that of the one before, or -1.
    """

    first: npt.NDArray[np.integer]
    column: npt.NDArray[np.integer]
    listed: BoolArray
    positions: IndexArray

    @property
    def num_subnets(self) -> int:
        """Distinct pruned subnets."""
        return int(self.positions[-1, -1]) + 1


def all_topologies(parent_choices: ParentChoices) -> Topologies:
    """Return every choice of parents."""
    sizes = [len(sets) for sets in parent_choices if len(sets) > 1]
    nodes = len(parent_choices) + 1
    choices = np.indices(sizes, dtype=np.int32).reshape(len(sizes), math.prod(sizes)).T
    edges = np.zeros((len(choices), nodes, nodes), dtype=np.bool_)
    columns = iter(choices.T)
    for node, sets in enumerate(parent_choices, start=1):
        into = np.zeros((len(sets), nodes), dtype=np.bool_)
        for option, parents in enumerate(sets):
            into[option, list(parents)] = True
        edges[:, :, node] = into[next(columns)] if len(sets) > 1 else into[0]
    used = np.zeros((len(choices), nodes), dtype=np.bool_)
    used[:, -1] = True
    for node in reversed(range(1, nodes - 1)):
        used[:, node] = (edges[:, node] & used).any(axis=1)
    return Topologies(choices, edges, used[:, 1:-1])


def list_subnets(parent_choices: ParentChoices, num_ops: int, topologies: Topologies) -> SubnetList:
    """Return the distinct pruned subnets."""
    choices, _, used = topologies
    blocks = used.shape[1]
    kept = np.concatenate([used, np.ones((len(used), 1), dtype=np.bool_)], axis=1)
    choosing = [node for node, sets in enumerate(parent_choices) if len(sets) > 1]
    ranks = (choices * kept[:, choosing]) @ strides([len(parent_choices[v]) for v in choosing])
    first, column = np.unique(ranks, return_inverse=True)
    ops = np.indices((num_ops,) * blocks).reshape(blocks, -1).T
    listed = ((ops[:, None] == 0) | used[first]).all(axis=2)
    positions = np.cumsum(listed, dtype=np.int64).reshape(listed.shape) - 1
    return SubnetList(first, column.reshape(-1), listed, positions)


def strides(sizes: Sequence[int]) -> IndexArray:
    """Return what one step of each digit adds to a lexicographic rank."""
    return np.array([math.prod(sizes[d + 1 :]) for d in range(len(sizes))], dtype=np.int64)


def reaching(parents: Sequence[Parents]) -> tuple[bool, ...]:
    """Return whether a path leads from each inner node to the last one.

    Args:
        parents: Of each node after the input.
    """
    used = {len(parents)}
    for node in range(len(parents), 0, -1):
        if node in used:
            used.update(parents[node - 1])
    return tuple(node in used for node in range(1, len(parents)))
