# SPDX-License-Identifier: MIT
"""How many minibatches are enough: intervals for what all minibatches would say.

The minibatches seen so far are the first of a set that was shuffled once, so they are a sample
without replacement. Everything here is about the value on the *whole* set: an interval shrinks to
a point when all of it was seen. The unit is the minibatch, not the image, since batch statistics
tie the images of a minibatch together. Architectures are not resampled.

Each look at the data spends an equal part of the error allowed (Bonferroni), so stopping at the
first look that satisfies keeps the stated confidence.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from nasfast.metrics import kendall_tau, rank_order

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]

FIRST_LOOK = 8  # fewer minibatches say nothing about their own spread
_GROWTH = 1.4
_HALVINGS = 8
_WORDS = "'tau ±0.01', 'top-10', either with ' at 99%'"
_PATTERN = re.compile(
    r"(?:tau\s*(?:±|\+-|\+/-)\s*(?P<width>0?\.\d+)|top-(?P<k>\d+))(?:\s+at\s+(?P<level>[\d.]+)\s*%)?"
)


@dataclass(frozen=True)
class Goal:
    """What a ranking is stopped at.

    Attributes:
        kind: ``"tau"``: the interval of Kendall's tau-b with the ground truth is narrow enough.
            ``"top"``: it is known which architectures are the best.
        half_width: Of the interval, for ``"tau"``.
        k: How many, for ``"top"``.
        confidence: That the interval holds, or that all of the ``k`` are right, in (0, 1).
    """

    kind: Literal["tau", "top"]
    half_width: float = math.nan
    k: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence: wanted between 0 and 1, got {self.confidence:g}")
        if self.kind == "tau" and not 0.0 < self.half_width < 1.0:
            raise ValueError(f"half_width: wanted between 0 and 1, got {self.half_width:g}")
        if self.kind == "top" and self.k < 1:
            raise ValueError(f"k: wanted at least 1, got {self.k}")

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read a goal such as ``tau ±0.01``, ``top-10`` or ``top-10 at 99%``.

        Raises:
            ValueError: If it is none.
        """
        found = _PATTERN.fullmatch(text.strip())
        try:
            if found is None:
                raise ValueError(f"wanted {_WORDS}")
            level = 0.95 if found["level"] is None else float(found["level"]) / 100.0
            if found["k"] is not None:
                return cls("top", k=int(found["k"]), confidence=level)
            return cls("tau", half_width=float(found["width"]), confidence=level)
        except ValueError as error:
            raise ValueError(f"until: {error}, got {text!r}") from None

    def __str__(self) -> str:
        what = f"tau ±{_plain(self.half_width)}" if self.kind == "tau" else f"top-{self.k}"
        return f"{what} at {_plain(100 * self.confidence)}%"


def _plain(value: float) -> str:
    """Write a number without an exponent, so that :meth:`Goal.parse` reads it."""
    return np.format_float_positional(value, precision=12, fractional=False, trim="-")


def looks(minibatches: int) -> tuple[int, ...]:
    """Return after how many minibatches the ranking is looked at, ascending; the last is all.

    Args:
        minibatches: In the whole set, at least 1.
    """
    found, at = [], float(FIRST_LOOK)
    while at < minibatches:
        found.append(int(at))
        at = max(at * _GROWTH, at + 1)
    return (*found, minibatches)


def contenders(losses: _Floats, minibatches: int, k: int, error: float) -> _Mask:
    """Tell which architectures may still be among the ``k`` of lowest mean loss.

    One is out when each of the ``k`` that lead so far is better with confidence: by the paired
    differences of their losses, in a one-sided t interval with the finite-population correction. A
    member of the true top ``k`` can be thrown out only by a comparison that errs, since not all
    ``k`` leaders can be better than it; so with ``error = allowed / (k archs)``, where ``archs``
    counts all that the ranking began with, the true top ``k`` stays with probability
    ``1 - allowed``. That holds as far as means of minibatches differ as normal variables do: a
    loss that explodes on one minibatch in a hundred, on another one for each architecture, is not
    foreseen from a few.

    Architectures of exactly equal losses are the same function: that of the lower row comes first,
    as in :func:`nasfast.metrics.rank_order`. A loss that is not finite puts an architecture last.

    Args:
        losses: Mean loss of each minibatch so far, ``[archs, seen]``.
        minibatches: In the whole set, at least ``seen``.
        k: How many.
        error: Probability that one comparison may err with.

    Returns:
        ``[archs]``; exactly ``k`` are left when membership is settled.

    Raises:
        ValueError: If there are fewer than ``k`` architectures, or more minibatches were seen than
            there are.
    """
    archs, seen = losses.shape
    if archs < k:
        raise ValueError(f"k: wanted at most the {archs} architectures, got {k}")
    if not 1 <= seen <= minibatches:
        raise ValueError(f"minibatches: wanted at least the {seen} seen, got {minibatches}")
    leaders = np.sort(rank_order(-losses.mean(axis=1))[:k])
    left: _Mask = np.isin(np.arange(archs), leaders)
    if seen == minibatches:
        return left
    finite = np.isfinite(losses.sum(axis=1))
    if seen == 1 or not finite[leaders].all():  # nothing is known of the spread
        return np.ones(archs, dtype=np.bool_)
    quantile = stats.t.isf(error, seen - 1) * math.sqrt((1.0 - seen / minibatches) / seen)
    left |= finite
    rest = np.flatnonzero(left & ~np.isin(np.arange(archs), leaders))
    for leader in leaders.tolist():  # each looks at those that no leader before it left in
        gap = losses[rest] - losses[leader]
        is_worse = gap.mean(axis=1) > quantile * gap.std(axis=1, ddof=1)
        is_out = np.where((gap == 0.0).all(axis=1), rest > leader, is_worse)
        rest = rest[is_out]
    left[rest] = False
    return left


