# SPDX-License-Identifier: MIT
"""Who fine-tunes where there is a card and where there is none; no card is needed here."""

import re

import numpy as np
import pytest
import torch
from test_cuda_backend import ARCHS, BATCHES, NO_KERNELS, SUPERNET, pretend
from tiny_runs import cli, edit_config, printed, refusal, tiny_run

from nasfast import BatchNorm, SupernetConfig, cuda_device, finetune, lane_backends, ops
from nasfast.curves import Curves
from nasfast.finetune_run import as_finetuned, curve_settings
from nasfast.lane_backends import choose_finetune_backend, plan_lanes
from nasfast.lane_engine import EngineLanes
from nasfast.layout import Layout
from nasfast.program import build_training
from nasfast.runs import Run

BATCH_NORM = BatchNorm.parse("batch")
CALL = dict(steps=3, lr=0.05, validation=BATCHES, mini_at=(1,))
OPTIONS = ("--archs", 3, "--steps", 2, "--batch-size", 16)


@pytest.fixture(autouse=True)
def said_anew():
    cuda_device.say_card.cache_clear()
    cuda_device.say_cpu.cache_clear()


class OnTheCpu(EngineLanes):
    """Lanes that are asked for on a card, and trained on the CPU."""

    def __init__(self, *arguments, device, **options):
        assert device == "cuda"
        super().__init__(*arguments, **options)


@pytest.mark.parametrize(
    ("call", "chosen"),
    [
        (("fp32", "batch", "edge"), "cuda"),
        (("bf16", "running/batch", "edge"), "cuda"),
        (("fp64", "batch", "edge"), "reference"),
        (("bf16", "recalibrate/batch", "edge"), "cpu"),
        (("fp32", "batch", "node"), "reference"),
        (("tf32", "batch", "edge"), "cuda"),
    ],
)
def test_auto_takes_a_card_that_can_serve_the_call(monkeypatch, call, chosen):
    precision, bn, weights_on = call
    modes = BatchNorm.parse(bn)
    pretend(monkeypatch)
    assert choose_finetune_backend("auto", precision, modes, weights_on) == chosen
    pretend(monkeypatch, card=False)
    if precision == "tf32":
        message = "precision: 'tf32' wants a CUDA device, but torch sees no CUDA device"
        with pytest.raises(ValueError, match=message):
            choose_finetune_backend("auto", precision, modes, weights_on)
        return
    there = {"cuda": "cpu"}.get(chosen, chosen)
    assert choose_finetune_backend("auto", precision, modes, weights_on) == there


