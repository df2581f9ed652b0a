# SPDX-License-Identifier: MIT
"""What a run's report says of its fine-tuned architectures: estimators, curves and controls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nasfast import estimators, tables
from nasfast.cost import stand_alone_cost
from nasfast.curve_store import CurveStore
from nasfast.curves import Curves
from nasfast.finetune_run import as_finetuned, curve_settings
from nasfast.report import Estimate, EstimateCurve, FineTuningReport, WorkRow
from nasfast.runs import Run
from nasfast.supernet import Supernet

_POINTS = 20  # of a line: each costs a bootstrap
_Floats = npt.NDArray[np.float64]


def finetuning_report(
    run: Run, supernet: Supernet, table: tables.Table | None
) -> FineTuningReport | None:
    """Return what is to be said of the curves of a run, None without curves.

    Settings are those of the curves, whatever the configuration says.

    Raises:
        StoreError: If the curves are damaged, or of other weights or settings.
    """
    if not run.curve_file.is_file():
        return None
    run = as_finetuned(run)
    with CurveStore(run.curve_file, curve_settings(run, supernet)) as store:
        archs, curves = store.read("supernet")
        control_archs, control = store.read("untrained")
        origins, took = store.origins(), store.work()
    if len(archs) == 0:
        return None
    config, section = supernet.config, run.config.finetune
    schedule = section.schedule()
    minis, valids = schedule.mini_steps, schedule.valid_steps
    steps, end = section.steps, section.epoch_steps
    height, width = run.splits().train.images.shape[2:]
    cost = stand_alone_cost(
        config, [config.spec.from_index(int(k)) for k in archs], height=height, width=width
    )
    untrained = np.full(len(archs), np.nan)
    if len(control_archs):
        _, here, there = np.intersect1d(archs, control_archs, return_indices=True)
        untrained[here] = estimators.sotl(control.loss)[there]
    rows = {
        f"SoTL, {steps} steps": estimators.sotl(curves.loss),
        "TLMini, before fine-tuning": estimators.tl_mini(curves.loss),
        **_validation(curves, minis, valids),
        f"TSE-E, last {end} steps": estimators.tse_e(curves.loss, end),
        "TSE-EMA, weights of the paper": estimators.tse_ema(curves.loss, end),
        "TSE-EMA, weights of its code": estimators.tse_ema(curves.loss, end, weighting="code"),
        "SoG": estimators.sog(curves.gradient_sum_l1),
        "SoGN": estimators.sogn(curves.gradient_l1),
        "Parameter count": estimators.parameter_count(cost.params),
        "FLOPs": cost.flops.astype(np.float64),
    }
    if len(control_archs):
        rows[f"Untrained supernet, SoTL, {steps} steps"] = untrained
    diverged = np.flatnonzero(curves.diverged_at >= 0)
    return FineTuningReport(
        about=_about(run, len(archs), origins),
        truth=None if table is None else table.truth[archs],
        truth_name="" if table is None else table.truth_name,
        estimates=tuple(Estimate(name, scores) for name, scores in rows.items()),
        curves=() if table is None else _lines(curves, steps, minis),
        diverged=tuple((int(archs[k]), int(curves.diverged_at[k])) for k in diverged),
        work=tuple(
            WorkRow(
                f"Fine-tuning from the {name}", int(sums.get("archs", 0)),
                float(sums.get("computing_s", 0)), steps=int(sums.get("steps", 0)),
            )
            for name, key in (("supernet", "supernet"), ("untrained supernet", "untrained"))
            if (sums := took.get(key))
        ),
    )  # fmt: skip


def _validation(
    curves: Curves, minis: tuple[int, ...], valids: tuple[int, ...]
) -> dict[str, _Floats]:  # fmt: skip
    """Return the estimators from validation images, at the first and at the last point."""
    rows = {}
    for name, values, points in (
        ("ValAccMini", curves.mini_accuracy, minis),
        ("ValAcc", curves.valid_accuracy, valids),
    ):
        for at in dict.fromkeys((*points[:1], *points[-1:])):
            when = "before fine-tuning" if at == 0 else f"after {at} steps"
            rows[f"{name}, {when}"] = estimators.val_acc(values, points, at=at)
    rows[f"SoVL, {len(minis)} points"] = estimators.sovl(curves.mini_loss, minis)
    return rows


def _lines(curves: Curves, steps: int, minis: tuple[int, ...]) -> tuple[EstimateCurve, ...]:
    """Return the lines of the plots: what each estimator says after so many steps."""
    taken = np.unique(np.linspace(1, steps, min(steps, _POINTS)).round().astype(int)).tolist()
    shown = [minis[k] for k in sorted({round(k) for k in np.linspace(0, len(minis) - 1, _POINTS)})]

    def line(name: str, at: list[int], scores: list[_Floats]) -> EstimateCurve:
        return EstimateCurve(name, tuple(at), np.stack(scores))

    # A minibatch's loss is that of weights one step younger than what SoTL sums up to.
    return (
        line("SoTL", taken, [estimators.sotl(curves.loss, at=t) for t in taken]),
        line("TLMini", [t - 1 for t in taken],
             [estimators.tl_mini(curves.loss, at=t - 1) for t in taken]),
        line("ValAccMini", shown,
             [estimators.val_acc(curves.mini_accuracy, minis, at=t) for t in shown]),
        line("SoG", taken, [estimators.sog(curves.gradient_sum_l1, at=t) for t in taken]),
        line("SoGN", taken, [estimators.sogn(curves.gradient_l1, at=t) for t in taken]),
    )  # fmt: skip


def _about(run: Run, archs: int, origins: list[str]) -> str:
    s = run.config.finetune
    momentum = f"momentum {s.momentum:g}{' (Nesterov)' if s.nesterov else ''}"
    return (
        f"{archs:,} architectures were trained on, each on its own copy of the supernet's weights, "
        f"for {s.steps} steps of minibatches of {s.batch_size} at learning rate {s.lr:g}, "
        f"{momentum}, weight decay {s.weight_decay:g}; all saw the same minibatches in the same "
        f"order. Validation: {s.images} images, batch norm {s.bn} (cells/others). "
        f"Computed in {s.precision} by {', '.join(origins) or 'an unknown backend'}."
    )
