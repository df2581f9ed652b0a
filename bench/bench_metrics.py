# SPDX-License-Identifier: MIT
"""Rank metrics at the sizes of NAS-Bench-101 and NAS-Bench-201, ours against scipy.

``OMP_NUM_THREADS=1 python -m pytest bench/bench_metrics.py``; on a shared machine with
``--benchmark-timer=time.process_time``, which leaves out the others (but adds up threads). Before
anything is timed the value is compared with scipy's.

Demanded: one Kendall tau of 423,624 architectures in at most 0.35 of scipy's time; 1,000 resamples
of 15,625 architectures with two threads in less than 5 s.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from environment import environment
from nasfast import metrics

pytest.importorskip("nasfast._host", reason="needs nasfast's compiled modules: make install")

NB101, NB201 = 423_624, 15_625
RESAMPLES = 1000
TOLERANCE = 1e-12  # of the exact counts only the quotient is rounded

Floats = npt.NDArray[np.float64]
Function = Callable[[Floats, Floats], float]


def columns(kind: str, n: int) -> tuple[Floats, Floats]:
    """Scores and truth with as much noise as signal: distinct, or rounded like accuracies."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    scores = truth + rng.normal(size=n)
    if kind == "distinct":
        return scores, truth
    return np.round(0.5 + 0.1 * scores, 4), np.round(0.9 + 0.03 * truth, 4)


KENDALL: dict[str, Function] = {
    "scipy": lambda x, y: float(stats.kendalltau(x, y).statistic),
    "ours": lambda x, y: metrics.kendall_tau(x, y).value,
}
SPEARMAN: dict[str, Function] = {
    "scipy": lambda x, y: float(stats.spearmanr(x, y).statistic),
    "ours": lambda x, y: metrics.spearman(x, y).value,
}


@pytest.mark.parametrize("impl", KENDALL)
@pytest.mark.parametrize("kind", ["distinct", "accuracies"])
def test_kendall_tau(benchmark, kind, impl):
    compare(benchmark, f"kendall_tau {kind} n={NB101}", KENDALL, impl, columns(kind, NB101))


@pytest.mark.parametrize("impl", SPEARMAN)
@pytest.mark.parametrize("kind", ["distinct", "accuracies"])
def test_spearman(benchmark, kind, impl):
    compare(benchmark, f"spearman {kind} n={NB101}", SPEARMAN, impl, columns(kind, NB101))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["distinct", "accuracies"])
def test_kendall_tau_bootstrap(benchmark, kind, threads):
    scores, truth = columns(kind, NB201)

    def run() -> metrics.RankCorrelation:
        return metrics.kendall_tau(scores, truth, bootstrap=RESAMPLES, threads=threads)

    assert run().value == pytest.approx(KENDALL["scipy"](scores, truth), abs=TOLERANCE)
    describe(benchmark, f"kendall_tau {kind} n={NB201} x {RESAMPLES} resamples", NB201, threads)
    result = benchmark.pedantic(run, rounds=5)
    assert result.interval is not None and result.interval[0] < result.value < result.interval[1]


def test_kendall_tau_over_images(benchmark):
    """As many bits as a space on 10,000 images has, 20 MB; a tenth of the resamples."""
    images = 10_000
    rng = np.random.default_rng(0)
    truth = rng.random(NB201)
    bits = np.stack([np.packbits(rng.random(images) < share) for share in truth])
    scores = metrics.PerImage(bits, packed_images=images)
    describe(benchmark, f"kendall_tau bits n={NB201} x {images} images", NB201, threads=1)
    benchmark.extra_info["resamples"] = RESAMPLES // 10
    result = benchmark.pedantic(
        lambda: metrics.kendall_tau(scores, truth, bootstrap=RESAMPLES // 10), rounds=1
    )
    assert result.resampled == "images"


def compare(
    benchmark, group: str, impls: dict[str, Function], impl: str, pair: tuple[Floats, Floats]
) -> None:
    """Time one of the implementations once they agree."""
    assert impls["ours"](*pair) == pytest.approx(impls["scipy"](*pair), abs=TOLERANCE)
    describe(benchmark, group, pair[0].size, threads=1)
    benchmark.pedantic(impls[impl], pair, rounds=15, warmup_rounds=2)


def describe(benchmark, group: str, n: int, threads: int) -> None:
    """Say what is timed, and where."""
    benchmark.group = group
    benchmark.extra_info |= {"archs": n, "environment": environment(threads=threads)}
