# SPDX-License-Identifier: MIT
"""Sparse Kendall-tau: architectures of nearly equal truth share a rank."""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from nasfast.metrics.inputs import Floats, Scores, column, one_of
from nasfast.metrics.kendall import tau_statistic
from nasfast.metrics.resampling import Statistic, measure
from nasfast.metrics.results import IntervalOptions, RankCorrelation

# Of a bin: what counts as on its edge, for the rounding of the truth's own type, is no wider.
_WIDEST = 0.01


def sparse_tau(
    scores: Scores,
    truth: npt.ArrayLike,
    *,
    binning: Literal["floor", "round", "published_code"],
    threshold: float,
    **options: Unpack[IntervalOptions],
) -> RankCorrelation:
    """Kendall's tau-b after binning the truth; neither binning nor threshold has a default.

    The paper lets two architectures share a rank if their stand-alone accuracies differ by no
    more than a threshold, 0.1 %, which is no equivalence; its code bins. The readings differ by
    up to 0.06, so the name of the result spells out which it is.

    * ``"floor"``: tau-b of the scores and ``floor(truth / threshold)``.
    * ``"round"``: tau-b of the scores and the nearest multiple of the threshold, halves upward.
    * ``"published_code"``: bins as ``floor``, but the pairing of the authors' code: position by
      position, the bins in ascending order of the truth and the bins in ascending order of the
      scores. The ties of the first are then those of the histogram of bins, not of matched rows.
      A truth whose mean is above 1 and below 100 counts as percent and is divided by 100, so
      there a threshold of 1e-3 is 0.1 % in either unit. Equal scores keep the order of their rows.

    For the first two, a quotient within rounding of a whole number counts as that number (91.3,
    also as float32, lies in bin 913 of width 0.1); the published code bins what floating-point
    arithmetic gives.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: Stand-alone accuracies, higher is better, ``[n]``.
        binning: As above.
        threshold: Width of a bin, in the unit of ``truth``; for ``"published_code"`` a share of 1.
            The paper has 0.1 %; the code 1e-4, 1e-3 or 1e-2 by place.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation; ``ties_truth`` counts after binning.

    Raises:
        ValueError: As for :func:`kendall_tau`, or if ``threshold`` is not positive and finite.
        ImportError: If ``nasfast._host`` is not built.

    Source:
        Yu et al., How to Train Your Super-Net, section 3, and its code, nasws/cnn/utils.py.
    """
    one_of("binning", binning, ("floor", "round", "published_code"))
    if not 0.0 < threshold < np.inf:
        raise ValueError(f"threshold: wanted a positive width of a bin, got {threshold}")
    values = column("truth", truth)
    if binning == "published_code":
        bins = _published_bins(values, threshold)
        statistic = Statistic(_positionwise_tau_b)
    else:
        # Not a number stays so, and is dropped like any other.
        quotients = values / threshold + (0.5 if binning == "round" else 0.0)
        tolerance = 4.0 * _spacing(truth)
        most = float(np.nanmax(np.abs(quotients), initial=0.0, where=np.isfinite(quotients)))
        if tolerance * most > _WIDEST:
            raise ValueError(
                f"threshold: wanted bins that the numbers of truth can tell apart, got "
                f"{threshold:g} for {np.asarray(truth).dtype} values up to {most * threshold:.4g}"
            )
        bins = _floor(quotients, tolerance)
        statistic = tau_statistic("b")
    columns: dict[str, Scores] = {"scores": scores, "truth": bins}
    name = f"sparse_tau_b[{binning}, threshold={threshold:g}]"
    return measure(RankCorrelation, name, statistic, columns, options)


def _floor(quotients: Floats, tolerance: float) -> Floats:
    nearest = np.rint(quotients)
    with np.errstate(invalid="ignore"):
        close = np.abs(quotients - nearest) <= tolerance * np.maximum(1.0, np.abs(quotients))
    return np.where(close, nearest, np.floor(quotients))


def _spacing(values: npt.ArrayLike) -> float:
    """Relative distance of neighbours in the type that the values were rounded to."""
    dtype = np.asarray(values).dtype
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)


def _published_bins(truth: Floats, threshold: float) -> Floats:
    finite = truth[np.isfinite(truth)]
    if finite.size and 1.0 < finite.mean() < 100.0:
        truth = truth * 1e-2
    with np.errstate(invalid="ignore"):
        return truth * (1.0 / threshold) // 1.0


def _positionwise_tau_b(scores: Floats, bins: Floats) -> float:
    tau = tau_statistic("b").function
    return float(tau(np.sort(bins), bins[np.argsort(scores, kind="stable")]))
