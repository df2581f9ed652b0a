# SPDX-License-Identifier: MIT
"""Who trains a supernet where there is a card and where there is none; no card is needed here."""

import re

import pytest
import torch
from test_cuda_backend import NO_KERNELS, pretend
from tiny_runs import RUN, cli, refusal, run_config, write_toml

from nasfast import Supernet, SupernetConfig, TrainSettings, UniformSampler, joint_loss, train
from nasfast.config import ConfigError
from nasfast.data import ImageSet, TrainLoader
from nasfast.lane_backends import choose_train_backend
from nasfast.spaces import NB201
from nasfast.train import single_path
from nasfast.train.steppers import EngineStepper

SHAPE = SupernetConfig(channels=3, cells_per_stage=1, classes=4, in_channels=1)
IMAGES = ImageSet(
    torch.arange(12 * 64, dtype=torch.uint8).view(12, 1, 8, 8), torch.arange(12) % 4, "random", 4,
    mean=(0.5,), std=(0.25,),
)  # fmt: skip


class OnTheCpu(EngineStepper):
    """Steps that are asked for on a card, and taken on the CPU."""

    def __init__(self, *arguments, device, **options):
        assert device == "cuda"
        super().__init__(*arguments, **options)


def trained(**options):
    supernet = Supernet.create(SHAPE, seed=0)
    settings = TrainSettings(epochs=1, paths=2)
    records = train(supernet, TrainLoader(IMAGES, 4), UniformSampler(NB201, 0), settings, **options)
    return supernet.arena, [record.loss for record in records]


@pytest.mark.parametrize(
    ("call", "chosen"),
    [
        (("fp32", "edge"), "cuda"),
        (("bf16", "edge"), "cuda"),
        (("fp64", "edge"), "reference"),
        (("fp32", "node"), "reference"),
    ],
)
def test_auto_takes_a_card_that_can_serve_the_call(monkeypatch, call, chosen):
    pretend(monkeypatch)
    assert choose_train_backend("auto", *call) == chosen
    pretend(monkeypatch, card=False)
    assert choose_train_backend("auto", *call) == {"cuda": "cpu"}.get(chosen, chosen)


def test_a_card_alone_trains_in_tf32(monkeypatch):
    pretend(monkeypatch)
    assert choose_train_backend("auto", "tf32") == "cuda"
    with pytest.raises(ValueError, match="weights on nodes are trained by 'reference' alone"):
        choose_train_backend("auto", "tf32", "node")
    pretend(monkeypatch, card=False)
    message = "precision: 'tf32' wants a CUDA device, but torch sees no CUDA device"
    with pytest.raises(ValueError, match=message):
        trained(precision="tf32")
    with pytest.raises(ValueError, match="no training in 'tf32' with backend 'reference'"):
        trained(precision="tf32", backend="reference")


def test_the_card_that_is_chosen_takes_the_steps(monkeypatch):
    expected, losses = trained(backend="cpu")
    pretend(monkeypatch)
    monkeypatch.setattr(single_path, "EngineStepper", OnTheCpu)
    monkeypatch.setattr(single_path.cuda_device, "require", lambda: None)
    for backend in ("auto", "cuda"):
        arena, own = trained(backend=backend)
        assert torch.equal(arena, expected) and own == losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backend="cuda"), f"backend: 'cuda' cannot be used here: {NO_KERNELS}"),
        (dict(backend="gpu"), "backend: wanted one of auto, cpu, cuda, reference, got 'gpu'"),
    ],
)
def test_what_cannot_be_trained_there(monkeypatch, options, message):
    pretend(monkeypatch, kernels=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(**options)


def test_a_run_that_names_a_card_is_not_trained_without_one(monkeypatch, tmp_path):
    pretend(monkeypatch, kernels=False)
    config = write_toml(tmp_path / "tiny.toml", RUN)
    said = refusal(cli("train", config, "--run", tmp_path / "run", "--backend", "cuda"))
    assert f"backend: 'cuda' cannot be used here: {NO_KERNELS}" in said
    assert not (tmp_path / "run" / "supernet.safetensors").exists()


def test_a_config_names_it_wherever_it_is():
    options = run_config().with_options("train", backend="cuda")
    assert options.train.backend == "cuda"
    with pytest.raises(ConfigError, match=r"train\.precision: backend 'cuda' has fp32, tf32, bf16"):
        options.with_options("train", precision="fp64")


def test_the_joint_supernet_wants_tensors_there():
    supernet = Supernet.create(SHAPE, seed=0)
    images, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    weights = torch.full((6, 5), 0.2)
    with pytest.raises(ValueError, match=r"the CUDA engine does not take this call .tensors other"):
        joint_loss(supernet, images, labels, weights, backend="cuda")
