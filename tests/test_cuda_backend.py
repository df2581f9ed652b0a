# SPDX-License-Identifier: MIT
"""Who scores where there is a card and where there is none; no card is needed here."""

import logging
import sys
import warnings

import numpy as np
import pytest
import torch
from tiny_runs import cli, edit_config, printed, refusal, tiny_run

from nasfast import (
    BatchNorm,
    Supernet,
    SupernetConfig,
    compile_archs,
    cuda_device,
    evaluate,
    ops,
)
from nasfast.backends import Engine, check_score_backend, choose_score_backend
from nasfast.data import Batch
from nasfast.plan import plan
from nasfast.runs import Run
from nasfast.scoring import ScoringJob, score_settings
from nasfast.spaces import NB201

BATCH_NORM = BatchNorm.parse("batch")
SUPERNET = Supernet.create(SupernetConfig(channels=3, cells_per_stage=1), seed=0)
ARCHS = NB201.sample(9, seed=1)
BATCHES = [Batch(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(2)]
NO_KERNELS = "this build of nasfast has no CUDA kernels (build it with WITH_CUDA=1)"


@pytest.fixture(autouse=True)
def said_anew():
    cuda_device.say_card.cache_clear()
    cuda_device.say_cpu.cache_clear()


def pretend(monkeypatch, *, kernels=True, card=True, capability=(9, 0)):
    """Let torch and the build say that they have a card and kernels, or not."""
    monkeypatch.setattr(cuda_device, "has_kernels", lambda: kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card 1")


@pytest.mark.parametrize(
    ("has", "chosen", "said"),
    [
        (dict(), "cuda", "backend: cuda (Card 1)"),
        (dict(capability=(8, 0)), "cuda", "backend: cuda (Card 1)"),
        (dict(kernels=False), "cpu", None),
        (dict(card=False), "cpu", "backend: cpu, as torch sees no CUDA device"),
        (dict(capability=(7, 5)), "cpu",
         "backend: cpu, as Card 1 has compute capability 7.5, the kernels need 8.0 or later"),
    ],
    ids=str,
)  # fmt: skip
def test_auto_takes_a_card_that_can_be_used(monkeypatch, caplog, has, chosen, said):
    pretend(monkeypatch, **has)
    with caplog.at_level(logging.INFO, "nasfast"):
        for _ in range(2):
            assert choose_score_backend("auto", "fp32", BATCH_NORM) == chosen
    assert caplog.messages == ([] if said is None else [said])  # once


def test_auto_where_the_card_cannot_serve_the_call(monkeypatch, caplog):
    pretend(monkeypatch)
    assert choose_score_backend("auto", "fp64", BATCH_NORM) == "reference"
    assert not caplog.messages
    assert choose_score_backend("auto", "bf16", BatchNorm.parse("recalibrate/batch")) == "cpu"
    assert caplog.messages == ["backend: cpu, as 'cuda' does not recalibrate"]


def test_a_backend_that_is_named_is_taken_wherever_it_is(monkeypatch):
    """Scores from a card are read on machines that have none."""
    pretend(monkeypatch, kernels=False, card=False)
    for name in ("cpu", "cuda", "reference"):
        assert choose_score_backend(name, "fp32", BATCH_NORM) == name


# tf32, which a card alone has.

WANTS_CARD = "precision: 'tf32' wants a CUDA device, "


def test_auto_takes_a_card_for_tf32(monkeypatch, caplog):
    pretend(monkeypatch)
    with caplog.at_level(logging.INFO, "nasfast"):
        assert choose_score_backend("auto", "tf32", BATCH_NORM) == "cuda"
    assert caplog.messages == ["backend: cuda (Card 1)"]
    assert choose_score_backend("cuda", "tf32", BATCH_NORM) == "cuda"


@pytest.mark.parametrize(
    ("has", "missing"),
    [
        (dict(kernels=False), NO_KERNELS),
        (dict(card=False), "torch sees no CUDA device"),
        (dict(capability=(7, 0)), "Card 1 has compute capability 7.0, the kernels need 8.0"),
    ],
)
def test_auto_has_nothing_else_for_tf32(monkeypatch, caplog, has, missing):
    pretend(monkeypatch, **has)
    with pytest.raises(ValueError) as refused:
        evaluate(SUPERNET, ARCHS, BATCHES, precision="tf32")
    assert str(refused.value).startswith(f"{WANTS_CARD}but {missing}")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backend="cpu"), "precision: backend 'cpu' has fp32, bf16, got 'tf32'"),
        (dict(backend="reference"), "precision: backend 'reference' has fp32, fp64, got 'tf32'"),
        (dict(bn="batch/recalibrate"), f"{WANTS_CARD}which does not recalibrate, got bn='batch/"),
    ],
)
def test_who_does_not_have_tf32(monkeypatch, options, message):
    pretend(monkeypatch)
    with pytest.raises(ValueError) as refused:
        evaluate(SUPERNET, ARCHS, BATCHES, precision="tf32", **options)
    assert str(refused.value).startswith(message)


def test_the_operator_on_the_cpu_does_not_have_tf32():
    cut = plan(compile_archs(SUPERNET, ARCHS), batch=4, height=8, width=8)
    images, labels = BATCHES[0].images, BATCHES[0].labels
    call = dict(sizes=[4], chunk=0, lanes=cut.program.num_lanes)
    tensors = (torch.from_numpy(cut.table()), SUPERNET.arena[None], images, labels)
    ops.run_program(*tensors, **call)
    with pytest.raises(RuntimeError, match="run_program: precision: wanted fp32 or bf16, got tf32"):
        ops.run_program(*tensors, precision="tf32", **call)


