# SPDX-License-Identifier: MIT
"""Say what merging and sharing save for a set of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasfast import native
from nasfast.layout import Layout, SupernetConfig
from nasfast.lower import Merge, Mode
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import Network, Program, build, request_array
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.spec import CellSpec, IntArray

if TYPE_CHECKING:
    from nasfast import _host


# A sum of blocks has a given order, and no average is taken: later levels merge nothing more.
_BLOCK_MERGES = (Merge.DEAD, Merge.IDENTITY, Merge.VALUE)


@dataclass(frozen=True)
class Step:
    """The work that is left at one level of merging, for one image.

    Attributes:
        merge: Level of merging.
        lanes: Networks left to run.
        evaluations: Cell operations evaluated (convolutions and poolings), each lane on its own.
        macs: Multiply-accumulates, each lane on its own (FLOPs as the benchmark counts them).
        first_cell_macs: Of these, in the first cell.
        shared_macs: What is left of ``first_cell_macs`` when lanes share equal parts.
        total_macs: ``macs`` when lanes share stem and first cell.
    """

    merge: Merge
    lanes: int
    evaluations: int
    macs: int
    first_cell_macs: int
    shared_macs: int
    total_macs: int


@dataclass(frozen=True)
class Explanation:
    """What merging and sharing save; ``str()`` is a table.

    Attributes:
        title: What was counted.
        requests: Networks asked for.
        image: Height and width of an image.
        steps: One entry for each level of merging, weakest first.
    """

    title: str
    requests: int
    image: tuple[int, int]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        """Return the table."""
        networks = "network" if self.requests == 1 else "networks"
        size = f"{self.image[0]}x{self.image[1]}"
        unit, scale = _unit(max(step.macs for step in self.steps))
        rows = [
            ("merging", "networks", "operations", unit, "first cells", "shared", f"{unit} to run")
        ]
        rows += [
            (
                step.merge.name.lower(),
                f"{step.lanes:,}",
                f"{step.evaluations:,}",
                f"{step.macs / scale:,.1f}",
                f"{step.first_cell_macs / scale:,.2f}",
                f"{step.shared_macs / scale:,.2f}",
                f"{step.total_macs / scale:,.1f}",
            )
            for step in self.steps
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = [f"{self.title}: {self.requests:,} {networks}, one image of {size}"]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells))
        return "\n".join(lines)


def _unit(largest: int) -> tuple[str, float]:
    """Return the unit of multiply-accumulates in which the largest number has a few digits."""
    for name, scale in (("GMAC", 1e9), ("MMAC", 1e6), ("kMAC", 1e3)):
        if largest >= 10 * scale:
            return name, scale
    return "MAC", 1.0


def explain(
    space: CellSpec | BlockSpec,
    archs: Sequence[Network],
    *,
    config: SupernetConfig | None = None,
    mode: Mode | None = None,
    image: tuple[int, int] = (32, 32),
    merges: Sequence[Merge] | None = None,
) -> Explanation:
    """Count what is merged and shared when architectures are scored together.

    Args:
        space: The search space.
        archs: Architectures, or one for each search cell.
        config: Shape of the supernet; that of the published one when left out.
        mode: Batch-norm mode of the cells, which decides whether a convolution of zero is zero;
            batch statistics, and the config's affine flag, when left out.
        image: Height and width of an image.
        merges: Levels to count; when left out all that differ in this kind of space.

    Raises:
        ValueError: If the config is of another space, there are no networks or levels, or an image
            size is not positive.
        ImportError: If the extension ``nasfast._host`` is not built.
    """
    config = config or SupernetConfig.published(space.name)
    if merges is None:
        merges = _BLOCK_MERGES if isinstance(space, BlockSpec) else tuple(Merge)
    if config.spec != space:
        raise ValueError(f"config: wanted a supernet of {space.name}, got one of {config.space}")
    if min(image) < 1:
        raise ValueError(f"image: wanted a height and width of at least 1, got {image}")
    if not merges:
        raise ValueError("merges: wanted at least one level, got none")
    mode = mode or Mode(affine=config.affine)
    layout = Layout(config)
    requests = request_array(layout, archs)
    steps = tuple(_step(layout, requests, mode, merge, image) for merge in merges)
    title = f"{space.title}, cells with {mode.cells} statistics"
    title += ", affine" if mode.affine else ", no affine parameters"
    return Explanation(title, len(requests), image, steps)


def _step(
    layout: Layout, requests: IntArray, mode: Mode, merge: Merge, image: tuple[int, int]
) -> Step:
    program = build(layout, requests, mode=mode, merge=merge)
    shared = _work(program, image, share=True)
    alone = _work(program, image, share=False)
    saved = alone["cell_macs"] - shared["cell_macs"]
    operations = alone["evaluations"]
    return Step(
        merge=merge,
        lanes=program.num_lanes,
        evaluations=operations["conv"] + operations["avg_pool"] + operations["max_pool"],
        macs=alone["macs"],
        first_cell_macs=saved + shared["shared_macs"],
        shared_macs=shared["shared_macs"],
        total_macs=shared["macs"],
    )


def _work(program: Program, image: tuple[int, int], *, share: bool) -> _host.Work:
    # One chunk of all lanes: what they share is counted once.
    cut = plan(
        program, batch=1, height=image[0], width=image[1], memory=UNBOUNDED,
        max_chunk_lanes=program.num_lanes if share else 1,
    )  # fmt: skip
    work: _host.Work = native.host().count_work(cut.table(), *image)
    return work
