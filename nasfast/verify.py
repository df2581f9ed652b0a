# SPDX-License-Identifier: MIT
"""Compute a random sample of a run's scores again, in float64 by the definition, and say so."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nasfast.backends import Precision
from nasfast.files import read_json, write_text
from nasfast.image_bits import ImageBits
from nasfast.lower import Merge
from nasfast.runs import Run, RunError
from nasfast.scoring import ScoringJob, as_scored
from nasfast.spaces import Architecture
from nasfast.store import ScoreStore, StoreError
from nasfast.tf32 import Tf32Convolutions

_Floats = npt.NDArray[np.float64]
_SUPERNET = "supernet"
# A score may be as far from float64 as this many times what PyTorch in the same precision is, or as
# far as this share of the larger of the loss and 1. Operands in tf32 have two bits more than in
# bf16, so its share is a quarter of that.
_TIMES = 4.0
_SHARE: dict[Precision, float] = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 2e-2, "fp64": 1e-9}
# As many images of one architecture may be classified differently as this many times those of
# PyTorch, and this share of all and one more.
_IMAGES = 0.01
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


@dataclass(frozen=True)
class Verification:
    """What computing scores again came to.

    Attributes:
        archs: Official indices of the sample, ascending.
        scored: Architectures that had a score.
        seed: Of the sample.
        precision: Of the scores.
        largest_error: Largest difference of a mean loss from that in float64, relative to the
            larger of that loss and 1.
        largest_error_pytorch: The same of PyTorch in the precision of the scores.
        images_differing: Images, summed over the sample, that are classified differently.
        images: All of these.
        failed: Official indices whose loss or correctness is farther off than allowed.
        digest: Name of all scores of the run as they were.
        time: When.
        elapsed_s: How long it took.
    """

    archs: tuple[int, ...]
    scored: int
    seed: int
    precision: Precision
    largest_error: float
    largest_error_pytorch: float
    images_differing: int
    images: int
    failed: tuple[int, ...]
    digest: str
    time: str
    elapsed_s: float

    @property
    def passed(self) -> bool:
        """Whether every score of the sample is as near as it should be."""
        return not self.failed

    def __str__(self) -> str:
        """Say it in one sentence."""
        verdict = "all within the rule" if self.passed else f"{len(self.failed)} too far off"
        return (
            f"{len(self.archs)} of {self.scored:,} scores computed again in float64 by the "
            f"definition (seed {self.seed}, {self.time[:10]}): {verdict}; largest error of a loss "
            f"{self.largest_error:.1e}, PyTorch's own in {self.precision} "
            f"{self.largest_error_pytorch:.1e}; {self.images_differing} of {self.images:,} images "
            f"classified differently"
        )


def verify_run(
    run_: Run, *, archs: int = 20, seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verification:  # fmt: skip
    """Check the scores of a run: all against their bits, a sample against float64.

    The sample is computed by the definition, plain PyTorch, which shares no code with the engine,
    and with all edges but dead ones as they are written: merging is checked too. A loss may differ
    by four times what PyTorch in the precision of the scores is off on the same architecture (for
    bf16: its autocast; for tf32: its convolutions on operands rounded alike), or by 1e-5 (tf32:
    5e-3, bf16: 2e-2) of the larger of the loss and 1; the images that are classified differently
    may be four times PyTorch's, and 1 % of all and one more.
    The result is kept in ``verification.json``, and the report shows it as long as it is about the
    scores that are there.

    Args:
        run_: A ranked run.
        archs: Architectures of the sample, all if there are fewer.
        seed: Of the sample.
        on_progress: Called with architectures done and all, each counted once in float64 and once
            in the precision of the scores.

    Raises:
        ValueError: If ``archs`` is below 1.
        RunError: If nothing is scored yet, or another process works on the run.
        StoreError: If scores are damaged, of other weights or settings, or differ from their bits.
        OSError: If a file cannot be read or written.
    """
    if archs < 1:
        raise ValueError(f"archs: wanted at least 1, got {archs}")
    began = time.perf_counter()
    run_ = as_scored(run_)
    if not run_.score_file.is_file():
        raise RunError(f"{run_.folder}: nothing scored yet; run 'nasfast rank' first")
    job = ScoringJob.of(run_, "reference")
    with run_.locked("verify"), ScoreStore(run_.score_file, job.settings()) as store:
        scored, loss, accuracy = store.read(_SUPERNET)
    if len(scored) == 0:
        raise RunError(f"{run_.folder}: nothing scored yet; run 'nasfast rank' first")
    chosen = _sample(len(scored), archs, seed)
    stored = _checked_bits(run_, job, scored, accuracy, chosen)
    sample = [job.supernet.config.spec.from_index(int(index)) for index in scored[chosen]]
    precision = run_.config.rank.precision
    steps = _Steps(2 * len(sample), on_progress)
    truth, correct = _by_definition(job, sample, "fp64", steps)
    own, own_correct = _by_definition(job, sample, precision, steps)
    differing = (stored != correct).sum(axis=1)
    allowed = _TIMES * (own_correct != correct).sum(axis=1) + _IMAGES * job.images + 1
    failed = _too_far(loss[chosen], truth, own, precision) | (differing > allowed)
    result = Verification(
        archs=tuple(scored[chosen].tolist()),
        scored=len(scored),
        seed=seed,
        precision=precision,
        largest_error=_largest(loss[chosen], truth),
        largest_error_pytorch=_largest(own, truth),
        images_differing=int(differing.sum()),
        images=stored.size,
        failed=tuple(scored[chosen][failed].tolist()),
        digest=scores_digest(scored, loss, accuracy),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        elapsed_s=time.perf_counter() - began,
    )
    write_text(_file(run_), json.dumps(asdict(result), indent=1) + "\n")
    return result


def verification_of(run_: Run, digest: str) -> Verification | None:
    """Return what ``nasfast verify`` last found, None if it was not about these scores.

    Raises:
        RunError: If the file is damaged.
    """
    if not _file(run_).is_file():
        return None
    try:
        values: dict[str, Any] = read_json(_file(run_))
        values |= {key: tuple(values[key]) for key in ("archs", "failed")}
        found = Verification(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{_file(run_)}: damaged ({error}); it may be deleted") from None
    return found if found.digest == digest else None


def scores_digest(archs: npt.NDArray[np.int64], loss: _Floats, accuracy: _Floats) -> str:
    """Return a name for scores, by which others are told from them."""
    digest = hashlib.sha256()
    for array, kind in ((archs, "<i8"), (loss, "<f8"), (accuracy, "<f8")):
        digest.update(array.astype(kind).tobytes())
    return f"sha256 {digest.hexdigest()[:16]}"


def _file(run_: Run) -> Path:
    return run_.folder / "verification.json"


def _sample(scored: int, archs: int, seed: int) -> npt.NDArray[np.intp]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(scored, min(archs, scored), replace=False))


def _checked_bits(
    run_: Run, job: ScoringJob, scored: npt.NDArray[np.int64], accuracy: _Floats,
    chosen: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """Return the bits of those chosen, ``[chosen, images]``; all must agree with the scores."""
    with ImageBits(run_.bits_file, job.supernet.config.spec.num_archs, job.images) as bits:
        packed = bits.read_packed(scored.tolist())
    counts = _ONES[packed].sum(axis=1, dtype=np.int64)
    differ = scored[counts / job.images != accuracy]
    if len(differ):
        raise StoreError(
            f"{run_.score_file}: accuracy of {len(differ)} architectures, such as {differ[0]}, is "
            f"not that of {run_.bits_file.name}; delete both to score anew"
        )
    return np.unpackbits(packed[chosen], axis=1, count=job.images).view(np.bool_)


class _Steps:
    """Counts architectures done."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress
        self.add(0)

    def add(self, count: int) -> None:
        """Count some more."""
        self.done += count
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)