def test_tf32_on_the_command_line(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run")
    pretend(monkeypatch, card=False)
    for command in ("rank", "finetune"):
        message = refusal(cli(command, folder, "--precision", "tf32"))
        assert message == f"{WANTS_CARD}but torch sees no CUDA device"
        message = refusal(cli(command, folder, "--precision", "tf32", "--backend", "cpu"))
        assert message.startswith(f"option: {command}.precision:" if command == "rank" else "opt")
        assert "'tf32'" in message and "fp32, bf16" in message
    assert not (folder / "scores.sqlite").is_file()
    assert not (folder / "finetune.sqlite").is_file()


@pytest.mark.parametrize(
    ("has", "missing"),
    [
        (dict(kernels=False), NO_KERNELS),
        (dict(card=False), "torch sees no CUDA device"),
        (dict(capability=(7, 0)), "Card 1 has compute capability 7.0, the kernels need 8.0"),
    ],
)
def test_what_is_missing_is_said(monkeypatch, has, missing):
    pretend(monkeypatch, **has)
    with pytest.raises(ValueError) as refused:
        evaluate(SUPERNET, ARCHS, BATCHES, backend="cuda")
    assert str(refused.value).startswith(f"backend: 'cuda' cannot be used here: {missing}")


def test_what_torch_warns_of_is_part_of_the_reason(monkeypatch):
    def is_available():
        warnings.warn("The NVIDIA driver\n is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert cuda_device.why_no_card() == ("torch sees no CUDA device (The NVIDIA driver is too old)")


def test_a_card_does_not_recalibrate():
    check_score_backend("cuda", "bf16", BATCH_NORM)
    with pytest.raises(ValueError, match="backend: 'cuda' does not recalibrate, got bn='batch/rec"):
        check_score_backend("cuda", "bf16", BatchNorm.parse("batch/recalibrate"))


class OnTheCpu(Engine):
    """An engine that is asked for a card, and computes on the CPU."""

    def __init__(self, *arguments):
        *others, device, memory = arguments
        assert (device, memory) == ("cuda", 3 * 2**20)
        super().__init__(*others, "cpu", memory)


def test_the_way_of_a_call_to_a_card(monkeypatch):
    """More lanes a chunk than on the CPU, and the budget goes along."""
    driver = sys.modules["nasfast.evaluate"]  # the package has the function under this name
    monkeypatch.setitem(driver._CHUNK_IMAGES, "cpu", 1)
    monkeypatch.setattr(driver, "_MIN_CHUNK_LANES", 2)
    calls, run_program = [], ops.run_program

    def watched(*arguments, **options):
        calls.append(options["lanes"])
        return run_program(*arguments, **options)

    monkeypatch.setattr(ops, "run_program", watched)
    expected = evaluate(SUPERNET, ARCHS, BATCHES, backend="cpu")
    assert len(calls) > 2
    calls.clear()
    pretend(monkeypatch)
    monkeypatch.setattr(driver, "Engine", OnTheCpu)
    scores = evaluate(SUPERNET, ARCHS, BATCHES, memory=3 * 2**20)
    assert calls == [scores.program.num_lanes]
    assert np.array_equal(scores.lane_loss, expected.lane_loss)


def test_a_run_remembers_what_scored_it(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run")
    pretend(monkeypatch)
    run = Run.open(folder)
    job = ScoringJob.of(run)
    assert (job.backend, job.isa, job.where) == ("cuda", "Card 1", "cuda (Card 1)")
    assert score_settings(run, job.supernet)["rank"]["backend"] == "cuda"
    pretend(monkeypatch, card=False)
    assert score_settings(run, job.supernet)["rank"]["backend"] == "cpu"


def test_a_resumed_run_keeps_its_backend(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run", ranked=True)
    pretend(monkeypatch)
    message = refusal(cli("rank", folder))
    assert "scores made under other settings" in message
    assert "rank.backend" in message and "'cpu'" in message and "'cuda'" in message
    assert cli("report", folder).exit_code == 0  # of scores that are there


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run")
    pretend(monkeypatch, kernels=False)
    for wanted in (("--backend", "cuda"), ()):
        if not wanted:
            edit_config(folder, rank__backend="cuda")
        message = refusal(cli("rank", folder, *wanted))
        assert message == f"backend: 'cuda' cannot be used here: {NO_KERNELS}"
    assert printed(cli("rank", folder, "--backend", "cpu", "--json"))


def test_the_fake_operator_takes_a_budget():
    images, labels = torch.empty(5, 3, 8, 8), torch.empty(5, dtype=torch.int64)
    arguments = (torch.empty(7, dtype=torch.int32), torch.empty(1, 9), images, labels)
    loss, correct = torch.ops.nasfast.run_program(
        *(tensor.to("meta") for tensor in arguments),
        [5], None, [], 0, 4, "fp32", "batch", "batch", 1, memory=123,
    )  # fmt: skip
    assert loss.shape == correct.shape == (4, 5)
    assert (loss.dtype, correct.dtype) == (torch.float32, torch.bool)
