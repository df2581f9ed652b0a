# SPDX-License-Identifier: MIT
"""Samplers: which architecture a training step takes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, Protocol

from nasfast.program import Network
from nasfast.spaces.spec import Architecture, BoolArray, CellSpec


class Sampler(Protocol):
    """Draws the network of each training step."""

    def draw(self, epoch: int, steps: int) -> list[Network]:
        """Return the networks of an epoch, one for each step.

        The draw depends on the epoch and the sampler's seed alone, so a resumed training goes the
        way of an uninterrupted one.
        """
        ...


@dataclass(frozen=True)
class UniformSampler:
    """Uniform single paths: every edge draws one operation, independently.

    Attributes:
        spec: The search space.
        seed: Seed of the draws.
        mask: Operations that each edge may carry, bool ``[num_edges, num_ops]``.
        scope: ``"network"``: one architecture for all cells (RandomNAS, SPOS); ``"cell"``: one for
            each search cell, as the published NAS-Bench-201 search does in its "urs" mode.
        cells: Search cells of the network; used by scope ``"cell"``.

    Source:
        Li and Talwalkar, Random Search and Reproducibility for NAS, 2019; Guo et al., Single Path
        One-Shot NAS with Uniform Sampling, 2020.
    """

    spec: CellSpec
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

    def draw(self, epoch: int, steps: int) -> list[Network]:
        """Return the networks of an epoch, one for each step."""
        seed = random.Random(f"{self.seed}/{epoch}").getrandbits(63)
        if self.scope == "network":
            return list(self.spec.sample(steps, seed, self.mask))
        archs = self.spec.sample(steps * self.cells, seed, self.mask)
        return [archs[k * self.cells : (k + 1) * self.cells] for k in range(steps)]


@dataclass(frozen=True)
class FixedSampler:
    """The same architecture at every step: training a stand-alone network.

    Attributes:
        arch: The architecture.
    """

    arch: Architecture

    def draw(self, epoch: int, steps: int) -> list[Network]:
        """Return the networks of an epoch, one for each step."""
        return [self.arch] * steps
