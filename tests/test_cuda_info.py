# SPDX-License-Identifier: MIT
"""What ``nasfast info`` says of CUDA: kernels, card, and why the card is not used."""

import sys
import warnings

import pytest
import torch
from tiny_runs import cli, printed

from nasfast import cuda_device, ops, slow_paths

NO_KERNELS = "this build of nasfast has no CUDA kernels (build it with WITH_CUDA=1)"
DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old"


@pytest.fixture
def machine(monkeypatch):
    """Stands for a build and a card."""

    def stand_in(archs, card, capability=(9, 0), warning=None):
        def is_available():
            if warning is not None:
                warnings.warn(warning, UserWarning, stacklevel=1)
            return card is not None

        monkeypatch.setattr(cuda_device, "has_kernels", lambda: archs is not None)
        monkeypatch.setattr(ops, "cuda_archs", lambda: archs)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return stand_in


CASES = {
    "used": (
        ("8.0;9.0+PTX", "NVIDIA H100"),
        ("8.0;9.0+PTX", "NVIDIA H100 (compute capability 9.0)", None),
    ),
    "neither": ((None, None), ("none in this build", "none", NO_KERNELS)),
    "no kernels": (
        (None, "NVIDIA A100", (8, 0)),
        ("none in this build", "NVIDIA A100 (compute capability 8.0)", NO_KERNELS),
    ),
    "no card": (("8.0", None), ("8.0", "none", "torch sees no CUDA device")),
    "old driver": (
        ("8.0", None, None, DRIVER),
        ("8.0", "none", f"torch sees no CUDA device ({DRIVER})"),
    ),
    "old card": (
        ("8.0;9.0+PTX", "Tesla T4", (7, 5)),
        ("8.0;9.0+PTX", "Tesla T4 (compute capability 7.5)",
         "Tesla T4 has compute capability 7.5, the kernels need 8.0 or later"),
    ),
    "kernels for other cards": (
        ("9.0", "NVIDIA A100", (8, 0)),
        ("9.0", "NVIDIA A100 (compute capability 8.0)",
         "the kernels are compiled for 9.0, which NVIDIA A100 (compute capability 8.0) does not "
         "run"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build_and_card", "wanted"), CASES.values(), ids=CASES)
def test_info(machine, build_and_card, wanted):
    machine(*build_and_card)
    kernels, card, not_used = wanted
    info = {"kernels": kernels, "card": card}
    if kernels != "none in this build":
        info["precisions"] = "fp32, tf32, bf16"
    if not_used is not None:
        info["not_used"] = not_used
    assert slow_paths.cuda_info() == info
    assert printed(cli("info", "--json"))["cuda"] == info
    text = cli("info").stdout
    assert all(f"{key}: {value}" in text for key, value in info.items())


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("9.0+PTX", (8, 0), False),
        ("8.0;9.0+PTX", (10, 0), True),
        ("8.0 9.0", (10, 0), False),
        ("10.0", (9, 0), False),
        ("Hopper", (8, 0), True),
    ],
)
def test_what_a_card_runs(archs, capability, runs):
    assert cuda_device.runs_on(archs, capability) == runs


def test_info_of_this_build():
    """A build without CUDA has the schema of the operator, but no kernel."""
    if torch.version.cuda is None:
        assert ops.cuda_archs() is None
    archs = ops.cuda_archs()
    assert slow_paths.cuda_info()["kernels"] == (archs or "none in this build")


def test_info_without_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, "nasfast.ops", None)
    cuda = printed(cli("info", "--json"))["cuda"]
    assert "nasfast._ops cannot be imported" in cuda["error"]
