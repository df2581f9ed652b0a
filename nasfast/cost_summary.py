# SPDX-License-Identifier: MIT
"""What a run's report says of cost: time that was recorded, and what was merged and shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nasfast.cost import Cost
from nasfast.explain import explain
from nasfast.inputs import check_batch_norm
from nasfast.lower import Merge, Mode
from nasfast.report import CostReport, FineTuningReport, MergeRow, WorkRow
from nasfast.runs import Run
from nasfast.spaces import Architecture, BlockSpec
from nasfast.steps import FP32_SAMPLE
from nasfast.supernet import Supernet

Amounts = Mapping[str, Mapping[str, float]]  # of each weight set, as a store tells them

_SCORING = {
    "supernet": "Scoring by the supernet",
    FP32_SAMPLE: "Scoring of the fp32 sample",
    "untrained": "Scoring by the untrained supernet",
}


def cost_report(
    run: Run, supernet: Supernet, archs: Sequence[Architecture], cost: Cost, scoring: Amounts,
    tuned: FineTuningReport | None,
) -> CostReport:  # fmt: skip
    """Return what making the scores of a run took.

    Args:
        run: The run, with the settings of its scores.
        supernet: Its supernet.
        archs: The architectures that are scored.
        cost: Of these.
        scoring: What the score store says of work.
        tuned: What is said of its fine-tuned architectures.

    Raises:
        RunError: If the training log is damaged.
    """
    work = _training(run)
    work += [_row(name, scoring[key]) for key, name in _SCORING.items() if key in scoring]
    work += () if tuned is None else tuned.work
    return CostReport(_about(run, work), tuple(work), _merging(run, supernet, archs, cost))


def _training(run: Run) -> list[WorkRow]:
    records = run.records()
    if not records:
        return []
    seconds = sum(record.elapsed_s for record in records)
    epochs = "epoch" if len(records) == 1 else "epochs"
    return [WorkRow(f"Training, {len(records)} {epochs}", None, seconds)]


def _row(name: str, amounts: Mapping[str, float]) -> WorkRow:
    seconds, macs = float(amounts.get("computing_s", 0)), int(amounts.get("macs", 0))
    return WorkRow(name, int(amounts.get("archs", 0)), seconds, macs=macs)


def _about(run: Run, work: Sequence[WorkRow]) -> str:
    """Say where and with how many threads, and what the times hold."""
    if not work:
        text = "No time was recorded: an earlier version of nasfast made these scores. "
    else:
        text = (
            "Times are of computing alone, summed over all calls: loading, files and this report "
            "are not in them. "
        )
    ranked = [entry for entry in run.environments() if entry["command"] == "rank"]
    where = dict.fromkeys(_where(entry) for entry in ranked)
    text += f"Ranked on {'; '.join(where)}. " if where else ""
    return text + (
        "Equal networks are computed once, and what several have in common in the stem and the "
        "first cell is too; multiply-accumulates (MAC) are of convolutions and the classifier."
    )


def _where(entry: Mapping[str, object]) -> str:
    threads, isa = entry.get("threads"), entry.get("isa")
    noun = "thread" if threads == 1 else "threads"
    return (
        f"{entry.get('machine')} with {entry.get('cpus')} CPUs, {threads} {noun}, backend "
        f"{entry.get('backend')}{f' ({isa})' if isa else ''}"
    )


def _merging(
    run: Run, supernet: Supernet, archs: Sequence[Architecture], cost: Cost
) -> tuple[MergeRow, ...]:  # fmt: skip
    config, images = supernet.config, run.splits().train.images
    mode = Mode(check_batch_norm(config, run.config.rank.bn).cells, config.affine)
    height, width = images.shape[2:]
    blocks = isinstance(config.spec, BlockSpec)
    *written, merged = explain(
        run.config.supernet.spec, archs, config=config, mode=mode, image=(height, width),
        merges=(Merge.DEAD, Merge.LINEAR) if blocks else (Merge.LINEAR,),
    ).steps  # fmt: skip
    # Subnets of choice blocks are larger than their stand-alone networks, and are all distinct.
    asked = written[0].macs if blocks else int(cost.flops.sum())
    return (
        MergeRow("As asked for", len(archs), asked),
        MergeRow(
            "Equal networks merged" if blocks else "Equal networks and dead edges merged",
            merged.lanes,
            merged.macs,
        ),
        MergeRow("Stem and first cells shared, too", merged.lanes, merged.total_macs),
    )
