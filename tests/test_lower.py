# SPDX-License-Identifier: MIT
"""Canonical forms: the published counts, hand-written cells, independence of the call."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spaces import TINY

from nasfast import Merge, Mode
from nasfast.cost import stand_alone_cost
from nasfast.layout import Layout, SupernetConfig
from nasfast.lower import Lowering, Opcode
from nasfast.program import build, request_array
from nasfast.spaces import NB201

EDGES = range(6)
BATCH, AFFINE, RUNNING = Mode("batch"), Mode("batch", affine=True), Mode("running")
NONE, SKIP, C1, C3, POOL = range(5)


@pytest.fixture(scope="module")
def everything():
    return request_array(Layout(SupernetConfig()), NB201.enumerate())


# Networks left of 15,625, and their GMAC for one CIFAR image at C=16, N=5.
@pytest.mark.parametrize(
    ("mode", "merge", "count", "gmac"),
    [
        (BATCH, Merge.NONE, 15_625, 858.9),
        (BATCH, Merge.DEAD, 9_445, 563.0),
        (BATCH, Merge.IDENTITY, 8_475, 529.4),
        (BATCH, Merge.VALUE, 8_445, 528.5),
        (BATCH, Merge.FLATTEN, 8_397, 527.2),
        (BATCH, Merge.SORT, 7_810, 504.4),
        (BATCH, Merge.LINEAR, 7_548, 494.9),
        (Mode("recalibrate"), Merge.LINEAR, 7_548, 494.9),
        (RUNNING, Merge.NONE, 15_625, 858.9),
        (RUNNING, Merge.DEAD, 10_405, 622.1),
        (RUNNING, Merge.IDENTITY, 9_411, 587.7),
        (AFFINE, Merge.IDENTITY, 9_411, 587.7),
        (RUNNING, Merge.FLATTEN, 9_329, 585.4),
        (AFFINE, Merge.FLATTEN, 9_329, 585.4),
        (RUNNING, Merge.SORT, 8_720, 561.7),
        (AFFINE, Merge.SORT, 8_720, 561.7),
        (RUNNING, Merge.LINEAR, 8_452, 552.0),
        (AFFINE, Merge.LINEAR, 8_452, 552.0),
        (Mode("recalibrate", affine=True), Merge.LINEAR, 8_452, 552.0),
    ],
)
def test_counts_and_arithmetic_of_the_whole_space(everything, mode, merge, count, gmac):
    layout = Layout(SupernetConfig())
    program = build(layout, everything, mode=mode, merge=merge)
    assert program.num_lanes == program.num_templates == count
    fixed = stand_alone_cost(SupernetConfig(), [NB201.arch([0] * 6)], height=32, width=32)
    per_op = {NB201.num_ops * e + op: macs for e in EDGES
              for op, macs in ((C1, 3_932_160), (C3, 35_389_440))}  # fmt: skip
    macs = sum(per_op[int(program.param[s])] for s in program.steps.tolist() if program.is_conv[s])
    assert (macs + count * int(fixed.flops[0])) / 1e9 == pytest.approx(gmac, abs=0.05)


def _text(lowering, expression):
    pool = lowering.pool
    name = Opcode(pool.opcode[expression]).name.lower()
    if name == "input":
        return "x"
    if name == "conv":
        name = f"c{pool.param[expression]}"
    if name == "mix":
        name = f"mix{pool.param[expression]}"
    return f"{name}({','.join(_text(lowering, o) for o in pool.operands[expression])})"


# Edges: 0 (0->1), 1 (0->2), 2 (1->2), 3 (0->3), 4 (1->3), 5 (2->3); unit = 5 * edge + operation.
@pytest.mark.parametrize(
    ("ops", "mode", "merge", "wanted"),
    [
        ((NONE,) * 6, BATCH, Merge.LINEAR, "zero()"),
        ((SKIP, NONE, SKIP, NONE, NONE, SKIP), BATCH, Merge.LINEAR, "x"),
        ((SKIP, NONE, SKIP, NONE, NONE, SKIP), BATCH, Merge.DEAD, "copy(copy(copy(x)))"),
        ((SKIP, NONE, NONE, SKIP, SKIP, NONE), BATCH, Merge.LINEAR, "sum(x,x)"),
        ((C3, NONE, C1, NONE, NONE, SKIP), BATCH, Merge.LINEAR, "c12(c3(x))"),
        # Node 1 is zero; its convolution is zero too, unless constants are kept.
        ((NONE, NONE, NONE, C1, C3, NONE), BATCH, Merge.DEAD, "c17(x)"),
        ((NONE, NONE, NONE, C1, C3, NONE), RUNNING, Merge.LINEAR, "sum(c17(x),c23(zero()))"),
        ((NONE, NONE, NONE, C1, C3, NONE), AFFINE, Merge.LINEAR, "sum(c17(x),c23(zero()))"),
        ((NONE, NONE, NONE, C1, POOL, NONE), RUNNING, Merge.LINEAR, "c17(x)"),
        # A sum within a sum, pooled sums, and pools of pools.
        ((NONE, SKIP, NONE, C3, NONE, SKIP), BATCH, Merge.LINEAR, "sum(x,c18(x))"),
        ((C3, C1, SKIP, C1, NONE, SKIP), BATCH, Merge.VALUE, "sum(c17(x),sum(c7(x),c3(x)))"),
        ((C3, C1, SKIP, C1, NONE, SKIP), BATCH, Merge.FLATTEN, "sum(c17(x),c7(x),c3(x))"),
        ((C3, C1, SKIP, C1, NONE, SKIP), BATCH, Merge.SORT, "sum(c3(x),c7(x),c17(x))"),
        ((C3, C1, SKIP, POOL, NONE, POOL), BATCH, Merge.LINEAR, "avg_pool(sum(x,c3(x),c7(x)))"),
        ((C3, POOL, POOL, NONE, NONE, POOL), BATCH, Merge.LINEAR,
         "avg_pool(avg_pool(sum(x,c3(x))))"),
        ((POOL, NONE, POOL, C1, NONE, POOL), BATCH, Merge.LINEAR,
         "sum(c17(x),avg_pool(avg_pool(avg_pool(x))))"),
        # Unmerged: a zero edge still names what it multiplies by zero.
        ((C3, NONE, SKIP, NONE, NONE, C1), BATCH, Merge.NONE,
         "sum(zero(x),zero(c3(x)),c27(sum(zero(x),copy(c3(x)))))"),
    ],
)  # fmt: skip
def test_canonical_forms_by_hand(ops, mode, merge, wanted):
    lowering = Lowering(NB201, mode, merge, EDGES)
    assert _text(lowering, lowering.cell(ops)) == wanted


# Masks: for each edge, the operations it may carry.
@pytest.mark.parametrize(
    ("allowed", "mode", "wanted"),
    [
        # A zero before the first or behind the last operation is left out, one in between is not.
        (((), (), (), (NONE, SKIP, POOL), (), ()), BATCH, "mix16(x,zero(),zero(),avg_pool(x))"),
        (((), (), (), (C1, C3), (), ()), BATCH, "mix17(c17(x),c18(x))"),
        (((), (), (), (), (), ()), BATCH, "zero()"),
        (((NONE,),) * 6, BATCH, "zero()"),
        # Edge 0 leads nowhere; edge 2 starts at a zero.
        (((C3,), (SKIP,), (), (), (), (C1,)), BATCH, "mix27(c27(mix6(x)))"),
        (((), (C1,), (SKIP, C3), (), (), (SKIP,)), BATCH, "mix26(mix7(c7(x)))"),
        (((), (C1,), (SKIP, C3), (), (), (SKIP,)), AFFINE,
         "mix26(sum(mix7(c7(x)),mix13(c13(zero()))))"),
        # A node is the sum of its edges, which is not spliced into another.
        (((SKIP,), (C1,), (C1,), (SKIP,), (), (SKIP,)), BATCH,
         "sum(mix16(x),mix26(sum(mix7(c7(x)),mix12(c12(mix1(x))))))"),
    ],
)  # fmt: skip
def test_joint_cells_by_hand(allowed, mode, wanted):
    lowering = Lowering(NB201, mode, Merge.VALUE, EDGES)
    mask = [[op in ops for op in range(5)] for ops in allowed]
    assert _text(lowering, lowering.joint_cell(mask)) == wanted


def test_equal_pools_of_a_joint_cell_are_one():
    lowering = Lowering(NB201, BATCH, Merge.VALUE, EDGES)
    lowering.joint_cell([[True] * 5] * 6)
    counts = {op.name: lowering.pool.opcode.count(op) for op in Opcode}
    wanted = dict(INPUT=1, CONV=12, AVG_POOL=3, MIX=6, SUM=2)
    assert {name: count for name, count in counts.items() if count} == wanted


def test_joint_cells_of_another_space():
    lowering = Lowering(TINY, BATCH, Merge.VALUE, range(3))
    text = _text(lowering, lowering.joint_cell([[True] * 3] * 3))
    node = "mix0(c0(x),max_pool(x))"
    assert text == f"sum(mix3(c3(x),max_pool(x)),mix6(c6({node}),max_pool({node})))"


def test_weights_on_nodes_share_units():
    lowering = Lowering(NB201, BATCH, Merge.LINEAR, (0, 1, 1, 2, 2, 2))
    same = lowering.cell((SKIP, C3, NONE, NONE, NONE, SKIP))
    assert same == lowering.cell((SKIP, NONE, C3, NONE, NONE, SKIP))
    assert _text(lowering, same) == "c8(x)"


def test_max_pool_is_not_distributed():
    lowering = Lowering(TINY, BATCH, Merge.LINEAR, range(3))
    text = _text(lowering, lowering.cell((0, 0, 1)))
    assert text == "sum(c3(x),max_pool(c0(x)))"


@settings(max_examples=60)
@given(st.lists(st.integers(0, 15_624), min_size=1, max_size=12), st.sampled_from(list(Merge)),
       st.booleans())  # fmt: skip
def test_a_form_does_not_depend_on_the_call(indices, merge, affine):
    mode = Mode(affine=affine)
    together = Lowering(NB201, mode, merge, EDGES)
    texts = [_text(together, together.cell(NB201.from_index(i).op_indices)) for i in indices]
    for index, text in zip(indices, texts, strict=True):
        alone = Lowering(NB201, mode, merge, EDGES)
        assert _text(alone, alone.cell(NB201.from_index(index).op_indices)) == text


@pytest.mark.parametrize("mode", [BATCH, RUNNING])
def test_each_level_refines_the_one_after_it(mode):
    archs = NB201.op_array(NB201.sample(3_000, 1)).tolist()
    classes = []
    for merge in Merge:
        lowering = Lowering(NB201, mode, merge, EDGES)
        classes.append([lowering.cell(ops) for ops in archs])
    for finer, coarser in pairwise(classes):
        assert len(set(zip(finer, coarser, strict=True))) == len(set(finer))


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"wanted one of batch, running, recalibrate, got 'train'"):
        Mode("train")


def test_constants_follow_from_the_mode():
    kept = {
        (cells, affine): Mode(cells, affine).keeps_constants
        for cells in ("batch", "running", "recalibrate")
        for affine in (False, True)
    }
    assert [key for key, value in kept.items() if not value] == [
        ("batch", False), ("recalibrate", False)]  # fmt: skip