def test_a_backend_that_is_named_is_taken_wherever_it_is(monkeypatch):
    pretend(monkeypatch, kernels=False, card=False)
    for name in ("cpu", "cuda", "reference"):
        assert choose_finetune_backend(name, "fp32", BATCH_NORM) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precision="fp64"), "precision: backend 'cuda' has fp32, tf32, bf16, got 'fp64'"),
        (dict(bn="recalibrate/batch"), "backend: 'cuda' does not recalibrate, got bn="),
        (dict(), f"backend: 'cuda' cannot be used here: {NO_KERNELS}"),
        (dict(precision="tf32"), f"backend: 'cuda' cannot be used here: {NO_KERNELS}"),
    ],
)
def test_what_a_card_does_not_do(monkeypatch, options, message):
    pretend(monkeypatch, kernels=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        finetune(SUPERNET, ARCHS, BATCHES, backend="cuda", **CALL, **options)


@pytest.mark.parametrize(("backend", "precision"), [("cuda", "fp32"), ("auto", "tf32")])
def test_weights_on_nodes_are_not_trained_on_a_card(backend, precision):
    with pytest.raises(ValueError, match="weights on nodes are trained by 'reference' alone"):
        choose_finetune_backend(backend, precision, BATCH_NORM, "node")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_card_alone_fine_tunes_in_tf32(backend):
    with pytest.raises(ValueError, match=f"no training in 'tf32' with backend '{backend}'"):
        finetune(SUPERNET, ARCHS, BATCHES, backend=backend, precision="tf32", **CALL)


def test_the_way_of_a_call_to_a_card(monkeypatch):
    """The same curves from larger chunks; the lanes count in the budget that goes along."""
    monkeypatch.setitem(lane_backends._CHUNK_IMAGES, "cpu", 1)
    calls, train_lanes = [], ops.train_lanes
    memory = 2**26

    def trained(table, weights, momenta, sums, *rest, **options):
        kept = sum(t.nbytes for t in (weights, momenta, sums))
        calls.append((len(weights), kept, options["memory"]))
        return train_lanes(table, weights, momenta, sums, *rest, **options)

    monkeypatch.setattr(ops, "train_lanes", trained)
    expected = finetune(SUPERNET, ARCHS, BATCHES, backend="cpu", **CALL)
    chunks = len(calls)
    calls.clear()
    pretend(monkeypatch)
    monkeypatch.setattr(lane_backends, "EngineLanes", OnTheCpu)
    ours = finetune(SUPERNET, ARCHS, BATCHES, memory=memory, **CALL)
    assert len(calls) < chunks
    assert all(given == memory - kept for _, kept, given in calls)
    for name in Curves.__dataclass_fields__:
        wanted = getattr(expected.curves, name)
        np.testing.assert_array_equal(getattr(ours.curves, name), wanted, err_msg=name)


def test_chunks_for_a_card():
    layout = Layout(SupernetConfig(channels=3, cells_per_stage=1))
    program = build_training(layout, ARCHS)
    call = dict(
        batch=4, images=8, evaluated=4, height=8, width=8, precision="fp32", copies=3, threads=5
    )
    lane = 3 * layout.arena_size * 4

    def chunks(memory):
        cut = plan_lanes(program, "cuda", memory=memory, **call)
        return [len(cut.lanes_of(k)) for k in range(cut.num_chunks)]

    assert chunks(2**30) == [program.num_lanes]
    assert chunks(lane + 1) == [1] * program.num_lanes
    assert max(chunks(2**23)) >= max(chunks(2**21)) >= 1
    with pytest.raises(ValueError, match="memory: training one lane needs"):
        chunks(lane)


def test_a_run_remembers_what_trained_it(tmp_path, monkeypatch):
    run = Run.open(tiny_run(tmp_path / "run"))
    supernet = run.supernet(run.splits())
    pretend(monkeypatch)
    assert curve_settings(run, supernet)["finetune"]["backend"] == "cuda"
    pretend(monkeypatch, card=False)
    assert curve_settings(run, supernet)["finetune"]["backend"] == "cpu"


def test_a_resumed_run_keeps_its_backend(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run")
    assert cli("finetune", folder, *OPTIONS).exit_code == 0
    assert as_finetuned(Run.open(folder)).config.finetune.backend == "cpu"
    pretend(monkeypatch)
    monkeypatch.setattr(cuda_device, "require", lambda: None)
    message = refusal(cli("finetune", folder, *OPTIONS))
    assert "finetune.backend" in message and "'cpu'" in message and "'cuda'" in message


def test_curves_from_a_card_are_read_where_there_is_none(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run", ranked=True)
    with monkeypatch.context() as patch:
        pretend(patch)
        patch.setattr(cuda_device, "require", lambda: None)
        patch.setattr(lane_backends, "EngineLanes", OnTheCpu)
        rest = printed(cli("finetune", folder, *OPTIONS, "--backend", "cuda", "--json"))
    assert rest
    assert as_finetuned(Run.open(folder)).config.finetune.backend == "cuda"
    assert cli("report", folder).exit_code == 0
    pretend(monkeypatch, kernels=False, card=False)
    message = refusal(cli("finetune", folder, *OPTIONS, "--backend", "cuda"))
    assert message == f"backend: 'cuda' cannot be used here: {NO_KERNELS}"


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch):
    folder = tiny_run(tmp_path / "run")
    pretend(monkeypatch, kernels=False)
    edit_config(folder, finetune__backend="cuda")
    message = refusal(cli("finetune", folder, *OPTIONS))
    assert message == f"backend: 'cuda' cannot be used here: {NO_KERNELS}"
    assert not (folder / "finetune.sqlite").is_file()
    assert cli("finetune", folder, *OPTIONS, "--backend", "cpu").exit_code == 0


def test_the_fake_operators_take_a_budget():
    weights, images, labels = torch.empty(4, 9), torch.empty(5, 3, 8, 8), torch.arange(5)
    table, stopped = torch.empty(7, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    lr = torch.empty(4, 2, dtype=torch.float64)
    call = [t.to("meta") for t in (table, weights, stopped, images, labels, lr)]
    table, weights, stopped, images, labels, lr = call
    loss, correct = torch.ops.nasfast.score_lanes(
        table, weights, images, labels, [5], "fp32", "batch", "batch", 1, memory=123
    )
    assert loss.shape == correct.shape == (4, 5)
    loss, correct, l1, sums = torch.ops.nasfast.train_lanes(
        table, weights, None, None, stopped, images, labels, [3, 2], lr, 0, 0, 0.0, False, 0.0,
        0.0, "fp32", 1, memory=123,
    )  # fmt: skip
    assert loss.shape == correct.shape == l1.shape == (4, 2) and sums.shape == (0, 2)