def _by_definition(
    job: ScoringJob, sample: Sequence[Architecture], precision: Precision, steps: _Steps
) -> tuple[_Floats, npt.NDArray[np.bool_]]:
    """Score by plain PyTorch; bf16 is its autocast, tf32 fp32 with operands rounded."""
    own: Precision = "fp64" if precision == "fp64" else "fp32"
    loss = np.empty(len(sample))
    correct = np.empty((len(sample), job.images), dtype=np.bool_)
    bn = job.run.config.rank.bn
    for k, arch in enumerate(sample):  # one at a time: the progress is seen
        with _rounding_as(precision):
            for chunk in job.chunks(job.supernet, [arch], bn, own, merge=Merge.DEAD):
                loss[k], correct[k] = chunk.scores.mean_loss[0], chunk.scores.correct[0]
        steps.add(1)
    return loss, correct


def _rounding_as(precision: Precision) -> AbstractContextManager[object]:
    if precision == "tf32":
        return Tf32Convolutions()
    if precision == "bf16":
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _scale(truth: _Floats) -> Any:
    return np.maximum(1.0, np.abs(truth))


def _largest(loss: _Floats, truth: _Floats) -> float:
    """Largest relative error; infinite where one of two is not finite."""
    with np.errstate(invalid="ignore"):
        error = np.abs(loss - truth) / _scale(truth)
    same = (loss == truth) | (np.isnan(loss) & np.isnan(truth))
    return float(np.where(same, 0.0, np.where(np.isnan(error), np.inf, error)).max())


def _too_far(
    loss: _Floats, truth: _Floats, own: _Floats, precision: Precision
) -> npt.NDArray[np.bool_]:
    """Return which losses are farther from the truth than allowed."""
    with np.errstate(invalid="ignore"):
        allowed = np.maximum(_TIMES * np.abs(own - truth), _SHARE[precision] * _scale(truth))
        near = np.abs(loss - truth) <= allowed
    # What leaves the finite numbers may do so elsewhere in another precision.
    both = ~np.isfinite(loss) & ~(np.isfinite(truth) & np.isfinite(own))
    return ~(near | both | (np.isnan(loss) & np.isnan(own)))
