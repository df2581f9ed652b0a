# SPDX-License-Identifier: MIT
"""The report of a run: scores, ground truth and controls put side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nasfast import tables
from nasfast.cost import Cost, stand_alone_cost
from nasfast.cost_summary import cost_report
from nasfast.finetune_summary import finetuning_report
from nasfast.image_bits import ImageBits
from nasfast.layout import SupernetConfig
from nasfast.metrics import PerImage, rank_order
from nasfast.report import (
    ArchOps,
    CellDrawing,
    Control,
    CostReport,
    EstimateRow,
    PrecisionCheck,
    RankedArch,
    Report,
    ReportSummary,
    estimate_rows,
    precision_check,
    write_report,
)
from nasfast.runs import Run, RunError
from nasfast.scoring import as_scored, score_settings
from nasfast.spaces import Architecture, BlockSpec, CellSpec
from nasfast.steps import FP32_SAMPLE
from nasfast.store import ScoreStore, StoreError
from nasfast.supernet import Supernet
from nasfast.verify import scores_digest, verification_of

_TOP = 10
_Indices = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FineTuningSummary:
    """What fine-tuning came to.

    Attributes:
        about: What was done.
        rows: The table of estimators; empty without ground truth.
        diverged: Official index and step of each architecture that diverged.
        report: The report; None where nothing is ranked yet.
        folder: The run.
    """

    about: str
    rows: tuple[EstimateRow, ...]
    diverged: tuple[tuple[int, int], ...]
    report: Path | None
    folder: Path


def finetuning_summary(run: Run) -> FineTuningSummary:
    """Say what fine-tuning came to, and write the report again if the run is ranked.

    Raises:
        RunError: If nothing is fine-tuned yet.
        StoreError: If curves or scores are damaged, or of other weights or settings.
        OSError: If a file cannot be written.
    """
    tuned = finetuning_report(run, run.supernet(run.splits()), run.truth())
    if tuned is None:
        raise RunError(f"{run.folder}: nothing fine-tuned yet; run 'nasfast finetune' first")
    if run.score_file.is_file():
        report = report_run(run)
        return FineTuningSummary(
            tuned.about, report.estimates, tuned.diverged, report.path, run.folder
        )
    return FineTuningSummary(tuned.about, estimate_rows(tuned), tuned.diverged, None, run.folder)


def report_run(run: Run) -> ReportSummary:
    """Write ``report.html`` and its plots from the scores of a run.

    Backend and precision are those of the scores, whatever the configuration says.

    Raises:
        RunError: If nothing is scored yet.
        StoreError: If the scores are damaged, or of other weights or settings.
        OSError: If a file cannot be written.
    """
    run = as_scored(run)
    splits = run.splits()
    supernet = run.supernet(splits)
    spec = run.config.supernet.spec
    if not run.score_file.is_file():
        raise RunError(f"{run.folder}: nothing scored yet; run 'nasfast rank' first")
    with ScoreStore(run.score_file, score_settings(run, supernet)) as store:
        scored, loss, accuracy = store.read("supernet")
        control_archs, control_loss, _ = store.read("untrained")
        sample, origins = store.read(FP32_SAMPLE), store.origins()
        took = store.work()
    if len(scored) == 0:
        raise RunError(f"{run.folder}: nothing scored yet; run 'nasfast rank' first")
    digest = scores_digest(scored, loss, accuracy)
    archs = spec.from_indices(scored.tolist())
    height, width = splits.train.images.shape[2:]
    cost = stand_alone_cost(supernet.config, archs, height=height, width=width)
    table = run.truth()
    truth = None if table is None else table.truth[scored]
    controls: tuple[Control, ...] = ()
    if truth is not None:
        untrained = np.full(len(scored), np.nan)
        untrained[np.searchsorted(scored, control_archs)] = -control_loss
        controls = (
            Control("parameter count", cost.params),
            Control("FLOPs", cost.flops),
            Control("untrained supernet, -loss", untrained),
        )
    tuned = finetuning_report(run, supernet, table)
    merged = cost_report(run, supernet, archs, cost, took, tuned)
    correct, missing = (None, "") if truth is None else _correct(run, scored)
    report = Report(
        title=f"Ranking of {spec.title}: {run.config.name}",
        space=spec.title,
        loss=loss,
        accuracy=accuracy,
        truth=truth,
        truth_name="" if table is None else table.truth_name,
        controls=controls,
        params=cost.params,
        top=_top(archs, scored, loss, accuracy, cost, truth),
        facts=tuple(_facts(run, supernet, merged, table, origins, digest)),
        notes=tuple(_notes(run, len(scored), truth is not None, missing)),
        precision=_precision(run.config.rank.precision, scored, loss, accuracy, sample),
        finetuning=tuned,
        ops=_ops(spec, archs),
        correct=correct,
        cost=merged,
    )
    return write_report(report, run.folder / "report.html", png_folder=run.folder / "plots")


def _correct(run: Run, scored: _Indices) -> tuple[PerImage | None, str]:
    """Return which images each architecture classified correctly, or why that is unknown."""
    if not run.bits_file.is_file():
        return None, "it is not known which images each architecture classified correctly"
    rank = run.config.rank
    splits = run.splits()
    images = len(splits.valid if rank.images == "valid" else splits.test)
    if rank.last_batch == "drop":
        images -= images % rank.batch_size
    try:
        with ImageBits(run.bits_file, run.config.supernet.spec.num_archs, images) as bits:
            packed = bits.read_packed(scored.tolist())
    except (OSError, StoreError) as error:
        return None, str(error)
    return PerImage(packed, images), ""


def _precision(
    precision: str, scored: _Indices, loss: _Floats, accuracy: _Floats,
    sample: tuple[_Indices, _Floats, _Floats],
) -> PrecisionCheck | None:  # fmt: skip
    """Compare a sample in fp32 with the ranking, where both have an architecture."""
    archs, fp32_loss, fp32_accuracy = sample
    _, here, there = np.intersect1d(scored, archs, return_indices=True)
    if len(here) == 0:
        return None
    return precision_check(
        precision, loss[here], accuracy[here], fp32_loss[there], fp32_accuracy[there]
    )


def _top(
    archs: list[Architecture], scored: _Indices, loss: _Floats, accuracy: _Floats, cost: Cost,
    truth: _Floats | None,
) -> tuple[RankedArch, ...]:  # fmt: skip
    rows = []
    for rank, k in enumerate(rank_order(-loss)[:_TOP].tolist(), start=1):
        arch = archs[k]
        known = truth is not None and not np.isnan(truth[k])
        rows.append(
            RankedArch(
                rank=rank,
                index=int(scored[k]),
                arch=str(arch),
                loss=float(loss[k]),
                accuracy=float(accuracy[k]),
                params=int(cost.params[k]),
                flops=float(cost.flops[k]),
                truth=float(truth[k]) if known and truth is not None else None,
                cell=_drawing(arch),
            )
        )
    return tuple(rows)


def _ops(spec: CellSpec | BlockSpec, archs: list[Architecture]) -> ArchOps:
    names, decisions = tuple(op.name for op in spec.ops), spec.op_array(archs)
    if isinstance(spec, CellSpec):
        return ArchOps(names, decisions)
    used = spec.topologies.used[spec.topology_ranks(decisions)]
    return ArchOps(names, np.where(used, decisions[:, : spec.num_blocks], -1), on="block")


def _drawing(arch: Architecture) -> CellDrawing:
    spec = arch.spec
    if isinstance(spec, CellSpec):
        chosen = zip(spec.edges, arch.op_indices, strict=True)
        edges = tuple((i, j, spec.ops[op].name) for (i, j), op in chosen)
        return CellDrawing(spec.num_nodes, edges)
    assert isinstance(spec, BlockSpec)
    used = (*spec.used_blocks(arch), True)  # with the output
    names = zip(spec.block_ops(arch), used, strict=False)
    return CellDrawing(
        num_nodes=spec.num_blocks + 2,
        edges=tuple(
            (parent, node, "")
            for node, parents in enumerate(spec.parents(arch), start=1)
            if used[node - 1]
            for parent in parents
        ),
        node_ops=tuple(spec.ops[op].name if is_used else None for op, is_used in names),
    )


def _facts(
    run: Run, supernet: Supernet, cost: CostReport, table: tables.Table | None,
    origins: list[str], digest: str,
) -> list[tuple[str, str]]:  # fmt: skip
    config, shape = run.config, supernet.config
    modes = config.rank.bn
    facts = [
        ("Images", f"{config.data.name}, {config.rank.images} part, minibatches of "
                   f"{config.rank.batch_size}"),
        ("Supernet", _shape_words(shape, supernet.num_params)),
        ("Training", f"{config.train.sampler} single paths ({config.train.scope}), "
                     f"{config.train.paths} a step, {config.train.epochs} epochs, "
                     f"minibatches of {config.train.batch_size}, lr {config.train.lr:g} to "
                     f"{config.train.lr_min:g} ({config.train.schedule}), {_trained_by(run)}"),
        ("Batch norm while scoring", f"{modes} (cells/others)"),
        ("Precision", config.rank.precision),
        ("Backend", ", ".join(origins) or "unknown"),
        ("Seed", str(config.seed)),
        ("Merged", f"{cost.merging[0].networks:,} architectures are "
                   f"{cost.merging[-1].networks:,} distinct functions of the shared weights"),
    ]  # fmt: skip
    if table is not None:
        facts.append(("Ground truth", f"{table.name}: {len(table.known):,} architectures"))
    facts += _log_facts(run)
    verification = verification_of(run, digest)
    if verification is not None:
        facts.append(("Verified", f"{verification}; scores {digest}"))
    return facts


def _trained_by(run: Run) -> str:
    """Say what trained the supernet: precision and backends, more than one after a resume."""
    entries = [e for e in run.environments() if e["command"] == "train" and "backend" in e]
    names = [e["backend"] + (f" ({e['isa']})" if e["isa"] else "") for e in entries]
    backends = " and ".join(dict.fromkeys(names)) or "an earlier version"
    return f"{run.config.train.precision} by {backends}"


def _shape_words(shape: SupernetConfig, params: int) -> str:
    return (
        f"{shape.channels} channels, {shape.cells_per_stage} cells a stage, "
        f"weights on {shape.weights_on if isinstance(shape.spec, CellSpec) else 'block'}s, cells "
        f"{'affine' if shape.affine else 'not affine'}, {params:,} parameters"
    )


def _log_facts(run: Run) -> list[tuple[str, str]]:
    facts = []
    epochs = run.records()
    if epochs:
        seconds = sum(epoch.elapsed_s for epoch in epochs)
        facts.append(
            ("Trained", f"training loss {epochs[-1].loss:.4f}, accuracy "
                        f"{epochs[-1].accuracy:.2%} of single paths in the last epoch; "
                        f"{seconds:.0f} s")
        )  # fmt: skip
    for entry in run.environments()[-1:]:
        commit = entry["commit"] or "installed package"
        facts.append(
            ("Versions", f"nasfast {entry['nasfast']} ({commit}), torch {entry['torch']}, "
                         f"numpy {entry['numpy']}, Python {entry['python']}")
        )  # fmt: skip
    return facts


def _notes(run: Run, scored: int, has_truth: bool, missing: str) -> list[str]:
    notes = []
    wanted = len(run.archs())
    if scored < wanted:
        notes.append(
            f"The ranking is not complete: {scored:,} of {wanted:,} architectures are scored so "
            "far. 'nasfast rank' goes on."
        )
    notes.append(
        "Every architecture saw the same images in the same order. The ranking is by loss: "
        "accuracy on few images has many ties."
    )
    if has_truth:
        notes.append(
            "Controls need no training: a supernet ranking is worth its cost where it beats "
            "parameter count and FLOPs. The partial correlation says what is left of the "
            "supernet's ranking once parameter count is held fixed. The untrained supernet has "
            "the same initial weights and uses batch statistics everywhere."
        )
        notes.append(
            "There is no curve of the sampling mass: paths were drawn with probabilities fixed in "
            "advance, not from a distribution that a search learned."
        )
    if isinstance(run.config.supernet.spec, BlockSpec):
        notes.append(
            "Parameters and FLOPs are of the network of NAS-Bench-101 that trains the cell on its "
            "own, with the supernet's channels and cells: the blocks that lead to the output share "
            "its channels there, while each has its own in the supernet. Loose ends, which lead "
            "to no output, are written with the first operation and parents."
        )
    if missing:
        notes.append(f"There is no interval over images: {missing}.")
    if run.config.data.name == "npz":
        notes.append("Images came from an .npz file; their origin is the user's to state.")
    return notes
