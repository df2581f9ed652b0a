# SPDX-License-Identifier: MIT
"""Lowering and planning of choice blocks: what is equal, what is shared, how long it takes."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import REPOSITORY

from nasfast import Merge, Mode, _host, explain, spaces
from nasfast.distinct import distinct_rows
from nasfast.layout import Layout, SupernetConfig
from nasfast.lower import Opcode
from nasfast.plan import plan
from nasfast.program import build, request_array
from nasfast.spaces import NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3, BlockSpec

SPACES = (NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3)
MODE = Mode("running", affine=True)
SIZE = {"batch": 4, "height": 8, "width": 8}


def program_of(space, archs, merge=Merge.LINEAR, **shape):
    layout = Layout(SupernetConfig.published(space.name, channels=4, **shape))
    return build(layout, request_array(layout, archs), mode=MODE, merge=merge)


def form(program, request):
    """A lane's first cell as a nested tuple, whatever the numbers of its expressions."""
    template = program.networks[program.lanes[program.lane_of_request[request], 0], 0]
    found = {}
    for step in [0, *program.template(template)]:
        operands = tuple(found[operand] for operand in program.operands_of(step))
        found[step] = (int(program.opcode[step]), int(program.param[step]), operands)
    return found[program.template(template)[-1]]


@pytest.fixture
def tiny(monkeypatch):
    """Two blocks: the second has one parent of two, the output one of three."""
    monkeypatch.setattr(spaces, "_SPACES", dict(spaces._SPACES))
    return spaces.register(BlockSpec("tiny", "tiny", (1, 1, 1), NB1SHOT1_1.ops))


def test_a_tiny_space_by_hand(tiny):
    """Nodes: 0 is the input, 1 and 2 are blocks, 3 is the output, which reads one of them.

    Output from the input: 1 subnet. From block 1: 3, by its operation. From block 2, which reads
    the input: 3; which reads block 1: 9. The pools of the projected input have different
    projections, so all 16 are distinct, also with equal values merged.
    """
    archs = tiny.enumerate()
    assert len(archs) == tiny.num_archs == 1 + 3 + 3 + 9
    for merge in (Merge.DEAD, Merge.VALUE):
        assert program_of(tiny, archs, merge).num_lanes == 16
    # Expressions: input; three projections; 3 of block 1; 3 of block 2 on the input, 9 on block 1;
    # to the output a concatenation of each of the 15, but for the projected input alone.
    program = program_of(tiny, archs)
    names, counts = np.unique(program.opcode, return_counts=True)
    assert dict(zip(map(Opcode, names.tolist()), counts.tolist(), strict=True)) == {
        Opcode.INPUT: 1,
        Opcode.CONV_RELU: 3 + 2 + 2 + 3 * 2,
        Opcode.MAX_POOL: 1 + 1 + 3,
        Opcode.CONCAT: 15,
    }
    # Convolutions of first cells, each lane on its own: input alone 1; block 1: 1 projection and
    # the operation if it is no pool, 3 + 2; block 2 on the input likewise; on block 1: 9
    # projections, 6 + 6 operations.
    one_cell = program_of(tiny, archs, cells_per_stage=1)
    convolutions = [
        sum(one_cell.is_conv[step] for step in one_cell.template(t))
        for t in one_cell.networks[one_cell.lanes[:, 0], 0].tolist()
    ]
    assert sum(convolutions) == 1 + 5 + 5 + 9 + 12
    # Shared, every one of them is computed once, and pools that they need.
    whole = plan(one_cell, **SIZE)
    assert whole.num_chunks == 1
    shared = whole.shared_of(0)
    assert sum(one_cell.is_conv[e] for e in shared) == 13
    kept = {int(e) for e in shared if not one_cell.is_conv[e]}
    pooled = [e for e in range(len(one_cell.opcode)) if one_cell.opcode[e] == Opcode.MAX_POOL]
    of_block_1 = [e for e in pooled if any(e in one_cell.operands_of(u) for u in shared)]
    assert kept == set(of_block_1) and len(kept) == 1


