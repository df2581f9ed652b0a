import subprocess
import sys

import pytest

import nasfast
from nasfast import Merge, Mode, SupernetConfig
from nasfast.spaces import NB201

EVERY = NB201.enumerate()
SMALL = SupernetConfig(channels=2, cells_per_stage=1, in_channels=1)


@pytest.fixture(scope="module")
def whole():
    return nasfast.explain(NB201, EVERY)


def test_whole_space(whole):
    """Distinct subnets and GMAC of the whole space with 16 channels and 5 cells a stage."""
    found = {step.merge: (step.lanes, round(step.macs / 1e9, 1)) for step in whole.steps}
    assert found == {
        Merge.NONE: (15625, 858.9),
        Merge.DEAD: (9445, 563.0),
        Merge.IDENTITY: (8475, 529.4),
        Merge.VALUE: (8445, 528.5),
        Merge.FLATTEN: (8397, 527.2),
        Merge.SORT: (7810, 504.4),
        Merge.LINEAR: (7548, 494.9),
    }


def test_first_cells_of_the_whole_space(whole):
    step = next(s for s in whole.steps if s.merge == Merge.FLATTEN)
    assert round(step.first_cell_macs / 1e9, 1) == 30.8
    assert round(step.shared_macs / 1e9, 2) == 0.23
    saved = step.first_cell_macs - step.shared_macs
    assert 0 < step.total_macs < step.macs - saved  # the stem is shared too


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        (
            Mode("running"),
            {Merge.IDENTITY: 9411, Merge.FLATTEN: 9329, Merge.SORT: 8720, Merge.LINEAR: 8452},
        ),
        (Mode("batch", affine=True), {Merge.LINEAR: 8452}),
    ],
    ids=["running", "affine"],
)
def test_constants_are_kept(mode, wanted):
    result = nasfast.explain(NB201, EVERY, config=SMALL, mode=mode, merges=list(wanted))
    assert {step.merge: step.lanes for step in result.steps} == wanted


def test_one_architecture_by_hand():
    arch = NB201.from_string(
        "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    )
    config = SupernetConfig(channels=1, cells_per_stage=1, classes=2, in_channels=1)
    result = nasfast.explain(NB201, [arch], config=config, image=(4, 4))
    step = result.steps[-1]
    assert (result.requests, step.lanes, step.evaluations) == (1, 1, 9)  # 3 operations, 3 cells
    cell = 9 * 16 + 16
    cells = cell + (9 + 1) * 4 * 4 + (9 + 1) * 16 * 1
    stem, head = 9 * 16, 4 * 2 + 2
    reductions = (18 + 36 + 2) * 4 + (72 + 144 + 8) * 1
    assert step.first_cell_macs == step.shared_macs == cell
    assert step.macs == step.total_macs == stem + cells + reductions + head
    assert ": 1 network, one image of 4x4" in str(result)


def test_equal_requests_are_one_lane():
    arch = NB201.from_index(7)
    result = nasfast.explain(NB201, [arch] * 3, config=SMALL, merges=[Merge.NONE])
    assert (result.requests, result.steps[0].lanes) == (3, 1)


@pytest.mark.parametrize(
    ("count", "config", "unit"),
    [
        (400, SupernetConfig(), "GMAC"),
        (3, SupernetConfig(), "MMAC"),
        (1, SMALL, "kMAC"),
    ],
)
def test_unit_fits_the_numbers(count, config, unit):
    text = str(nasfast.explain(NB201, EVERY[:count], config=config))
    lines = text.split("\n")
    assert lines[1].split("  ")[-1].strip() == f"{unit} to run"
    assert len({len(line) for line in lines[1:]}) == 1  # right-aligned
    largest = float(lines[2].split()[3].replace(",", ""))
    assert 10 <= largest < 10_000


def test_per_cell_architectures_are_counted():
    network = [NB201.from_index(k) for k in range(3)]
    result = nasfast.explain(NB201, [network, network[0]], config=SMALL)
    assert result.steps[-1].lanes == 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="image: wanted a height and width of at least 1"):
        nasfast.explain(NB201, EVERY[:1], image=(0, 4))
    with pytest.raises(ValueError, match="archs: wanted at least one"):
        nasfast.explain(NB201, [])
    with pytest.raises(ValueError, match="merges: wanted at least one"):
        nasfast.explain(NB201, EVERY[:1], merges=[])


def test_missing_extension_is_explained():
    """Without the compiled module the package still imports; only counting says what is missing."""
    program = """
import sys
sys.modules["nasfast._host"] = None
import nasfast
try:
    nasfast.explain(nasfast.spaces.get("nb201"), [nasfast.spaces.get("nb201").from_index(0)])
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nasfast._host cannot be imported" in done.stdout
    assert "make install" in done.stdout
