# SPDX-License-Identifier: MIT
"""Estimators on the learning curves of a table: how early do they order architectures rightly?

Nothing is trained: the curves are those of trainings from scratch that a table has, an official
one or our own. For each epoch ``t`` an estimator knows epochs ``1 .. t``, and its ranks are
compared with those of the test accuracy that trainings reach in the end.

=====================  ==============================================================
``sotl``               sum of the training losses of all epochs so far
``sotl_e<E>``          of the last ``E`` of them, as many as there are
``ema``                their sum with discount 0.9 an epoch (TSE-EMA as in the paper)
``train_loss``         training loss of epoch ``t``
``sovl``               sum of the validation losses of all epochs so far
``valid_loss``         validation loss after epoch ``t``
``valid_accuracy``     validation accuracy after epoch ``t``
=====================  ==============================================================

Losses are negated (:mod:`nasfast.estimators` has the definitions, with an epoch as the step). The
truth is of the same trainings, as in the literature: what is chance in a training is in both.

Source:
    Fil, thesis, section 4.2.1, figures 4.4 and 4.5; Ru et al., Speedy performance estimation for
    neural architecture search, NeurIPS 2021.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast import estimators as est
from nasfast import metrics
from nasfast.tables.curve_table import mean_of_known
from nasfast.tables.learning_curves import TableCurves, curves_of

__all__ = [
    "EstimatorPoint",
    "TableCorrelations",
    "TableCurves",
    "curves_of",
    "estimator_correlations",
]

_Floats = npt.NDArray[np.float64]

DEFAULT_WINDOWS = (10,)
_NEEDS = {
    "sotl": "train_loss", "ema": "train_loss", "train_loss": "train_loss",
    "sovl": "valid_loss", "valid_loss": "valid_loss", "valid_accuracy": "valid_accuracy",
}  # fmt: skip
_WINDOWED = re.compile(r"sotl_e([1-9][0-9]*)")
_MOST_EPOCHS = 16  # that are looked at unless more are asked for


@dataclass(frozen=True)
class EstimatorPoint:
    """How well an estimator orders architectures at one epoch.

    Attributes:
        estimator: Its name.
        epoch: Epochs of training that it knows.
        top: Share of the architectures, those with the best truth; 1: all of them.
        spearman: Of the estimate that is the mean over seeds.
        kendall: Likewise, tau-b.
        by_seed: Spearman and tau-b of the estimate of one training each, by seed.
    """

    estimator: str
    epoch: int
    top: float
    spearman: metrics.RankCorrelation
    kendall: metrics.RankCorrelation
    by_seed: Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class TableCorrelations:
    """Correlation against epoch, of each estimator.

    Attributes:
        name: Of the curves.
        unit: What a row is.
        epochs: Of a whole training.
        truth_name: What the estimators are compared with.
        seeds: Numbers of trainings.
        points: By share of architectures, then by estimator, then by epoch.
    """

    name: str
    unit: str
    epochs: int
    truth_name: str
    seeds: tuple[int, ...]
    points: tuple[EstimatorPoint, ...]

    def plain(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return {
            "table": self.name,
            "unit": self.unit,
            "epochs": self.epochs,
            "truth": self.truth_name,
            "seeds": list(self.seeds),
            "points": [
                {
                    "estimator": point.estimator,
                    "epoch": point.epoch,
                    "top": point.top,
                    "n": point.spearman.n,
                    "dropped": point.spearman.dropped,
                    "spearman": _plain(point.spearman),
                    "kendall_tau_b": _plain(point.kendall),
                    "by_seed": {
                        str(seed): {"spearman": rho, "kendall_tau_b": tau}
                        for seed, (rho, tau) in point.by_seed.items()
                    },
                }
                for point in self.points
            ],
        }


def estimator_correlations(
    curves: TableCurves,
    estimators: Sequence[str] | None = None,
    *,
    windows: Sequence[int] = DEFAULT_WINDOWS,
    epochs: Sequence[int] | None = None,
    top: Sequence[float] = (1.0, 0.1),
    bootstrap: int = 100,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> TableCorrelations:
    """Correlate estimators with what trainings reach, epoch by epoch.

    Args:
        curves: What :func:`curves_of` returns.
        estimators: Names as the module lists them; ``"sotl_e"`` stands for one with each window.
            If left out, all those that the curves allow.
        windows: Of ``"sotl_e"``, in epochs; those as long as a training are left out.
        epochs: At which to look; if left out all, or some where there are many.
        top: Shares of the architectures, those with the best truth.
        bootstrap: Resamples of the architectures for 95 % intervals; 0: none.
        seed: Of the resampling.
        on_progress: Called with how many points are done, and of how many.

    Returns:
        A point for each share, estimator and epoch. A correlation over fewer than two
        architectures is nan.

    Raises:
        ValueError: If an argument is out of range, or the curves do not allow an estimator.
    """
    names = _expanded(curves, estimators, windows)
    chosen = _some(curves.epochs) if epochs is None else sorted(set(epochs))
    if not chosen or chosen[0] < 1 or chosen[-1] > curves.epochs:
        raise ValueError(f"epochs: wanted some of 1..{curves.epochs}, got {list(chosen)}")
    if not top or not all(0.0 < share <= 1.0 for share in top):
        raise ValueError(f"top: wanted shares above 0 and at most 1, got {list(top)}")
    wanted = [(n, t) for n in names for t in chosen if t >= curves.points[_curve_of(n)][0]]
    for name in names:
        first = curves.points[_curve_of(name)][0]
        if chosen[-1] < first and (estimators is not None or not wanted):
            raise ValueError(
                f"epochs: {name} is known from epoch {first} on in {curves.name}, got {chosen}"
            )
    points: dict[tuple[int, str, int], EstimatorPoint] = {}
    rows = [_best_rows(curves.truth, share) for share in top]
    for done, (name, epoch) in enumerate(wanted):
        scores = _scores(curves, name, epoch)
        for place, (share, best) in enumerate(zip(top, rows, strict=True)):
            points[place, name, epoch] = _point(
                name, epoch, share, scores[best], curves.truth[best], curves.seeds, bootstrap, seed
            )
        if on_progress is not None:
            on_progress(done + 1, len(wanted))
    order = [(place, *key) for place in range(len(top)) for key in wanted]
    return TableCorrelations(
        name=curves.name,
        unit=curves.unit,
        epochs=curves.epochs,
        truth_name=curves.truth_name,
        seeds=curves.seeds,
        points=tuple(points[key] for key in order),
    )


def _point(
    name: str, epoch: int, share: float, scores: _Floats, truth: _Floats,
    seeds: Sequence[int], bootstrap: int, seed: int,
) -> EstimatorPoint:  # fmt: skip
    mean = mean_of_known(scores, axis=1)
    options = {"bootstrap": bootstrap, "seed": seed}
    by_seed = {
        number: (
            _measured(metrics.spearman, scores[:, place], truth).value,
            _measured(metrics.kendall_tau, scores[:, place], truth).value,
        )
        for place, number in enumerate(seeds)
    }
    return EstimatorPoint(
        estimator=name,
        epoch=epoch,
        top=share,
        spearman=_measured(metrics.spearman, mean, truth, **options),
        kendall=_measured(metrics.kendall_tau, mean, truth, **options),
        by_seed=by_seed,
    )


def _measured(
    metric: Callable[..., metrics.RankCorrelation], scores: _Floats, truth: _Floats, **options: int
) -> metrics.RankCorrelation:
    used = int((np.isfinite(scores) & np.isfinite(truth)).sum())
    if used < 2:  # the metric refuses so few, but the other epochs may have more
        name = metric.__name__
        return metrics.RankCorrelation(name, math.nan, used, len(truth) - used, 0, 0, None, None)
    return metric(scores, truth, **options)


def _scores(curves: TableCurves, name: str, epoch: int) -> _Floats:
    """What an estimator says of each training, ``[rows, seeds]``."""
    curve = curves.curves[_curve_of(name)]
    points = list(curves.points[_curve_of(name)])
    window = _WINDOWED.fullmatch(name)
    if window:
        return est.tse_e(curve, 1, epochs=int(window[1]), at=epoch)
    known: dict[str, Callable[[], _Floats]] = {
        "sotl": lambda: est.sotl(curve, at=epoch),
        "ema": lambda: est.tse_ema(curve, 1, at=epoch),
        "train_loss": lambda: est.sotl(curve, window=1, at=epoch),
        "sovl": lambda: est.sovl(curve, points, at=epoch),
        "valid_loss": lambda: est.val_acc(-curve, points, at=epoch),
        "valid_accuracy": lambda: est.val_acc(curve, points, at=epoch),
    }
    return known[name]()


def _curve_of(name: str) -> str:
    return "train_loss" if _WINDOWED.fullmatch(name) else _NEEDS[name]


def _expanded(
    curves: TableCurves, estimators: Sequence[str] | None, windows: Sequence[int]
) -> list[str]:
    bad = [window for window in windows if window < 1]
    if bad:
        raise ValueError(f"windows: wanted at least 1 epoch, got {bad[0]}")
    of_windows = [f"sotl_e{window}" for window in windows if window < curves.epochs]
    everything = ["sotl", *of_windows, "ema", "train_loss", "sovl", "valid_loss", "valid_accuracy"]
    if estimators is None:
        return [name for name in everything if _curve_of(name) in curves.curves]
    names: list[str] = []
    for name in estimators:
        names += of_windows if name == "sotl_e" else [name]
    for name in names:
        if name not in _NEEDS and not _WINDOWED.fullmatch(name):
            wanted = ", ".join([*_NEEDS, "sotl_e"])
            raise ValueError(f"estimators: wanted some of {wanted}, got {name!r}")
        if _curve_of(name) not in curves.curves:
            raise ValueError(
                f"estimators: {name} needs curves of {_curve_of(name)}, but {curves.name} has "
                f"{', '.join(curves.curves)}"
            )
    return list(dict.fromkeys(names))


def _some(epochs: int) -> list[int]:
    """Epochs to look at: denser where training begins, as correlations change most there."""
    if epochs <= _MOST_EPOCHS:
        return list(range(1, epochs + 1))
    early, late = np.geomspace(1, epochs, 10), np.linspace(1, epochs, _MOST_EPOCHS - 5)
    return sorted({round(float(epoch)) for epoch in np.concatenate([early, late])})


def _best_rows(truth: _Floats, share: float) -> npt.NDArray[np.intp]:
    """The share of rows with the best truth, at least one; all rows for the whole."""
    if share == 1.0:
        return np.arange(len(truth))
    known = np.flatnonzero(np.isfinite(truth))
    count = max(1, math.ceil(share * len(known)))
    return np.sort(known[np.argsort(-truth[known], kind="stable")[:count]])


def _plain(found: metrics.RankCorrelation) -> dict[str, Any]:
    return {"value": found.value, "interval": found.interval and list(found.interval)}