def test_multiply_accumulates_of_a_tiny_space_by_hand(tiny):
    """One cell a stage, 2 channels, one image of 8x8, halved with padding to 5x5 and 3x3."""
    config = SupernetConfig.published("tiny", channels=2, cells_per_stage=1, classes=10)
    (arch,) = [tiny.from_string("|maxpool3x3~0|+|conv3x3-bn-relu~1|+|~2|")]
    found = explain(tiny, [arch], config=config, image=(8, 8), merges=(Merge.VALUE,)).steps[0]
    stem = 9 * 3 * 2 * 64
    cells = 0
    # Of two blocks side by side one is there: half of a cell's channels, and of the head's.
    for inputs, width, pixels in ((2, 2, 64), (2, 4, 25), (4, 8, 9)):
        cells += (inputs * width + 9 * width * width) * pixels  # the projection, the convolution
    head = 8 * 8 * 9 + 8 * 10 + 10  # with the classifier's bias, as in every count
    assert found.macs == stem + cells + head


def test_pools_of_one_value_are_one_value():
    """Two blocks that pool the same block are the same; which of them is used does not matter."""
    first = NB1SHOT1_3.from_string(
        "|conv3x3-bn-relu~0|+|maxpool3x3~1|+|maxpool3x3~0|+|conv1x1-bn-relu~0,2|"
        "+|maxpool3x3~0,1|+|~1,4|"
    )
    second = NB1SHOT1_3.from_string(
        "|conv3x3-bn-relu~0|+|maxpool3x3~0|+|maxpool3x3~1|+|conv1x1-bn-relu~0,3|"
        "+|maxpool3x3~0,1|+|~1,4|"
    )
    assert NB1SHOT1_3.pruned(first) != NB1SHOT1_3.pruned(second)
    assert program_of(NB1SHOT1_3, [first, second], Merge.DEAD).num_lanes == 2
    assert program_of(NB1SHOT1_3, [first, second], Merge.IDENTITY).num_lanes == 1


@pytest.mark.parametrize(
    ("space", "written", "distinct"),
    [(NB1SHOT1_1, 3_702, 3_702), (NB1SHOT1_2, 12_474, 12_474)],
    ids=["1", "2"],
)
def test_lanes_of_a_space(space, written, distinct):
    """As written and with equal values merged; loose ends change nothing."""
    archs = space.enumerate()
    assert program_of(space, archs, Merge.NONE).num_lanes == written
    assert program_of(space, archs, Merge.DEAD).num_lanes == written
    for merge in (Merge.VALUE, Merge.LINEAR):
        program = program_of(space, archs, merge)
        assert program.num_lanes == distinct
    loose = space.sample(2000, seed=4)
    again = program_of(space, [*archs, *loose])
    assert again.num_lanes == distinct
    lanes = again.lane_of_request
    assert np.array_equal(lanes[len(archs) :], lanes[space.to_indices(loose)])


LARGE = """
import re, time, sys
from pathlib import Path
from nasfast import Merge, Mode, spaces
from nasfast.layout import Layout, SupernetConfig
from nasfast.plan import plan
from nasfast.program import build, request_array
archs = spaces.NB1SHOT1_3.enumerate()
layout = Layout(SupernetConfig.published("nb1shot1-3"))
began = time.process_time()
requests, mode = request_array(layout, archs), Mode("running", True)
program = build(layout, requests, mode=mode, merge=Merge[sys.argv[1]])
cut = plan(program, batch=128, height=32, width=32, workers=1)
cut.table()
seconds = time.process_time() - began
# Not ru_maxrss: that starts at the size of the process that forked this one.
(kib,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(program.num_lanes, seconds, int(kib) // 1024)
"""


