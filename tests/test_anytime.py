"""Stopping early: by hand where an answer is certain, by simulation where it is a probability."""

import math

import numpy as np
import pytest

from nasfast.anytime import FIRST_LOOK, Goal, contenders, looks, tau_interval
from nasfast.metrics import kendall_tau, rank_order

ALLOWED = 0.1  # probability of an error that the simulations allow


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("top-10", Goal("top", k=10)),
        (" top-1 at 99% ", Goal("top", k=1, confidence=0.99)),
        ("tau ±0.01", Goal("tau", half_width=0.01)),
        ("tau+-.05 at 90 %", Goal("tau", half_width=0.05, confidence=0.9)),
        ("tau +/-0.2", Goal("tau", half_width=0.2)),
    ],
)
def test_goals(text, goal):
    assert str(Goal.parse(text)) == str(goal)
    assert str(Goal.parse(str(goal))) == str(goal)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "wanted 'tau"),
        ("top10", "wanted 'tau"),
        ("top-0", "k: wanted at least 1, got 0"),
        ("top-10 at 0%", "confidence: wanted between 0 and 1"),
        ("top-10 at 100%", "confidence: wanted between 0 and 1, got 1"),
        ("tau ±0.0", "half_width: wanted between 0 and 1, got 0"),
        ("tau ±1.5", "wanted 'tau"),
        ("tau ±nan", "wanted 'tau"),
        ("top-5 at 9.9.9%", "could not convert"),
    ],
)
def test_no_goals(text, why):
    with pytest.raises(ValueError, match=r"^until: ") as caught:
        Goal.parse(text)
    assert why in str(caught.value)
    assert str(caught.value).endswith(f"got {text!r}")


def test_looks():
    assert looks(1) == (1,)
    assert looks(FIRST_LOOK) == (FIRST_LOOK,)
    for minibatches in range(1, 300):
        found = looks(minibatches)
        assert found[-1] == minibatches
        assert list(found) == sorted(set(found))
    assert len(looks(156)) <= 12


# The top k.


def test_certain_when_all_was_seen():
    losses = np.array([[3.0, 1.0], [1.0, 1.0], [2.0, 2.0], [0.0, 9.0]])
    assert contenders(losses, 2, 2, 1e-3).tolist() == [True, True, False, False]


def test_by_hand():
    """Differences to the leader are 2, 4, 6 (mean 4, deviation 2): t = 4 / (2 sqrt(f / 3))."""
    losses = np.array([[1.0, 1.0, 1.0], [3.0, 5.0, 7.0]])
    for minibatches, correction in ((10**9, 1.0), (4, 0.25)):
        t = 4.0 / (2.0 * math.sqrt(correction / 3))
        error = 0.5 * (1 - t / math.sqrt(2 + t * t))  # Student's t of two degrees
        below = contenders(losses, minibatches, 1, error * 0.99)
        above = contenders(losses, minibatches, 1, error * 1.01)
        assert below.tolist() == [True, True]
        assert above.tolist() == [True, False]


def test_one_minibatch_tells_nothing():
    assert contenders(np.array([[1.0], [9.0]]), 5, 1, 0.4).all()


def test_equal_functions_are_told_apart_by_their_row():
    losses = np.array([[9.0, 9.5, 9.0], [1.0, 2.0, 1.5], [1.0, 2.0, 1.5]])
    assert contenders(losses, 100, 1, 0.2).tolist() == [False, True, False]
    assert contenders(losses[::-1].copy(), 100, 1, 0.2).tolist() == [True, False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_losses_are_out(bad):
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(6, 5))
    losses[2, 1] = bad
    kept = contenders(losses, 50, 2, 1e-6)
    assert kept.tolist() == [True, True, False, True, True, True]
    losses[:5, 1] = bad  # one is left, two are wanted
    assert contenders(losses, 50, 2, 1e-6).all()


@pytest.mark.parametrize(
    ("minibatches", "k", "why"), [(5, 4, "k: wanted at most the 3"), (1, 1, "minibatches: wanted")]
)
def test_wrong_numbers(minibatches, k, why):
    with pytest.raises(ValueError, match=why):
        contenders(np.zeros((3, 2)), minibatches, k, 0.1)


def simulated(rng, archs, minibatches, noise):
    """Qualities, and losses with what minibatches have in common and heavy tails."""
    quality = rng.normal(size=archs)
    common = rng.normal(size=minibatches)
    own = noise * rng.standard_t(5, size=(archs, minibatches))
    return quality, 0.3 * quality[:, None] + common + own


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_coverage_of_the_top(noise):
    """The members are right at least as often as was asked for, and work is spared."""
    rng = np.random.default_rng(1)
    archs, total, k, trials = 200, 150, 5, 100
    right, spent = 0, 0
    for _ in range(trials):
        _, losses = simulated(rng, archs, total, noise)
        alive, before = np.arange(archs), 0
        for seen in looks(total):
            spent += len(alive) * (seen - before)
            error = ALLOWED / len(looks(total)) / (k * archs)
            alive = alive[contenders(losses[alive, :seen], total, k, error)]
            before = seen
            if len(alive) == k:
                break
        right += set(alive) == set(rank_order(-losses.mean(axis=1))[:k])
    assert right >= (1 - ALLOWED) * trials
    assert spent < 0.8 * archs * total * trials


# Tau.


def test_tau_is_a_point_when_all_was_seen():
    rng = np.random.default_rng(0)
    quality, losses = simulated(rng, 50, 20, 1.0)
    found = tau_interval(losses, -quality, 20, 0.05)
    assert found.value == found.low == found.high
    assert found.value == kendall_tau(-losses.mean(axis=1), -quality).value


def test_tau_of_nothing():
    assert math.isnan(tau_interval(np.ones((9, 4)), np.arange(9.0), 20, 0.05).value)
    one = tau_interval(np.arange(9.0)[:, None], np.arange(9.0), 20, 0.05)
    assert (one.value, one.low, one.high) == (-1.0, -1.0, 1.0)


def test_tau_without_noise_is_certain():
    losses = np.tile(np.arange(9.0)[:, None], 10)
    found = tau_interval(losses, -np.arange(9.0), 100, 0.05)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_same_numbers_give_the_same_interval():
    rng = np.random.default_rng(0)
    quality, losses = simulated(rng, 40, 20, 1.0)
    assert tau_interval(losses, quality, 99, 0.1, seed=3) == tau_interval(
        losses, quality, 99, 0.1, seed=3
    )


@pytest.mark.parametrize("own", [0.0, 0.2, 0.7])  # noise of the truth
@pytest.mark.parametrize(("noise", "width"), [(0.3, 0.05), (1.0, 0.15), (2.0, 0.15)])
def test_coverage_of_tau(noise, width, own):
    """At the first look whose interval is narrow enough: nominal 90 %, found by 40 trials."""
    rng = np.random.default_rng(2)
    archs, total, trials = 120, 150, 40
    held = stopped_early = 0
    for _ in range(trials):
        quality, losses = simulated(rng, archs, total, noise)
        truth = -quality + own * rng.normal(size=archs)
        everything = kendall_tau(-losses.mean(axis=1), truth).value
        for seen in looks(total):
            found = tau_interval(losses[:, :seen], truth, total, ALLOWED / len(looks(total)))
            if found.half_width <= width:
                break
        held += found.low <= everything <= found.high
        stopped_early += seen < total / 2
    assert held >= 34
    assert stopped_early >= (8 if noise < 2 else 0)
