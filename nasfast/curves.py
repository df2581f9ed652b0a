# SPDX-License-Identifier: MIT
"""Which trainings there are, the curves recorded of them, and the estimators made from those."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from nasfast import estimators
from nasfast.program import Network
from nasfast.spaces.spec import IntArray

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trainings:
    """Which networks are trained, each from which weights, on which data, at which rate.

    Attributes:
        archs: Architectures, or for each network a sequence of one architecture a search cell.
        lr: Learning rate of each, float64 ``[trainings]``.
        weight_set: Which supernet each starts from, int32 ``[trainings]``.
        data_order: Which stream of minibatches each sees, int32 ``[trainings]``.

    Raises:
        ValueError: If there are none, lengths differ, or a learning rate is not above 0.
    """

    archs: Sequence[Network]
    lr: _Floats
    weight_set: IntArray
    data_order: IntArray

    def __post_init__(self) -> None:
        """Check every field."""
        _check_archs(self.archs)
        for name in ("lr", "weight_set", "data_order"):
            shape = np.shape(getattr(self, name))
            if shape != (len(self.archs),):
                raise ValueError(
                    f"{name}: wanted one for each of {len(self.archs)} trainings, "
                    f"got shape {list(shape)}"
                )
        _check_rates(self.lr)

    @classmethod
    def grid(
        cls,
        archs: Sequence[Network],
        *,
        lr: float | Sequence[float],
        weight_sets: int = 1,
        data_orders: int = 1,
    ) -> Trainings:
        """Train every architecture in every combination.

        Results reshape to ``[weight_sets, rates, data_orders, archs]``.

        Args:
            archs: Architectures.
            lr: Learning rate, or several.
            weight_sets: Number of supernets.
            data_orders: Number of streams.
        """
        rates = np.atleast_1d(np.asarray(lr, dtype=np.float64))
        if rates.ndim != 1 or rates.size == 0:
            raise ValueError(f"lr: wanted a learning rate or a list of them, got {lr!r}")
        _check_rates(rates)
        _check_archs(archs)
        shape = (weight_sets, len(rates), data_orders, len(archs))
        sets, at, orders, _ = (index.reshape(-1) for index in np.indices(shape, dtype=np.int32))
        count = math.prod(shape[:3])
        return cls(list(archs) * count, rates[at], sets, orders)


def _check_archs(archs: Sequence[Network]) -> None:
    if not isinstance(archs, Sequence) or isinstance(archs, str):
        raise ValueError(f"archs: wanted a sequence of architectures, got {type(archs).__name__}")
    if len(archs) == 0:
        raise ValueError("archs: wanted at least one architecture, got none")


def _check_rates(rates: _Floats) -> None:
    wrong = ~(np.isfinite(rates) & (rates > 0))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"lr[{first}]: wanted a finite number above 0, got {rates[first]}")


@dataclass(frozen=True, eq=False)
class Curves:
    """What was recorded of trainings; every row is one.

    From the step at which a training diverges its values are NaN, but for the loss of that step,
    which is recorded as it came.

    Attributes:
        loss: Training loss of each minibatch before its step, float64 ``[trainings, steps]``.
        accuracy: Share of the minibatch classified correctly before the step, likewise.
        gradient_l1: Sum of ``|gradient|`` over the weights in use, before clipping and weight
            decay, likewise.
        gradient_sum_l1: Sum of ``|sum of the gradients so far|``, likewise; NaN when gradients are
            not summed.
        mini_loss: Mean loss of the first validation minibatch, ``[trainings, mini points]``.
        mini_accuracy: Accuracy on it, likewise.
        valid_loss: Mean loss of the whole validation set, ``[trainings, points]``.
        valid_accuracy: Accuracy on it, likewise.
        diverged_at: Step with the first loss or gradient that is not finite, -1: none, int32
            ``[trainings]``.
    """

    loss: _Floats
    accuracy: _Floats
    gradient_l1: _Floats
    gradient_sum_l1: _Floats
    mini_loss: _Floats
    mini_accuracy: _Floats
    valid_loss: _Floats
    valid_accuracy: _Floats
    diverged_at: IntArray

    @classmethod
    def empty(cls, trainings: int, steps: int, mini_points: int, points: int) -> Curves:
        """Return curves of which nothing is recorded yet."""
        columns = {"mini": mini_points, "valid": points}
        return cls(
            **{
                f.name: np.full((trainings, columns.get(f.name.partition("_")[0], steps)), np.nan)
                for f in fields(Curves)
                if f.name != "diverged_at"
            },
            diverged_at=np.full(trainings, -1, dtype=np.int32),
        )

    def rows(self, index: npt.NDArray[np.integer]) -> Curves:
        """Return copies of rows."""
        return Curves(**{f.name: getattr(self, f.name)[index] for f in fields(Curves)})

    def put(self, rows: npt.NDArray[np.integer], other: Curves) -> None:
        """Set rows to those of other curves, in order."""
        for field in fields(Curves):
            getattr(self, field.name)[rows] = getattr(other, field.name)


@dataclass(frozen=True, eq=False)
class FineTuning:
    """Curves of fine-tuned architectures, and the estimators made from them.

    Every estimator is float64 ``[trainings]``, higher is better, NaN where a value that it needs
    is not finite; :mod:`nasfast.estimators` defines them.

    Attributes:
        trainings: What each row is.
        curves: What was recorded.
        mini_steps: Steps taken before each evaluation of one validation minibatch.
        valid_steps: Steps taken before each evaluation of the whole validation set.
        epoch_steps: Minibatches in each data order.
        lane_of_training: Trainings with one number are the same function of the same weights and
            were computed once, int32 ``[trainings]``.
    """

    trainings: Trainings
    curves: Curves
    mini_steps: tuple[int, ...]
    valid_steps: tuple[int, ...]
    epoch_steps: tuple[int, ...]
    lane_of_training: IntArray

    @property
    def loss(self) -> _Floats:
        """Training losses, each before its step, ``[trainings, steps]``."""
        return self.curves.loss

    @property
    def diverged_at(self) -> IntArray:
        """Step at which each training diverged, -1: not, ``[trainings]``."""
        return self.curves.diverged_at

    def sotl(self, window: int | None = None, at: int | None = None) -> _Floats:
        """Sum over the training losses of the last ``window`` steps, negated."""
        return estimators.sotl(self.loss, window=window, at=at)

    def tl_mini(self, at: int = 0) -> _Floats:
        """Training loss of one minibatch, negated."""
        return estimators.tl_mini(self.loss, at=at)

    def val_acc_mini(self, at: int = 0) -> _Floats:
        """Accuracy on one validation minibatch after ``at`` steps."""
        return estimators.val_acc(self.curves.mini_accuracy, self.mini_steps, at=at)

    def val_acc(self, at: int = 0) -> _Floats:
        """Accuracy on the whole validation set after ``at`` steps."""
        return estimators.val_acc(self.curves.valid_accuracy, self.valid_steps, at=at)

    def sovl(self, at: int | None = None) -> _Floats:
        """Sum over the losses of the validation minibatch at all points, negated."""
        return estimators.sovl(self.curves.mini_loss, self.mini_steps, at=at)

    def tse_e(
        self, epochs: int = 1, epoch_steps: int | None = None, at: int | None = None
    ) -> _Floats:  # fmt: skip
        """Sum of the mean losses of the last epochs, negated; an epoch is a data order's."""
        return self._by_epoch(
            lambda loss, steps: estimators.tse_e(loss, steps, epochs=epochs, at=at), epoch_steps
        )

    def tse_ema(
        self, mu: float = 0.9, weighting: Literal["paper", "code"] = "paper",
        epoch_steps: int | None = None, at: int | None = None,
    ) -> _Floats:  # fmt: skip
        """Exponential moving average of the mean losses of epochs, negated."""
        return self._by_epoch(
            lambda loss, steps: estimators.tse_ema(
                loss, steps, mu=mu, weighting=weighting, at=at
            ),
            epoch_steps,
        )  # fmt: skip

    def sog(self, at: int | None = None) -> _Floats:
        """L1 norm of the sum of gradients."""
        return estimators.sog(self.curves.gradient_sum_l1, at=at)

    def sogn(self, at: int | None = None) -> _Floats:
        """Sum of the L1 norms of gradients."""
        return estimators.sogn(self.curves.gradient_l1, at=at)

    def _by_epoch(
        self, estimate: Callable[[_Floats, int], _Floats], epoch_steps: int | None
    ) -> _Floats:  # fmt: skip
        if epoch_steps is not None:
            return estimate(self.loss, epoch_steps)
        result = np.empty(len(self.loss))
        for order, steps in enumerate(self.epoch_steps):
            rows = self.trainings.data_order == order
            result[rows] = estimate(self.loss[rows], steps)
        return result