@pytest.mark.parametrize(("merge", "lanes"), [("DEAD", 135_900), ("LINEAR", 133_596)])
def test_the_largest_space_is_built_in_seconds(merge, lanes):
    """At most 20 s of processor time for program, plan and table, and 1 GB with all libraries.

    With pools of equal values merged 2,304 of the 135,900 subnets of space 3 are another one.
    """
    done = subprocess.run(
        [sys.executable, "-c", LARGE, merge], capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    found, seconds, mib = done.stdout.split()
    assert int(found) == lanes
    assert float(seconds) < 20
    assert int(mib) < 1024


def test_merging_in_the_largest_space_is_what_a_set_says():
    """Counted without the lowering: nested tuples in which a pool has no name of its own."""

    def written(arch):
        ops, parents = NB1SHOT1_3.block_ops(arch), NB1SHOT1_3.parents(arch)
        values = [None]
        for block, (op, sources) in enumerate(zip(ops, parents[:-1], strict=True)):
            inflow = tuple(("in", block) if s == 0 else values[s] for s in sources)
            values.append((None if op == 0 else block, op, inflow))
        return tuple((s, values[s]) if s else None for s in parents[-1])

    assert len({written(arch) for arch in NB1SHOT1_3.enumerate()}) == 133_596


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
@pytest.mark.parametrize("merge", [Merge.DEAD, Merge.IDENTITY, Merge.LINEAR], ids=lambda m: m.name)
def test_a_lane_has_its_own_form_whatever_else_is_there(space, merge):
    archs = space.sample(300, seed=7)
    together = program_of(space, archs, merge)
    for request in range(0, 300, 17):
        assert form(together, request) == form(program_of(space, [archs[request]], merge), 0)
    steps_of = {}
    for request, arch in enumerate(archs):
        alone = program_of(space, [arch], merge)
        names = [(int(alone.opcode[s]), int(alone.param[s])) for s in alone.template(0)]
        template = together.networks[together.lanes[together.lane_of_request[request], 0], 0]
        found = [
            (int(together.opcode[s]), int(together.param[s])) for s in together.template(template)
        ]
        steps_of[request] = found == names
    assert all(steps_of.values())  # the same order too: sums of gradients depend on it


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_registers_hold_what_is_read(space):
    program = program_of(space, space.sample(400, seed=2))
    cut = plan(program, **SIZE)
    at = read = 0
    for template in range(program.num_templates):
        holds = {0: 0}
        for step in program.template(template):
            begin, end = cut.step_operand_begin[at : at + 2].tolist()
            sources = cut.operand_registers[begin:end].tolist()
            assert [holds[s] for s in sources] == list(program.operands_of(step))
            register = int(cut.registers[at])
            assert 0 < register < cut.num_registers[template] and register not in sources
            holds[register] = step
            at, read = at + 1, end
    assert at == len(program.steps) and read == len(cut.operand_registers)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_what_is_shared_is_what_convolutions_need(space):
    program = program_of(space, space.sample(200, seed=3))
    cut = plan(program, **SIZE, max_chunk_lanes=13)
    for chunk in range(cut.num_chunks):
        needed = set()
        for network in program.lanes[cut.lanes_of(chunk), 0].tolist():
            steps = program.template(int(program.networks[network, 0]))
            for step in reversed(steps):
                if step in needed or program.is_conv[step]:
                    needed |= {step, *program.operands_of(step)}
        assert cut.shared_of(chunk) == sorted(needed - {0})


def test_the_compiled_side_reads_the_table():
    cut = plan(program_of(NB1SHOT1_2, NB1SHOT1_2.sample(50, seed=1)), **SIZE)
    work = _host.count_work(cut.table(), 8, 8)
    assert work["macs"] > 0 and sum(work["chunk_macs"]) == work["macs"]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 30), columns=st.integers(1, 9), high=st.sampled_from([1, 2, 3, 10**6]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_distinct_rows_are_those_of_numpy(rows, columns, high, seed):
    array = np.random.default_rng(seed).integers(0, high, (rows, columns)).astype(np.int32)
    array[rows // 2 :] = array[: rows - rows // 2]
    found, of = distinct_rows(array)
    wanted, inverse = np.unique(array, axis=0, return_inverse=True)
    assert np.array_equal(found, wanted) and np.array_equal(of, inverse.reshape(-1))


def test_levels_of_a_space():
    """Levels that merge nothing in these spaces are left out of the table."""
    config = SupernetConfig.published("nb1shot1-1", channels=2, cells_per_stage=1)
    found = explain(NB1SHOT1_1, NB1SHOT1_1.enumerate(), config=config, image=(8, 8))
    assert [step.merge for step in found.steps] == [Merge.DEAD, Merge.IDENTITY, Merge.VALUE]
    every = explain(
        NB1SHOT1_1, NB1SHOT1_1.enumerate(), config=config, image=(8, 8), merges=tuple(Merge)
    ).steps
    known = {(step.lanes, step.macs, step.total_macs) for step in found.steps}
    assert {(step.lanes, step.macs, step.total_macs) for step in every} == known
    # First cells: three convolutions of two operations each on distinct sources at most.
    assert all(step.shared_macs < step.first_cell_macs / 10 for step in every)
    for one, other in itertools.pairwise(found.steps):
        assert other.evaluations <= one.evaluations
