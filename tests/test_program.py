# SPDX-License-Identifier: MIT
"""Programs, plans and packed tables."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasfast import Merge, Mode, _host
from nasfast.layout import Layout, SupernetConfig
from nasfast.lower import Opcode
from nasfast.plan import plan
from nasfast.program import build, build_joint, joint_mask, request_array
from nasfast.spaces import NB201

LAYOUT = Layout(SupernetConfig(channels=4, cells_per_stage=2))
ARCHS = NB201.sample(400, 11)
SIZE = {"batch": 8, "height": 8, "width": 8}


def _program(archs=ARCHS, merge=Merge.LINEAR, **options):
    return build(LAYOUT, request_array(LAYOUT, archs), mode=Mode(), merge=merge, **options)


def test_every_request_has_the_lane_of_its_own_form():
    program = _program()
    for request, arch in list(enumerate(ARCHS))[:50]:
        alone = _program([arch])
        lane = program.lane_of_request[request]
        network = program.networks[program.lanes[lane, 0]]
        assert (network == network[0]).all()  # one architecture for all cells
        assert _form(program, int(network[0])) == _form(alone, 0)


def _form(program, template):
    names = {}
    for step in [0, *program.template(template)]:
        operands = tuple(names[o] for o in program.operands_of(step))
        names[step] = (int(program.opcode[step]), int(program.param[step]), operands)
    return names[program.template(template)[-1]]


def test_one_architecture_for_each_cell():
    cells = LAYOUT.num_cells
    networks = [ARCHS[k : k + cells] for k in range(20)]
    program = _program([*networks, ARCHS[0], networks[3]])
    assert program.networks.shape[1] == cells == 6
    assert program.lane_of_request[3] == program.lane_of_request[21]
    for request, network in enumerate(networks):
        row = program.networks[program.lanes[program.lane_of_request[request], 0]]
        for template, arch in zip(row.tolist(), network, strict=True):
            assert _form(program, template) == _form(_program([arch]), 0)


def test_lanes_of_several_weight_sets_and_data_orders():
    archs = [ARCHS[0], ARCHS[1], ARCHS[0], ARCHS[0]]
    program = _program(archs, weight_set=np.array([0, 0, 0, 1]), data_order=np.array([0, 1, 0, 1]))
    assert program.num_lanes == 3
    assert program.lane_of_request[0] == program.lane_of_request[2]
    cut = plan(program, **SIZE)
    for chunk in range(cut.num_chunks):
        assert len({tuple(row) for row in program.lanes[cut.lanes_of(chunk), 1:].tolist()}) == 1


def test_templates_list_operands_before_users():
    program = _program()
    for template in range(program.num_templates):
        seen = {0}
        steps = program.template(template)
        for step in steps:
            assert set(program.operands_of(step)) <= seen
            seen.add(step)
        assert len(steps) == len(set(steps))


def _unpack(table):
    """The sections of a packed table by name."""
    names = list(plan(_program(ARCHS[:1]), **SIZE).sections())
    assert table[2] == len(names)
    places = table[3 : 3 + 2 * len(names)].reshape(-1, 2).tolist()
    return {name: table[at : at + n] for name, (at, n) in zip(names, places, strict=True)}


IDENTITY = NB201.from_string(
    "|none~0|+|none~0|none~1|+|skip_connect~0|nor_conv_1x1~1|avg_pool_3x3~2|"
)


@pytest.mark.parametrize("merge", list(Merge))
def test_registers_hold_what_is_read(merge):
    cut = plan(_program([*ARCHS, IDENTITY], merge=merge), **SIZE)
    t = {name: values.tolist() for name, values in _unpack(cut.table()).items()}
    read = 0
    for template, (begin, end) in enumerate(pairwise(t["template_begin"])):
        holds = {0: 0}
        for at in range(begin, end):
            step, register = t["steps"][at], t["registers"][at]
            sources = t["operand_registers"][slice(*t["step_operand_begin"][at : at + 2])]
            operands = t["operands"][slice(*t["operand_begin"][step : step + 2])]
            assert [holds[source] for source in sources] == operands
            assert 0 < register < t["num_registers"][template] and register not in sources
            holds[register] = step
            read += len(sources)
    assert end == len(t["steps"]) and read == len(t["operand_registers"])


def test_the_identity_is_one_step():
    t = _unpack(plan(_program([IDENTITY]), **SIZE).table())
    found = [t[name].tolist() for name in ("opcode", "steps", "registers", "step_operand_begin")]
    assert found == [[Opcode.INPUT], [0], [1], [0, 0]]


@pytest.mark.parametrize("weights_on", ["edge", "node"])
def test_a_table_says_what_it_was_made_for(weights_on):
    layout = Layout(SupernetConfig(channels=4, affine=True, track=True, weights_on=weights_on))
    requests = request_array(layout, ARCHS[:3])
    for number, cells in enumerate(("batch", "running", "recalibrate")):
        program = build(
            layout, requests, mode=Mode(cells, affine=True), merge=Merge.SORT,
            weight_set=np.array([0, 4, 1]), data_order=np.array([2, 0, 0]),
        )  # fmt: skip
        table = plan(program, batch=3, height=9, width=7).table()
        _host.check_table(table)
        units = (6 if weights_on == "edge" else 3) * 5
        wanted = [number, 1, Merge.SORT, layout.arena_size, units, 5, 3, 3, 9, 7, 0]
        assert _unpack(table)["settings"].tolist() == wanted
    assert _unpack(plan(_program(ARCHS[:3]), **SIZE).table())["settings"].tolist() == [
        0, 0, Merge.LINEAR, LAYOUT.arena_size, 30, 1, 1, 8, 8, 8, 0
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "most"), [("batch", 0, 2**24), ("height", -1, 2**16), ("width", 65537, 2**16)]
)
def test_bad_sizes(name, size, most):
    with pytest.raises(ValueError, match=rf"{name}: wanted 1\.\.{most}, got {size}"):
        plan(_program(ARCHS[:1]), **(SIZE | {name: size}))


def test_the_joint_supernet_is_one_lane_that_shares_nothing():
    program = build_joint(LAYOUT, mode=Mode())
    assert program.is_joint and program.mixing_width == 30
    assert not _program(ARCHS[:1]).is_joint and _program(ARCHS[:1]).mixing_width == 0
    assert (program.num_lanes, program.num_templates) == (1, 1)
    mixes = np.flatnonzero(program.opcode == Opcode.MIX)
    assert sorted(program.param[mixes].tolist()) == [1, 6, 11, 16, 21, 26]  # none is left out
    assert all(len(program.operands_of(int(mix))) == 4 for mix in mixes)
    cut = plan(program, **SIZE)
    assert cut.shared.size == 0 and cut.num_registers.tolist() == [9]
    work = _host.count_work(cut.table(), 8, 8)
    # Two cells of 6 edges of 10 C^2 in each stage; C^2 * pixels is 1024 in all of them.
    assert work["cell_macs"] == 3 * 2 * 6 * 10 * 1024
    assert work["evaluations"]["mix"] == 36 and work["shared_macs"] == 0


def test_masks_of_the_joint_supernet():
    mask = joint_mask(LAYOUT, NB201.mask(without=["avg_pool_3x3"]))
    assert mask.shape == (6, 6, 5) and not mask[..., 4].any()
    assert joint_mask(LAYOUT).all()
    mask = mask.copy()
    mask[2:4, 0] = False
    program = build_joint(LAYOUT, mode=Mode(), mask=mask)
    assert program.num_templates == 2
    first, other = program.networks[0, [0, 2]].tolist()
    assert program.networks.tolist() == [[first, first, other, other, first, first]]
    assert Opcode.AVG_POOL not in program.opcode and program.mixing_width == 29
    _host.check_table(plan(program, **SIZE).table())
    for wrong in (np.ones((6, 4), bool), np.ones((2, 6, 5), bool), np.ones((6, 5), int)):
        with pytest.raises(ValueError, match=r"mask: wanted bool \[6, 5\] or \[6, 6, 5\], got"):
            build_joint(LAYOUT, mode=Mode(), mask=wrong)


def test_registers_are_few():
    # Four nodes: a sum of three, with two of its terms convolved, needs no more at once.
    assert plan(_program(NB201.enumerate()), **SIZE).num_registers.max() == 6


@settings(max_examples=40)
@given(st.integers(1, 500), st.integers(10, 2_000))
def test_chunks_cover_every_lane_once_within_the_budget(max_lanes, kib):
    program = _program()
    value = 8 * 4 * 8 * 8 * 4
    try:
        cut = plan(program, **SIZE, memory=kib * 1024, max_chunk_lanes=max_lanes)
    except ValueError as error:
        assert "memory: the values of one lane need" in str(error)
        assert kib * 1024 < 20 * value
        return
    assert sorted(cut.lane_order.tolist()) == list(range(program.num_lanes))
    for chunk in range(cut.num_chunks):
        assert 1 <= len(cut.lanes_of(chunk)) <= max_lanes
        assert len(cut.shared_of(chunk)) * value <= kib * 1024
        assert cut.shared_of(chunk) == sorted(set(cut.shared_of(chunk)))
        shared = set(cut.shared_of(chunk))
        for lane in cut.lanes_of(chunk):
            first = program.template(int(program.networks[program.lanes[lane, 0], 0]))
            convs = {step for step in first if program.opcode[step] == Opcode.CONV}
            assert convs <= shared


def test_table_is_accepted_and_counts_agree_with_a_walk_in_python():
    for merge in (Merge.NONE, Merge.LINEAR):
        program = _program(merge=merge)
        cut = plan(program, **SIZE, max_chunk_lanes=50)
        table = cut.table()
        assert table.dtype == np.int32 and table.ndim == 1
        _host.check_table(table)
        counted = _host.count_work(table, 16, 12)
        convs = {p: 0 for p in range(len(LAYOUT.positions))}
        evaluations = dict.fromkeys((op.name.lower() for op in Opcode), 0)
        macs = 0
        for chunk in range(cut.num_chunks):
            shared = set(cut.shared_of(chunk))
            work = [(1, step) for step in shared]
            for lane in cut.lanes_of(chunk):
                row = program.networks[program.lanes[lane, 0]]
                for index, position in enumerate(LAYOUT.positions):
                    if position.kind == "cell":
                        steps = program.template(int(row[position.cell]))
                        done = shared if position.cell == 0 else set()
                        work += [(index, step) for step in steps if step not in done]
            for index, step in work:
                evaluations[Opcode(int(program.opcode[step])).name.lower()] += 1
                if program.opcode[step] == Opcode.CONV:
                    convs[index] += 1
                    position = LAYOUT.positions[index]
                    kernel = (1, 3)[int(program.param[step]) % 5 - 2]
                    pixels = (16 >> position.halvings) * (12 >> position.halvings)
                    macs += kernel**2 * position.in_channels**2 * pixels
        assert counted["evaluations"] == evaluations
        assert counted["cell_macs"] == macs


@pytest.fixture(scope="module")
def table():
    return plan(_program(), **SIZE, max_chunk_lanes=50).table()


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_table_is_an_error_or_harmless(table, data):
    damaged = table.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(table) - 1))
        near = int(table[at])
        small = st.integers(max(near - 3, -(2**31)), min(near + 3, 2**31 - 1))
        damaged[at] = data.draw(small | st.integers(-(2**31), 2**31 - 1))
    try:
        _host.count_work(damaged, 8, 8)
    except ValueError as error:
        assert str(error).startswith("program table: ")


@pytest.mark.parametrize("keep", [0, 3, 40, 41, 100, -1])
def test_a_truncated_table_is_an_error(table, keep):
    with pytest.raises(ValueError, match="program table: "):
        _host.check_table(table[:keep])


def test_bad_requests():
    with pytest.raises(ValueError, match="archs: wanted at least one architecture, got none"):
        request_array(LAYOUT, [])
    with pytest.raises(ValueError, match=r"archs\[1\]: wanted one architecture for each of 6 cell"):
        request_array(LAYOUT, [ARCHS[0], ARCHS[:5]])
