# SPDX-License-Identifier: MIT
"""TensorBoard scalars of a report: what they are, and what is said where the package is missing."""

import importlib.util
import math
import sys

import numpy as np
import pytest
from tiny_runs import cli, edit_config, printed, refusal, tiny_run

from nasfast.report import Scalar, write_scalars
from nasfast.runs import Run
from nasfast.spaces import NB201

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="the package tensorboard is not installed",
)


def read(folder):
    """{tag: {step: value}} of all event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}


@needs_tensorboard
@pytest.mark.filterwarnings("default")  # the package's own
def test_a_file_takes_the_place_of_the_one_before(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert write_scalars([Scalar("a/b", 0, 0.5), Scalar("a/b", 3, 0.25)], folder) == 2
    (folder / "notes.txt").touch()
    assert read(folder) == {"a/b": {0: 0.5, 3: 0.25}}
    write_scalars([Scalar("a/c", 1, 1.0)], folder)
    assert read(folder) == {"a/c": {1: 1.0}}
    assert (folder / "notes.txt").exists() and len(list(folder.iterdir())) == 2


@needs_tensorboard
@pytest.mark.filterwarnings("default")
def test_scalars_of_a_run(tmp_path):
    run, folder = tiny_run(tmp_path / "run"), tmp_path / "scalars"
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "truth.npz", toy=rng.random(NB201.num_archs))
    edit_config(run, truth__table=str(tmp_path / "truth.npz"), truth__column="toy",
                finetune__archs=6, finetune__steps=2, finetune__batch_size=16)  # fmt: skip
    assert cli("rank", run).exit_code == 0
    assert cli("finetune", run).exit_code == 0
    values = printed(cli("report", run, "--tensorboard", folder, "--json"))
    assert values["tensorboard"] == str(folder)
    found = read(folder)
    for record in Run.open(run).records():
        assert found["training/loss"][record.epoch] == pytest.approx(record.loss)
        assert found["training/accuracy"][record.epoch] == pytest.approx(record.accuracy)
    tau = values["correlations"][0]["kendall_tau_b"]
    assert found["kendall_tau_b/Supernet_loss_negated"][0] == pytest.approx(tau)
    assert set(found["finetuning_spearman/SoTL"]) == {1, 2}
    metric = next(m for m in values["metrics"] if m["name"] == "top_10_mean")
    assert found["top_10_mean/Supernet_loss"][0] == pytest.approx(metric["value"])
    assert all(math.isfinite(v) for curve in found.values() for v in curve.values())
    text = cli("report", run, "--tensorboard", folder).stdout.splitlines()
    assert text[-1] == f"scalars: {folder}"


def test_missing_package(tmp_path, monkeypatch):
    run = tiny_run(tmp_path / "run", ranked=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = refusal(cli("report", run, "--tensorboard", tmp_path / "scalars"), code=1)
    assert message.startswith("scalars need the package tensorboard (")
    assert message.endswith("pip install 'nasfast[tensorboard]'")
    assert not (run / "report.html").exists() and not (tmp_path / "scalars").exists()
