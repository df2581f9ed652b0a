# SPDX-License-Identifier: MIT
"""Learning curves of trainings from scratch, out of any table that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nasfast.tables.curve_table import CurveTable, higher_is_better
from nasfast.tables.trainings import TrainingTable

_Floats = npt.NDArray[np.float64]

_CURVES = ("train_loss", "valid_loss", "valid_accuracy")


@dataclass(frozen=True, eq=False)
class TableCurves:
    """Learning curves of trainings, and what they reached.

    Attributes:
        name: Of the table and the trainings in it, for people.
        unit: What a row is, for people: architectures, or networks that several share.
        epochs: Of a training.
        seeds: Numbers of the trainings of a row.
        curves: ``train_loss``, ``valid_loss``, ``valid_accuracy``, as far as the table has them,
            float64 ``[rows, seeds, points]``; NaN where unknown.
        points: The epochs that each of them is known after, ascending.
        truth: What counts in the end, higher is better, float64 ``[rows]``; NaN where unknown.
        truth_name: The same in words.
    """

    name: str
    unit: str
    epochs: int
    seeds: tuple[int, ...]
    curves: Mapping[str, _Floats]
    points: Mapping[str, Sequence[int]]
    truth: _Floats
    truth_name: str


def curves_of(
    table: CurveTable | TrainingTable,
    dataset: str | None = None,
    schedule: str | int | None = None,
    truth: str | None = None,
) -> TableCurves:
    """Take the learning curves out of a table.

    Args:
        table: Official results, or a table of our own trainings.
        dataset: Of official results, as in the names of columns; may be left out where only one
            has training losses.
        schedule: Likewise; the longest with training losses if left out.
        truth: Of official results a column such as ``"cifar10/200/test_accuracy"``, the mean over
            runs; if left out the test accuracy of `dataset` after its longest schedule. Of our own
            trainings ``"test"`` (if left out) or ``"valid"``.

    Raises:
        ValueError: If the table has no such curves or truth, or they are damaged.
    """
    if isinstance(table, TrainingTable):
        return _own_curves(table, dataset, schedule, truth)
    return _official_curves(table, dataset, schedule, truth)


def _own_curves(
    table: TrainingTable, dataset: str | None, schedule: str | int | None, truth: str | None
) -> TableCurves:
    if dataset is not None or schedule is not None:
        raise ValueError(f"dataset, schedule: {table.name} has one of each, so name neither")
    if truth not in (None, "test", "valid"):
        raise ValueError(f"truth: wanted 'test' or 'valid', got {truth!r}")
    rows = np.arange(len(table.index))
    if table.merging == "linear":  # copies of one training say nothing new
        rows = np.unique(table.network, return_index=True)[1]
    accuracy = table.valid_accuracy if truth == "valid" else table.test_accuracy
    epochs = table.train_loss.shape[2]
    return TableCurves(
        name=table.name,
        unit="networks" if table.merging == "linear" else "architectures",
        epochs=epochs,
        seeds=table.seeds,
        curves={
            "train_loss": table.train_loss[rows].astype(np.float64),
            "valid_accuracy": table.valid_accuracy[rows][:, :, None],
        },
        points={"train_loss": range(1, epochs + 1), "valid_accuracy": [epochs]},
        truth=accuracy[rows].mean(axis=1),
        truth_name=f"{'validation' if truth == 'valid' else 'test'} accuracy, mean of the seeds",
    )


def _official_curves(
    table: CurveTable, dataset: str | None, schedule: str | int | None, truth: str | None
) -> TableCurves:
    path = table.columns.path
    known = [
        name.split("/")[:2]
        for name in table.quantities
        if name.endswith("/train_loss") and table.columns.array(name).ndim == 3
    ]
    datasets = sorted({name for name, _ in known})
    if not known:
        raise ValueError(
            f"{path}: has no training losses by epoch, got {', '.join(table.quantities)}"
        )
    if dataset is None and len(datasets) == 1:
        dataset = datasets[0]
    if dataset not in datasets:
        raise ValueError(f"dataset: wanted one of {', '.join(datasets)}, got {dataset!r}")
    schedules = sorted((of for name, of in known if name == dataset), key=_length)
    chosen = schedules[-1] if schedule is None else str(schedule)
    if chosen not in schedules:
        raise ValueError(
            f"schedule: wanted one of {', '.join(schedules)} of {dataset}, got {schedule!r}"
        )
    seeds = table.seeds(dataset, chosen)
    epochs = table.columns.array(f"{dataset}/{chosen}/train_loss").shape[2]
    curves: dict[str, _Floats] = {}
    points: dict[str, Sequence[int]] = {}
    for name in _CURVES:
        if f"{dataset}/{chosen}/{name}" in table.quantities:
            each = [table.curve(dataset, chosen, name, seed) for seed in seeds]
            curves[name] = np.stack(each, axis=1)
            known_after = curves[name].shape[2]  # each epoch, or the last alone
            points[name] = range(epochs - known_after + 1, epochs + 1)
            if known_after not in (1, epochs):
                raise ValueError(
                    f"{path}: {dataset}/{chosen}/{name} has {known_after} epochs, wanted {epochs}"
                )
    column = truth or _longest_test(table, dataset)
    if column not in table.quantities:
        raise ValueError(f"truth: wanted one of {', '.join(table.quantities)}, got {column!r}")
    truth_dataset, truth_schedule, quantity = column.split("/")
    table.check(column, *(f"{dataset}/{chosen}/{name}" for name in curves))
    try:
        values, words = higher_is_better(
            column,
            table.truth(truth_dataset, truth_schedule, quantity),
            f"{column}, mean of the runs",
        )
    except ValueError as error:
        raise ValueError(f"truth: {error}") from None
    return TableCurves(
        name=f"{table.release}, {dataset}, schedule {chosen}",
        unit="architectures",
        epochs=epochs,
        seeds=seeds,
        curves=curves,
        points=points,
        truth=values,
        truth_name=words,
    )


def _longest_test(table: CurveTable, dataset: str) -> str:
    found = [name.split("/") for name in table.quantities if name.endswith("/test_accuracy")]
    schedules = sorted((of for name, of, _ in found if name == dataset), key=_length)
    return f"{dataset}/{schedules[-1] if schedules else ''}/test_accuracy"


def _length(schedule: str) -> int:
    return int(schedule) if schedule.isdecimal() else -1
