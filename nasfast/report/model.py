# SPDX-License-Identifier: MIT
"""What a report is made from: plain data, checked when it is put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from nasfast.metrics import Measured, PerImage, RankCorrelation

_Floats = npt.NDArray[np.floating]
_Numbers = npt.NDArray[np.floating | np.integer]


@dataclass(frozen=True)
class CellDrawing:
    """Everything that is needed to draw one cell.

    Attributes:
        num_nodes: Nodes, the input and the output included; at least 2.
        edges: ``(source, target, op)`` with ``source < target``, in the benchmark's order; an op
            of ``""`` where edges have none.
        node_ops: Operation of each node between input and output, None for one that is not used;
            empty where nodes have none.

    Raises:
        ValueError: If an edge does not fit, there are fewer than 2 nodes, or not as many operations
            as nodes.
    """

    num_nodes: int
    edges: tuple[tuple[int, int, str], ...]
    node_ops: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        """Checks that every edge leads from an earlier node to a later one."""
        if self.num_nodes < 2:
            raise ValueError(f"num_nodes: wanted at least 2, got {self.num_nodes}")
        if self.node_ops and len(self.node_ops) != self.num_nodes - 2:
            raise ValueError(
                f"node_ops: wanted {self.num_nodes - 2} or none, got {len(self.node_ops)}"
            )
        for source, target, op in self.edges:
            if not 0 <= source < target < self.num_nodes:
                raise ValueError(
                    f"edges: wanted 0 <= source < target < {self.num_nodes}, "
                    f"got ({source}, {target}, {op!r})"
                )

    @property
    def ops(self) -> tuple[str, ...]:
        """Every operation on an edge or a node, repeated as often as it is there."""
        return (*(op for _, _, op in self.edges if op), *(op for op in self.node_ops if op))


@dataclass(frozen=True)
class RankedArch:
    """One row of the table of best architectures.

    Attributes:
        rank: 1 for the best.
        index: Official index in the space.
        arch: The benchmark's own string.
        loss: Mean over images.
        accuracy: In [0, 1].
        params: Parameters of the stand-alone network.
        flops: Floating-point operations an image, in the benchmark's counting.
        truth: None where there is no ground truth for this architecture.
        cell: Its cell.
    """

    rank: int
    index: int
    arch: str
    loss: float
    accuracy: float
    params: int
    flops: float
    truth: float | None
    cell: CellDrawing


@dataclass(frozen=True, eq=False)
class Control:
    """A cheap score that a supernet has to beat: one row of the table of correlations.

    Attributes:
        name: As the table shows it, such as ``"parameter count"``.
        scores: Higher is better, ``[archs]``.
    """

    name: str
    scores: _Numbers


@dataclass(frozen=True)
class PrecisionCheck:
    """What a precision did to the scores of a sample that was scored in fp32 too.

    Attributes:
        precision: ``"tf32"`` or ``"bf16"``.
        kendall: Tau-b between both losses.
        accuracy_difference: Largest difference of an architecture's two accuracies, 0 to 1.
    """

    precision: str
    kendall: RankCorrelation
    accuracy_difference: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """One estimator after all steps: a row of the table.

    Attributes:
        name: As the table shows it.
        scores: Higher is better, ``[archs]``; nan or inf where there is none.
    """

    name: str
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EstimateCurve:
    """One estimator against steps: a line of each plot.

    Attributes:
        name: As the legend shows it.
        steps: Steps taken, ascending, ``[points]``.
        scores: Higher is better, ``[points, archs]``.
    """

    name: str
    steps: tuple[int, ...]
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True)
class WorkRow:
    """What one kind of work took, summed over all calls.

    Attributes:
        name: As the table shows it.
        archs: Architectures; None where they are not what is counted.
        seconds: Of computing.
        steps: Of training, each lane counted; None where there are none.
        macs: Multiply-accumulates of convolutions and classifiers; None where not counted.
    """

    name: str
    archs: int | None
    seconds: float
    steps: int | None = None
    macs: int | None = None


@dataclass(frozen=True, eq=False)
class FineTuningReport:
    """What a report says of fine-tuned architectures; arrays hold one value for each of them.

    Attributes:
        about: Sentences that say what was done.
        truth: Higher is better, ``[archs]``, nan where unknown; None without ground truth.
        truth_name: What the truth is.
        estimates: Rows of the table.
        curves: Lines of the plots; none without ground truth.
        diverged: Official index and step of each architecture that diverged, ascending.
        work: What it took.
    """

    about: str
    truth: npt.NDArray[np.float64] | None
    truth_name: str
    estimates: tuple[Estimate, ...]
    curves: tuple[EstimateCurve, ...]
    diverged: tuple[tuple[int, int], ...]
    work: tuple[WorkRow, ...] = ()


@dataclass(frozen=True, eq=False)
class ArchOps:
    """The operations of the architectures of a report.

    Attributes:
        names: Of all operations, in the order of the space.
        chosen: Position in ``names`` of the operation of each edge or block, -1 for a block that is
            not used, int ``[archs, edges]`` or ``[archs, blocks]``.
        on: What carries an operation, in words.
    """

    names: tuple[str, ...]
    chosen: npt.NDArray[np.integer]
    on: Literal["edge", "block"] = "edge"


@dataclass(frozen=True, eq=False)
class Sampling:
    """A distribution over architectures, as a search with architecture weights has one.

    Attributes:
        name: As the legend shows it.
        probabilities: Of each architecture, not negative, ``[archs]``.
    """

    name: str
    probabilities: _Floats


@dataclass(frozen=True)
class MergeRow:
    """The work of scoring all architectures of a report on one image.

    Attributes:
        name: What was merged or shared.
        networks: Left to run.
        macs: Multiply-accumulates left.
    """

    name: str
    networks: int
    macs: int


@dataclass(frozen=True)
class CostReport:
    """What it took to make a report's scores.

    Attributes:
        about: Sentences that say on what machine, and what is not counted.
        work: Rows of the table of time; none where nothing was recorded.
        merging: Rows of the table of what was merged and shared, nothing merged first.
    """

    about: str
    work: tuple[WorkRow, ...]
    merging: tuple[MergeRow, ...]


@dataclass(frozen=True, eq=False)
class Report:
    """The contents of one report on a scored search space.

    Arrays hold one value for each scored architecture, all in the same order; for a whole space
    that is the official order of its indices.

    Attributes:
        title: Heading of the page.
        space: Name of the search space.
        loss: Mean loss over images, ``[archs]``; nan or inf marks lanes that are not finite.
        accuracy: In [0, 1], ``[archs]``.
        truth: Higher is better, ``[archs]``, nan where unknown; None without ground truth.
        truth_name: What the truth is, such as ``"test accuracy from scratch, 3 seeds"``.
        controls: Other scores to compare with.
        params: Parameters, ``[archs]``, for the partial correlation; None leaves that row out.
        top: The best architectures, best first.
        facts: Key and value of what made this: configuration, versions, seeds, seconds.
        notes: Sentences for the end of the page.
        precision: Of a ranking in tf32 or bf16.
        finetuning: Of fine-tuned architectures, if there are any.
        ops: Operations of all architectures, for their use among the best.
        correct: Which images each architecture classified correctly, for intervals over images.
        sampling: Distribution of a search over these architectures, if there was one.
        cost: What it took.

    Raises:
        ValueError: If the arrays are not 1-d or differ in length.
    """

    title: str
    space: str
    loss: _Floats
    accuracy: _Floats
    truth: _Floats | None
    truth_name: str
    controls: tuple[Control, ...]
    params: _Numbers | None
    top: tuple[RankedArch, ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    precision: PrecisionCheck | None = None
    finetuning: FineTuningReport | None = None
    ops: ArchOps | None = None
    correct: PerImage | None = None
    sampling: Sampling | None = None
    cost: CostReport | None = None

    def __post_init__(self) -> None:
        """Checks that all arrays have one value for each architecture."""
        if np.ndim(self.loss) != 1 or np.size(self.loss) == 0:
            raise ValueError(
                f"loss: wanted at least one value in 1 dimension, got shape {np.shape(self.loss)}"
            )
        wanted = np.shape(self.loss)
        arrays = {"accuracy": self.accuracy, "truth": self.truth, "params": self.params}
        arrays |= {f"controls[{c.name!r}].scores": c.scores for c in self.controls}
        arrays["ops.chosen"] = None if self.ops is None else self.ops.chosen[:, 0]
        arrays["correct.values"] = None if self.correct is None else self.correct.values[:, 0]
        arrays["sampling.probabilities"] = (
            None if self.sampling is None else self.sampling.probabilities
        )
        for name, array in arrays.items():
            if array is not None and np.shape(array) != wanted:
                raise ValueError(
                    f"{name}: wanted shape {wanted} as for loss, got {np.shape(array)}"
                )


@dataclass(frozen=True)
class CorrelationRow:
    """One score's agreement with the ground truth.

    Attributes:
        name: As the table shows it.
        kendall: Tau-b, or the partial tau-b.
        spearman: None for the partial correlation.
    """

    name: str
    kendall: RankCorrelation
    spearman: RankCorrelation | None


@dataclass(frozen=True)
class MetricRow:
    """One metric of each score.

    Attributes:
        name: As the table shows it.
        about: What exactly was measured, with every choice that changes the value.
        cells: One for each score of the table; None where it is not measured.
    """

    name: str
    about: str
    cells: tuple[Measured | None, ...]


@dataclass(frozen=True)
class MetricTable:
    """What a search by each score would find, and how robust its ranking is.

    Attributes:
        scores: Names of the columns.
        rows: The metrics; none without ground truth.
        resamples: Of each interval.
        with_controls: Whether controls have intervals too.
        images: Images behind the accuracies; None where which of them are correct is unknown.
    """

    scores: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    resamples: int
    with_controls: bool
    images: int | None


@dataclass(frozen=True)
class EstimateRow:
    """One estimator's agreement with the ground truth.

    Attributes:
        name: As the table shows it.
        kendall: Tau-b, with its interval.
        spearman: Rho, with its interval.
        top_truth: Mean truth of the architectures that it ranks first; nan where it ranks none.
    """

    name: str
    kendall: RankCorrelation
    spearman: RankCorrelation
    top_truth: float


@dataclass(frozen=True)
class ReportSummary:
    """What was written and its main numbers.

    Attributes:
        headline: The first sentences of the page.
        correlations: The table of correlations; empty without ground truth.
        path: The HTML file.
        pngs: The plots as image files, if they were asked for.
        precision: Of a ranking in tf32 or bf16.
        estimates: The table of fine-tuned architectures; empty without ground truth.
        metrics: The table of other metrics.
    """

    headline: str
    correlations: tuple[CorrelationRow, ...]
    path: Path
    pngs: tuple[Path, ...]
    precision: PrecisionCheck | None = None
    estimates: tuple[EstimateRow, ...] = ()
    metrics: MetricTable | None = None
