# SPDX-License-Identifier: MIT
"""Networks of choice blocks on the CPU engine: forward and gradients against the definition."""

import numpy as np
import pytest
import torch
from test_engine import ISAS, batch_of
from test_engine_gradients import check_fp32, engine_gradients, randomised, reference_gradients

from nasfast import SupernetConfig
from nasfast.layout import Layout
from nasfast.program import build_training

SPACES = ("nb1shot1-1", "nb1shot1-2", "nb1shot1-3")
CASES = {  # channels, cells a stage, images, height, width
    "odd channels": (5, 1, 17, 7, 9),
    "even": (4, 1, 16, 8, 8),
    "deep": (3, 2, 5, 9, 7),
    "one image": (3, 1, 1, 12, 10),
    "pairs of rows": (9, 1, 2, 11, 18),
}


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", request.param)
    return request.param


def archs_of(space, count=12):
    """Some architectures, with the deepest and the one of pools alone among them."""
    every = space.enumerate()
    convolutions = [arch.depth for arch in every]
    return [every[0], every[int(np.argmax(convolutions))], every[-1], *space.sample(count, seed=3)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SPACES)
def test_gradients(name, case, isa):
    channels, cells, images, height, width = CASES[case]
    config = SupernetConfig.published(name, channels=channels, cells_per_stage=cells, in_channels=2)
    supernet = randomised(config)
    archs = archs_of(config.spec, 4)
    program = build_training(Layout(config), archs)
    batch = batch_of(images, height, 2, width=width)
    for lane in range(program.num_lanes):
        network = int(program.lanes[lane, 0])
        _, exact = reference_gradients(
            program, supernet.copy(torch.float64), network, batch, torch.float64
        )
        _, theirs = reference_gradients(program, supernet, network, batch, torch.float32)
        _, ours = engine_gradients(program, supernet, lane, batch, "fp32")
        check_fp32(exact, theirs, ours)
