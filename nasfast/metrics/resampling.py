# SPDX-License-Identifier: MIT
"""From columns and a statistic to a value with its interval: the same way for every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nasfast.metrics.inputs import Floats, Ints, PerImage, PerSeed, Scores, column, count_ties
from nasfast.metrics.results import Interval, IntervalOptions, Measured, Resampled

_Result = TypeVar("_Result", bound=Measured)
Ties = tuple[int, int]  # rows of the first and of the second column that equal another


@dataclass(frozen=True)
class Statistic:
    """A function of finite columns, ``[n]`` each, to a number or to ``[levels]`` of them."""

    function: Callable[..., Any]

    def value_and_ties(self, *columns: Floats) -> tuple[Any, Ties]:
        """The value, and the tied rows of the first two columns."""
        return self.function(*columns), (count_ties(columns[0]), count_ties(columns[1]))

    def resample_architectures(self, columns: Floats, interval: Interval) -> Floats:
        """Values over rows drawn with replacement.

        Args:
            columns: ``[columns, n]``.
            interval: Resamples and seed.

        Returns:
            ``[resamples]`` or ``[resamples, levels]``.
        """
        drawn = draw_rows(columns.shape[1], interval)
        return np.array([self.function(*columns[:, rows]) for rows in drawn])


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of the columns in which all values are finite.

    Attributes:
        given: The columns as they were given, with all of their rows.
        kept: Which of the rows are used, ``[n + dropped]``.
        point: Values of the first column, ``[n]``, or ``[seeds, n]``.
        rest: Those of the other columns, ``[n]`` each.
    """

    given: list[Scores]
    kept: npt.NDArray[np.bool_]
    point: Floats
    rest: list[Floats]

    @property
    def n(self) -> int:
        """Rows used."""
        return self.point.shape[-1]

    @property
    def dropped(self) -> int:
        """Rows left out."""
        return self.kept.size - self.n


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value and its resamples."""

    value: Any
    ties: Ties
    samples: Floats | None  # [resamples] or [resamples, levels]
    resampled: Resampled


def draw_rows(n: int, interval: Interval) -> Iterator[Ints]:
    """Rows of each resample, ``[n]``."""
    rng = np.random.default_rng(interval.seed)
    for _ in range(interval.bootstrap):
        yield rng.integers(n, size=n)


def measure(
    result: type[_Result],
    name: str,
    statistic: Statistic,
    columns: Mapping[str, Scores],
    options: IntervalOptions,
    *,
    min_rows: int = 2,
    unit: Resampled = "architectures",
) -> _Result:
    """Evaluate a statistic with its interval.

    Args:
        result: Class to return.
        name: Of the result.
        statistic: To a number.
        columns: As for :func:`finite_rows`.
        options: Of the interval.
        min_rows: As for :func:`finite_rows`.
        unit: What a row is.
    """
    interval = Interval(**options)
    rows = finite_rows(columns, min_rows=min_rows)
    found = estimate(statistic, rows, interval, unit=unit)
    limits = None
    if found.samples is not None and np.isfinite(found.value):
        limits = _percentiles(found.samples[np.isfinite(found.samples)], interval.confidence)
    return result(
        name=name,
        value=float(found.value),
        n=rows.n,
        dropped=rows.dropped,
        ties_scores=found.ties[0],
        ties_truth=found.ties[1],
        interval=limits,
        confidence=interval.confidence if limits else None,
        resampled=found.resampled if limits else None,
    )


def finite_rows(columns: Mapping[str, Scores], *, min_rows: int = 2) -> Rows:
    """Leave out the rows in which a value is not finite.

    Args:
        columns: At least two by name, one value a row each; the first may be
            :class:`PerImage` or :class:`PerSeed`, which decides what is resampled. Beside a
            :class:`PerImage`, others may be so too, of the same images.
        min_rows: Rows that the statistic needs.

    Raises:
        ValueError: If a column is not 1-d, lengths or numbers of images differ, or fewer than
            ``min_rows`` rows are finite.
    """
    (first, scores), *others = columns.items()
    rest = [_other_column(name, values, scores) for name, values in others]
    point = _point_scores(first, scores)
    n = point.shape[-1]
    for (name, _), values in zip(others, rest, strict=True):
        if values.size != n:
            raise ValueError(
                f"{name}: wanted {n} values, one for each of {first}, got {values.size}"
            )
    kept: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(np.atleast_2d(point)), axis=0)
    for values in rest:
        kept &= np.isfinite(values)
    used = int(kept.sum())
    if used < min_rows:
        wanted = f"at least {min_rows} row{'s' if min_rows > 1 else ''} of finite values"
        raise ValueError(f"{', '.join(columns)}: wanted {wanted}, got {used} of {n}")
    if used < n:
        point, rest = point[..., kept], [values[kept] for values in rest]
    return Rows(list(columns.values()), kept, point, rest)


def estimate(
    statistic: Statistic, rows: Rows, interval: Interval, *, unit: Resampled = "architectures"
) -> Estimate:
    """Evaluate a statistic over rows, and over resamples of what the scores are made of.

    Args:
        statistic: What to evaluate.
        rows: Of what.
        interval: Resamples, seed and threads.
        unit: What a row is.

    Raises:
        ValueError: If there are resamples of a single image or seed.
    """
    scores = rows.given[0]
    if isinstance(scores, PerSeed):
        return _estimate_over_seeds(statistic, scores.average, rows, interval)
    value, ties = statistic.value_and_ties(rows.point, *rows.rest)
    samples = None
    if isinstance(scores, PerImage):
        unit = "images"
        _at_least_two(unit, scores.images, interval)
        if interval.bootstrap:
            drawn = zip(*_image_resamples(rows, interval), strict=False)
            samples = np.array([statistic.function(*columns) for columns in drawn])
    elif interval.bootstrap and np.isfinite(value).any():
        columns = np.stack([rows.point, *rows.rest])
        samples = statistic.resample_architectures(columns, interval)
    return Estimate(value, ties, samples, unit)


def _estimate_over_seeds(
    statistic: Statistic, average: str, rows: Rows, interval: Interval
) -> Estimate:
    seeds, rest = rows.point, rows.rest
    _at_least_two("seeds", len(seeds), interval)
    drawn = draw_rows(len(seeds), interval)
    if average == "scores":
        value, ties = statistic.value_and_ties(seeds.mean(axis=0), *rest)
        samples = [statistic.function(seeds[chosen].mean(axis=0), *rest) for chosen in drawn]
    else:
        found = [statistic.value_and_ties(scores, *rest) for scores in seeds]
        values = np.array([of_seed for of_seed, _ in found])
        value = values.mean(axis=0)
        ties = (max(tied[0] for _, tied in found), max(tied[1] for _, tied in found))
        samples = [values[chosen].mean(axis=0) for chosen in drawn]
    return Estimate(value, ties, np.array(samples) if samples else None, "seeds")


def _percentiles(samples: Floats, confidence: float) -> tuple[float, float] | None:
    if not samples.size:
        return None
    low, high = np.quantile(samples, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def _point_scores(name: str, scores: Scores) -> Floats:
    if isinstance(scores, PerImage):
        return scores.means()
    return scores.values if isinstance(scores, PerSeed) else column(name, scores)


def _other_column(name: str, values: Scores, first: Scores) -> Floats:
    if isinstance(values, PerImage) and isinstance(first, PerImage):
        if values.images != first.images:
            raise ValueError(f"{name}: wanted {first.images} images, got {values.images}")
        return values.means()
    return column(name, values)


def _image_resamples(rows: Rows, interval: Interval) -> Iterator[Iterator[Floats]]:
    """For each column what it is in each resample; equal seeds draw equal images."""
    for given, point in zip(rows.given, [rows.point, *rows.rest], strict=True):
        if isinstance(given, PerImage):
            yield given.rows(rows.kept).resampled_means(interval.bootstrap, interval.seed)
        else:
            yield repeat(point)


def _at_least_two(what: str, got: int, interval: Interval) -> None:
    if interval.bootstrap and got < 2:
        raise ValueError(f"bootstrap: wanted at least 2 {what} to draw from, got {got}")
