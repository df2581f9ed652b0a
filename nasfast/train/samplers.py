# SPDX-License-Identifier: MIT
"""Samplers: which architectures a training step takes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, Protocol

from nasfast.program import Network
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.spec import Architecture, BoolArray, CellSpec


class Sampler(Protocol):
    """Draws the networks of each training step."""

    def draw(self, epoch: int, count: int) -> list[Network]:
        """Return the networks of an epoch: of the first step, of the second, and so on.

        The draw depends on the epoch and the sampler's seed alone, so a resumed training goes the
        way of an uninterrupted one.
        """
        ...


@dataclass(frozen=True)
class _PathSampler:
    """What samplers of paths share; :class:`UniformSampler` says what the fields are."""

    spec: CellSpec | BlockSpec
    seed: int
    mask: BoolArray | None = None
    scope: Literal["network", "cell"] = "network"
    cells: int = 1

    def __post_init__(self) -> None:
        """Check the scope.

        Raises:
            ValueError: If it is neither ``"network"`` nor ``"cell"``.
        """
        if self.scope not in ("network", "cell"):
            raise ValueError(f"scope: wanted 'network' or 'cell', got {self.scope!r}")

    def _random(self, epoch: int) -> random.Random:
        return random.Random(f"{self.seed}/{epoch}")


@dataclass(frozen=True)
class UniformSampler(_PathSampler):
    """Uniform single paths: every decision of an architecture is drawn independently.

    A decision is the operation of an edge; in a space of choice blocks, the operation of a block or
    the parents of a node, so that loose ends are drawn too, as the published search does.

    Attributes:
        spec: The search space.
        seed: Seed of the draws.
        mask: Operations that each edge or block may carry, bool ``[num_edges, num_ops]`` or
            ``[num_blocks, num_ops]``.
        scope: ``"network"``: one architecture for all cells (RandomNAS, SPOS); ``"cell"``: one for
            each search cell, as the published NAS-Bench-201 search does in its "urs" mode.
        cells: Search cells of the network; used by scope ``"cell"``.

    Source:
        Li and Talwalkar, Random Search and Reproducibility for NAS, 2019; Guo et al., Single Path
        One-Shot NAS with Uniform Sampling, 2020.
    """

    def draw(self, epoch: int, count: int) -> list[Network]:
        """Return the networks of an epoch."""
        seed = self._random(epoch).getrandbits(63)
        if self.scope == "network":
            return list(self.spec.sample(count, seed, self.mask))
        archs = self.spec.sample(count * self.cells, seed, self.mask)
        return [archs[k * self.cells : (k + 1) * self.cells] for k in range(count)]


@dataclass(frozen=True)
class FairSampler(_PathSampler):
    """Strictly fair paths: so many in a row as an edge has operations cover each of them once.

    A round permutes the operations of every edge, independently; its k-th network takes the k-th
    operation of each. With ``TrainSettings.paths`` operations, a step is a round: each operation
    of each edge gets one gradient. A last round that a draw has no room for is cut off. In a space
    of choice blocks the same is done with the operations of each block, while the parents of each
    network are drawn uniformly; an operation of a loose end then has no gradient in that step.

    Attributes:
        spec: The search space.
        seed: Seed of the draws.
        mask: Operations that each edge or block may carry, as many for every one, bool
            ``[num_edges, num_ops]`` or ``[num_blocks, num_ops]``.
        scope: As of :class:`UniformSampler`; ``"cell"`` permutes in each search cell anew.
        cells: Search cells of the network; used by scope ``"cell"``.

    Source:
        Chu et al., FairNAS: Rethinking Evaluation Fairness of Weight Sharing NAS, ICCV 2021,
        section 3.3.
    """

    def __post_init__(self) -> None:
        """Check scope and mask.

        Raises:
            ValueError: If the scope is unknown, or edges or blocks may carry different numbers of
                operations.
        """
        super().__post_init__()
        counts = sorted({len(ops) for ops in self._choices()})
        if len(counts) != 1 or counts[0] == 0:
            kind = "edge" if isinstance(self.spec, CellSpec) else "block"
            raise ValueError(f"mask: wanted as many operations on every {kind}, got {counts}")

    def _choices(self) -> list[list[int]]:
        every = list(range(self.spec.num_ops))
        if self.mask is None:
            spec = self.spec
            return [every] * (spec.num_edges if isinstance(spec, CellSpec) else spec.num_blocks)
        return [[k for k in every if allowed[k]] for allowed in self.mask]

    def draw(self, epoch: int, count: int) -> list[Network]:
        """Return the networks of an epoch, round after round."""
        rng, choices = self._random(epoch), self._choices()
        cells = self.cells if self.scope == "cell" else 1
        networks: list[Network] = []
        while len(networks) < count:
            rounds = []  # of each cell: the architectures of a round
            for _ in range(cells):
                permuted = [rng.sample(ops, len(ops)) for ops in choices]
                rounds.append([self._arch(ops, rng) for ops in zip(*permuted, strict=True)])
            networks += (
                rounds[0] if self.scope == "network" else map(list, zip(*rounds, strict=True))
            )
        return networks[:count]

    def _arch(self, ops: tuple[int, ...], rng: random.Random) -> Architecture:
        """Make an architecture of its operations; other decisions are drawn."""
        others = (rng.randrange(count) for count in self.spec.options[len(ops) :])
        return self.spec.arch((*ops, *others))


@dataclass(frozen=True)
class FixedSampler:
    """The same architecture at every step: training a stand-alone network.

    Attributes:
        arch: The architecture.
    """

    arch: Architecture

    def draw(self, epoch: int, count: int) -> list[Network]:
        """Return the networks of an epoch."""
        return [self.arch] * count
