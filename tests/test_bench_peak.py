# SPDX-License-Identifier: MIT
"""bench/peak.py runs and its figures are possible."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("peak") / "peak.json"
    subprocess.run(
        [sys.executable, "bench/peak.py", "--quick", "--threads", "2", "--json", str(out)],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_figure_is_positive_and_ordered(result):
    for row in result["probes"]:
        assert 0 < row["min"] <= row["median"] <= row["max"] < math.inf, row


def test_every_probe_is_measured_or_absent_with_a_reason(result):
    measured = {(row["probe"], row["threads"]) for row in result["probes"]}
    assert measured >= {("fma_f32", 1), ("fma_f32", 2), ("copy", 1), ("copy", 2)}
    for probe in ("dot_bf16", "amx_bf16"):
        assert ((probe, 1) in measured) != bool(result["absent"].get(probe))


def test_arithmetic_peaks_are_above_a_gigaflop_a_second(result):
    assert all(row["median"] > 1 for row in result["probes"] if row["unit"] == "GFLOP/s")


def test_environment_names_machine_and_versions(result):
    environment = result["environment"]
    assert environment["cpu"]
    assert environment["threads"] == 2
    assert environment["versions"]["torch"]
    assert {"commit", "dirty", "isa"} <= environment.keys()
