"""``nasfast verify``: right scores pass, wrong ones are found, the report says which it were."""

import json
import sqlite3
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import cli, edit_config, printed, refusal, scores, tiny_run

from nasfast import cuda_device
from nasfast.backends import Reference
from nasfast.image_bits import ImageBits
from nasfast.runs import Run
from nasfast.spaces import NB201
from nasfast.tf32 import Tf32Convolutions, rounded
from nasfast.verify import verify_run


@pytest.fixture
def run(tmp_path):
    return tiny_run(tmp_path / "run", ranked=True)


def change(folder, column, value, arch):
    with sqlite3.connect(folder / "scores.sqlite") as db:
        db.execute(
            f"UPDATE scores SET {column} = ? WHERE weights = 'supernet' AND arch = ?", (value, arch)
        )


def test_right_scores_pass(run):
    found = verify_run(Run.open(run), archs=100)
    assert found.passed
    assert list(found.archs) == scores(run)[0]
    assert found.scored == 12
    assert found.largest_error < 1e-5
    assert (found.images_differing, found.images) == (0, 12 * 48)


def test_bf16(tmp_path):
    folder = tiny_run(tmp_path / "run")
    assert cli("rank", folder, "--precision", "bf16", "--json").exit_code == 0
    found = verify_run(Run.open(folder), archs=12)
    assert found.passed
    assert found.precision == "bf16"
    assert 1e-5 < found.largest_error < 0.2
    assert 1e-5 < found.largest_error_pytorch < 0.2


class InPlaceOfACard(Reference):
    """Scores in tf32 or fp32 by plain PyTorch, a little beside it as a card would."""

    def __init__(self, cut, supernets, streams, modes, precision, threads, pooled, device, memory):
        assert precision in ("tf32", "fp32") and device == "cuda"
        self.rounds = precision == "tf32"
        super().__init__(cut, supernets, streams, modes, torch.float32, pooled)

    def __call__(self, chunk):
        with Tf32Convolutions() if self.rounds else nullcontext():
            loss, correct = super().__call__(chunk)
        return loss * (1 + 1e-4), correct


def test_tf32(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(cuda_device, "require", lambda: None)
        patch.setattr(cuda_device, "name", lambda: "Card 1")
        patch.setattr(sys.modules["nasfast.evaluate"], "Engine", InPlaceOfACard)
        edit_config(folder, rank__precision="tf32", rank__backend="cuda")
        ranked = cli("rank", folder, "--json")
    sample = printed(ranked)["against_fp32"]  # of all 12 architectures
    assert (sample["precision"], sample["n"]) == ("tf32", 12)
    assert 0.9 < sample["kendall_tau_b"] <= 1
    found = verify_run(Run.open(folder), archs=12)
    assert found.passed
    assert found.precision == "tf32"
    assert 1e-5 < found.largest_error < 5e-3
    assert 1e-5 < found.largest_error_pytorch < 5e-3
    archs, loss, _ = scores(folder)
    change(folder, "loss", loss[5] * 1.05, archs[5])
    assert verify_run(Run.open(folder), archs=12).failed == (archs[5],)


def test_tf32_rounds_to_the_nearest_of_ten_bits():
    numbers = [1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 2**-11, 2049, 2050, 0.0, -0.0, 2**-130]
    wanted = [1 + 2**-10, 1, -1 - 2**-10, 2050, 2050, 0.0, -0.0, 2**-130]
    found = rounded(torch.tensor(numbers))
    assert torch.equal(found, torch.tensor(wanted))
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 3.4028235e38])
    assert str(rounded(special).tolist()) == "[inf, -inf, nan, inf]"
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    with Tf32Convolutions():
        own = F.conv2d(x, weight, padding=1)
    assert torch.equal(own, F.conv2d(rounded(x), rounded(weight), padding=1))
    assert not torch.equal(own, F.conv2d(x, weight, padding=1))


def test_the_sample_is_drawn_by_the_seed(run):
    def drawn(seed):
        return verify_run(Run.open(run), archs=3, seed=seed).archs

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) == 3


@pytest.mark.parametrize("factor", [1 + 1e-4, 2.0, np.nan, np.inf])
def test_a_wrong_loss_is_found(run, factor):
    archs, loss, _ = scores(run)
    wrong = loss[5] * factor
    change(run, "loss", None if np.isnan(wrong) else wrong, archs[5])
    found = verify_run(Run.open(run), archs=12)
    assert found.failed == (archs[5],)
    assert not found.passed
    result = cli("verify", run, "--archs", "12")
    assert result.exit_code == 1
    assert "1 too far off" in result.stdout


def test_an_accuracy_that_is_not_that_of_the_bits_is_found(run):
    """All are looked at, not only the sample."""
    archs, _, accuracy = scores(run)
    change(run, "correct", round(accuracy[2] * 48) + 1, archs[2])
    message = refusal(cli("verify", run, "--archs", "1"))
    assert f"accuracy of 1 architectures, such as {archs[2]}, is not that of scores.bits" in message


def test_the_report_is_signed(run):
    assert "computed again in float64" not in (cli("report", run) and report(run))
    found = printed(cli("verify", run, "--archs", "4", "--json"))
    assert found["passed"] is True
    assert len(found["archs"]) == 4
    assert cli("report", run).exit_code == 0
    assert "4 of 12 scores computed again in float64 by the definition (seed 0" in report(run)
    # Other scores: no longer.
    archs, loss, _ = scores(run)
    change(run, "loss", loss[0] + 1e-9, archs[0])
    assert cli("report", run).exit_code == 0
    assert "computed again in float64 by the definition" not in report(run)


def report(run):
    return (run / "report.html").read_text()


def test_bad_input(run, tmp_path):
    assert refusal(cli("verify", run, "--archs", "0")).startswith("archs: wanted at least 1, got 0")
    assert "nothing scored yet" in refusal(cli("verify", tiny_run(tmp_path / "other")))
    assert "not a run folder" in refusal(cli("verify", tmp_path))
    assert printed(cli("verify", run, "--archs", "1", "--json"))["passed"] is True
    file = run / "verification.json"
    file.write_text(json.dumps({"archs": [1]}))
    assert "verification.json: damaged" in refusal(cli("report", run))
    file.unlink()
    edit_config(run, rank__batch_size=12)
    assert "made under other settings" in refusal(cli("verify", run))


def test_wrong_correctness_is_found(run):
    """Bits and counts agree with each other, and not with what the weights say."""
    archs, _, _ = scores(run)
    with ImageBits(run / "scores.bits", NB201.num_archs, 48) as bits:
        wrong = ~bits.read([archs[4]])
        bits.write([archs[4]], wrong)
    change(run, "correct", int(wrong.sum()), archs[4])
    assert verify_run(Run.open(run), archs=12).failed == (archs[4],)