@dataclass(frozen=True)
class TauInterval:
    """Kendall's tau-b so far, and where that of all minibatches lies.

    Attributes:
        value: On the minibatches seen.
        low: Lower end of the interval, at least -1.
        high: Upper end, at most 1.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the width; NaN where tau is undefined."""
        return (self.high - self.low) / 2.0


def tau_interval(
    losses: _Floats, truth: _Floats, minibatches: int, error: float, *, seed: int = 0
) -> TauInterval:
    """Estimate the tau-b that ``-mean loss`` over all minibatches has with the truth.

    Fewer minibatches mean more noise and a smaller tau, so a bootstrap, which adds noise, errs to
    one side. Here tau is corrected for attenuation first: with ``rho = sin(pi/2 tau)``, that of all
    is ``rho sqrt(reliability of all / reliability of those seen)``. Reliabilities come from
    how well the means of two halves of the minibatches agree (Spearman, Brown), over several
    ways to halve them. The spread is that of leaving out one minibatch after the other
    (jackknife of all of this), with the finite-population correction, in a t interval.

    The relation of rho and tau is that of normal variables. By simulation the interval holds as
    often as it says where minibatches agree at all, and a few points less often where they are
    mostly noise.

    Args:
        losses: Mean loss of each minibatch so far, ``[archs, seen]``.
        truth: Ground truth, higher is better, ``[archs]``.
        minibatches: In the whole set.
        error: Probability allowed that the interval misses.
        seed: Of the ways to halve.

    Returns:
        The interval; a point when all was seen, all of [-1, 1] below four minibatches.

    Source:
        Spearman, The proof and measurement of association between two things, 1904 (attenuation).
    """
    seen = losses.shape[1]
    total = losses.sum(axis=1)
    value = kendall_tau(-total, truth).value
    if seen == minibatches:
        return TauInterval(value, value, value)
    if seen < 4 or not math.isfinite(value):
        return TauInterval(value, -1.0, 1.0)
    rng = np.random.default_rng([seed, seen])
    halvings = np.array([rng.permutation(seen) < seen // 2 for _ in range(_HALVINGS)])
    everything = np.ones(seen, dtype=np.bool_)
    centre = _of_all(losses, truth, minibatches, halvings, everything)
    without = np.array(
        [
            _of_all(losses, truth, minibatches, halvings, np.arange(seen) != left_out)
            for left_out in range(seen)
        ]
    )
    variance = without.var() * (seen - 1) * (1.0 - seen / minibatches)
    half = stats.t.isf(error / 2.0, seen - 1) * math.sqrt(variance)
    return TauInterval(value, _tau_of(centre - half), _tau_of(centre + half))


def _of_all(
    losses: _Floats, truth: _Floats, minibatches: int, halvings: _Mask, kept: _Mask
) -> float:
    """Estimate rho of all minibatches from those kept, corrected for attenuation.

    It may come out beyond 1, and stays so: its spread would be lost otherwise.
    """
    seen = np.count_nonzero(kept)
    rho = _rho(-losses @ kept, truth)
    halves = [(half & kept, ~half & kept) for half in halvings]
    agreement = np.mean([_rho(losses @ a / a.sum(), losses @ b / b.sum()) for a, b in halves])
    # Spearman and Brown: of a single minibatch, then of any number.
    half = seen / 2.0
    single = max(0.0, agreement / (half - (half - 1.0) * agreement))
    growth = minibatches / seen * (1.0 + (seen - 1) * single) / (1.0 + (minibatches - 1) * single)
    return rho * math.sqrt(growth)


def _rho(one: _Floats, other: _Floats) -> float:
    """Correlation of normal variables whose Kendall's tau is that of these."""
    return math.sin(math.pi / 2 * kendall_tau(one, other).value)


def _tau_of(rho: float) -> float:
    return math.asin(max(-1.0, min(1.0, rho))) * 2.0 / math.pi
