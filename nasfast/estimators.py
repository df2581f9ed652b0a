# SPDX-License-Identifier: MIT
"""Generalisation estimators: pure functions of the curves that fine-tuning records.

Higher is better throughout, so losses are negated. Curves are ``[..., steps]``, column ``k`` is
from before step ``k``, and results are ``[...]``. An estimator *at* step ``t`` knows what was
recorded in the first ``t`` steps: columns ``0 .. t - 1``. A value that is not finite, as of a lane
that diverged, makes every estimate that uses it NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]


def sotl(loss: npt.ArrayLike, *, window: int | None = None, at: int | None = None) -> _Floats:
    """Sum over training losses, negated: ``-(loss[t - window] + ... + loss[t - 1])``.

    Args:
        loss: Training losses, ``[..., steps]``.
        window: Steps that are summed, all of them where fewer were taken; None: all.
        at: Steps taken, ``t``; all when left out.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Fil, thesis, section 3.1, equation 3.1. The sum over a window: Ru et al., Speedy
        performance estimation for neural architecture search, NeurIPS 2021.
    """
    curve, t = _cut(loss, at, least=1)
    begin = 0 if window is None else max(0, t - _positive("window", window))
    return -_sum(curve[..., begin:t])


def tl_mini(loss: npt.ArrayLike, *, at: int = 0) -> _Floats:
    """Training loss of one minibatch, negated, by weights that took ``at`` steps: ``-loss[at]``.

    Args:
        loss: Training losses, ``[..., steps]``.
        at: Steps taken before the minibatch was seen; 0: the weights that fine-tuning begins with.

    Raises:
        ValueError: If there is no such minibatch.

    Source:
        Fil, thesis, section 3.2.2 (TLMini); Table 4.1 uses the supernet's weights directly.
    """
    curve = _curve(loss)
    steps = curve.shape[-1]
    if not 0 <= at < steps:
        raise ValueError(f"at: wanted 0..{steps - 1}, got {at}")
    return -_known(curve[..., at])


def val_acc(accuracy: npt.ArrayLike, points: Sequence[int], *, at: int = 0) -> _Floats:
    """Validation accuracy after ``at`` steps: ValAccMini on one minibatch, ValAcc on the whole set.

    Args:
        accuracy: Accuracies, ``[..., points]``.
        points: Steps taken at each point, ascending.
        at: Steps taken; the last point that is not later counts.

    Raises:
        ValueError: If there is no point so early, or as many columns as points are missing.

    Source:
        Fil, thesis, section 3.2.2; Table 4.1 uses the supernet's weights directly.
    """
    curve, known = _at_points(accuracy, points, at)
    return _known(curve[..., known - 1])


def sovl(loss: npt.ArrayLike, points: Sequence[int], *, at: int | None = None) -> _Floats:
    """Sum over validation losses, negated, of all points recorded so far.

    Args:
        loss: Validation losses, ``[..., points]``.
        points: Steps taken at each point, ascending.
        at: Steps taken: later points do not count; all of them when left out.

    Raises:
        ValueError: As for :func:`val_acc`.

    Source:
        Ru et al., Speedy performance estimation for neural architecture search, NeurIPS 2021.
    """
    curve, known = _at_points(loss, points, at)
    return -_sum(curve[..., :known])


def tse_e(
    loss: npt.ArrayLike, epoch_steps: int, *, epochs: int = 1, at: int | None = None
) -> _Floats:
    """Training speed over the last ``epochs`` epochs: the sum of their mean losses, negated.

    As :func:`sotl` with a window of whole epochs, divided by the steps of one.

    Args:
        loss: Training losses, ``[..., steps]``.
        epoch_steps: Steps that count as an epoch.
        epochs: Epochs that are summed, E; the steps there are where fewer were taken.
        at: Steps taken; all when left out.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Ru et al., Speedy performance estimation for neural architecture search, NeurIPS 2021
        (TSE-E; E = 1).
    """
    length = _positive("epoch_steps", epoch_steps)
    return sotl(loss, window=length * _positive("epochs", epochs), at=at) / length


def tse_ema(
    loss: npt.ArrayLike,
    epoch_steps: int,
    *,
    mu: float = 0.9,
    weighting: Literal["paper", "code"] = "paper",
    at: int | None = None,
) -> _Floats:
    """Training speed with an exponential moving average of the mean losses of epochs, negated.

    Of the mean losses ``l_1 .. l_T`` of the epochs so far, the last of which may be unfinished:
    the paper sums them with discount, ``sum of mu^(T - i) l_i``. The published code averages,
    ``e_i = (1 - mu) e_{i-1} + mu l_i`` from ``e_1 = l_1``, and so gives 0.9 to the *newest* value.

    Args:
        loss: Training losses, ``[..., steps]``.
        epoch_steps: Steps that count as an epoch.
        mu: Weight, in (0, 1).
        weighting: ``"paper"`` or ``"code"``.
        at: Steps taken; all when left out.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Ru et al., Speedy performance estimation for neural architecture search, NeurIPS 2021
        (TSE-EMA, gamma = 0.9), and its code, ``rank_correlation_comparison.py``.
    """
    if weighting not in ("paper", "code"):
        raise ValueError(f"weighting: wanted 'paper' or 'code', got {weighting!r}")
    if not 0.0 < mu < 1.0:
        raise ValueError(f"mu: wanted a number between 0 and 1, got {mu}")
    length = _positive("epoch_steps", epoch_steps)
    curve, t = _cut(loss, at, least=1)
    total: _Floats | None = None
    for begin in range(0, t, length):
        end = min(begin + length, t)
        mean = _sum(curve[..., begin:end]) / (end - begin)
        if total is None:
            total = mean
        elif weighting == "paper":
            total = mu * total + mean
        else:
            total = (1.0 - mu) * total + mu * mean
    assert total is not None
    return -total


def sog(gradient_sum_l1: npt.ArrayLike, *, at: int | None = None) -> _Floats:
    """Sum of gradients: the L1 norm of the gradients summed, dimension by dimension, over steps.

    High where gradients are large and keep their direction.

    Args:
        gradient_sum_l1: Norm of the running sum, each step's own gradient included,
            ``[..., steps]``.
        at: Steps taken; all when left out.

    Raises:
        ValueError: If ``at`` is out of range.

    Source:
        Fil, thesis, section 4.2.4.
    """
    curve, t = _cut(gradient_sum_l1, at, least=1)
    return _known(curve[..., t - 1])


def sogn(gradient_l1: npt.ArrayLike, *, at: int | None = None) -> _Floats:
    """Sum of gradient norms: the L1 norms of all steps' gradients, added.

    Args:
        gradient_l1: Norm of each step's gradient, ``[..., steps]``.
        at: Steps taken; all when left out.

    Raises:
        ValueError: If ``at`` is out of range.

    Source:
        Fil, thesis, section 4.2.4.
    """
    curve, t = _cut(gradient_l1, at, least=1)
    return _sum(curve[..., :t])


def parameter_count(params: npt.ArrayLike) -> _Floats:
    """Trainable parameters of the stand-alone network: the control that needs no training.

    Args:
        params: As :func:`nasfast.cost.stand_alone_cost` counts them, ``[...]``.

    Source:
        Fil, thesis, section 4.2.4 (Params).
    """
    return np.array(params, dtype=np.float64)


def _curve(values: npt.ArrayLike) -> _Floats:
    curve = np.asarray(values, dtype=np.float64)
    if curve.ndim == 0 or curve.shape[-1] == 0:
        raise ValueError(f"curve: wanted [..., steps] with at least 1 step, got {curve.shape}")
    return curve


def _cut(values: npt.ArrayLike, at: int | None, *, least: int) -> tuple[_Floats, int]:
    curve = _curve(values)
    steps = curve.shape[-1]
    t = steps if at is None else at
    if not least <= t <= steps:
        raise ValueError(f"at: wanted {least}..{steps} steps, got {at}")
    return curve, t


def _at_points(values: npt.ArrayLike, points: Sequence[int], at: int | None) -> tuple[_Floats, int]:
    """Return a curve and how many of its points are not later than ``at``."""
    curve, steps = _curve(values), np.asarray(points)
    if steps.shape != curve.shape[-1:] or not (np.diff(steps) > 0).all():
        raise ValueError(
            f"points: wanted {curve.shape[-1]} ascending steps, one for each column, "
            f"got {list(points)}"
        )
    known = int(len(steps) if at is None else np.searchsorted(steps, at, side="right"))
    if known == 0:
        raise ValueError(f"at: wanted at least {steps[0]}, the first point recorded, got {at}")
    return curve, known


def _sum(curve: _Floats) -> _Floats:
    # One after another: the sum of a row never depends on how many rows there are.
    return _known(np.add.accumulate(curve, axis=-1)[..., -1])


def _known(values: _Floats) -> _Floats:
    return np.where(np.isfinite(values), values, math.nan)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: wanted at least 1, got {value}")
    return value
