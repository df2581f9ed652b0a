# SPDX-License-Identifier: MIT
"""How many architectures a space of choice blocks has, by every definition in use.

NAS-Bench-1Shot1's numbers mix definitions, so each has a function of its own here. For search
spaces 1, 2 and 3:

=========================  =======================================  =======  =======  =========
function                   counts                                       one      two      three
=========================  =======================================  =======  =======  =========
``count_encodings``        raw encodings                             14,580   29,160  1,312,200
``count_loose_ended``      blocks without an edge out of them merged  6,240   16,632    363,648
``count_subnets``          distinct pruned subnets                    3,702   12,474    135,900
``count_published``        "without loose ends", as printed           3,702   12,510    137,406
``count_compacted``        pruned, positions of blocks forgotten      3,288   11,826    118,524
``count_hashes``           distinct cells of NAS-Bench-101            2,685    7,773     55,854
``count_fully_used``       subnets that use every block               3,078   11,178    108,135
``count_evaluated``        what the authors' generator finds          2,487    3,609     24,066
=========================  =======================================  =======  =======  =========

The paper's table says 6,240 / 29,160 / 363,648 "with loose ends", which is ``count_loose_ended``
for spaces 1 and 3 and ``count_encodings`` for space 2.

Source: Zela, Siems and Hutter, NAS-Bench-1Shot1, ICLR 2020, table 1.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from nasfast.spaces import nb101
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.space import BoolArray
from nasfast.spaces.topologies import IndexArray


def count_encodings(spec: BlockSpec) -> int:
    """Count raw encodings: every choice of parents with every operation of every block."""
    return spec.num_encodings


def count_loose_ended(spec: BlockSpec) -> int:
    """Count choices of parents with the operations of those blocks that have an edge out of them.

    A block that only feeds loose ends is still counted with its operations, and its parents
    always are.
    """
    edges = spec.topologies.edges
    feeding = edges[:, 1:-1].any(axis=2).sum(axis=1)
    return int((spec.num_ops**feeding).sum())


def count_subnets(spec: BlockSpec) -> int:
    """Count distinct pruned subnets, blocks at their positions: what a supernet can tell apart."""
    return spec.num_archs


def count_published(spec: BlockSpec) -> int:
    """Count as the paper's "without loose ends" does: 3,702 / 12,510 / 137,406.

    These are the distinct pruned subnets, except that where block 1 and a block of several parents
    are both loose ends, the operation of block 1 is counted as well. The rule was found by trying
    rules against the three printed numbers and fits all of them; that the authors counted so is a
    guess, and the extra ones are no subnets of their own. Nothing else here uses it.
    """
    _, used = _pruned(spec)
    several = np.array(spec.num_parents[:-1]) > 1
    twice = ~used[:, 0] & (~used & several).any(axis=1)
    sizes = spec.num_ops ** used.sum(axis=1)
    return int(sizes.sum() + (spec.num_ops - 1) * sizes[twice].sum())


def count_compacted(spec: BlockSpec) -> int:
    """Count pruned subnets of which only the order of the blocks left counts, not their positions.

    Two of them are the same if their matrices and operations are, after loose ends are deleted and
    the blocks renumbered in order.
    """
    seen = {}
    for edges, used in zip(*_pruned(spec), strict=True):
        kept = [0, *(np.flatnonzero(used) + 1), spec.num_blocks + 1]
        seen[edges[np.ix_(kept, kept)].tobytes()] = spec.num_ops ** int(used.sum())
    return sum(seen.values())


def count_hashes(spec: BlockSpec, hashes: npt.NDArray[np.uint8] | None = None) -> int:
    """Count distinct NAS-Bench-101 hashes of the pruned subnets.

    Args:
        spec: The space.
        hashes: What :func:`nb101_hashes` returns, if it is known already.

    Raises:
        ValueError: If the space does not fit into NAS-Bench-101.
        ImportError: If ``nasfast._host`` is not built.
    """
    return len(np.unique(nb101_hashes(spec) if hashes is None else hashes, axis=0))


def count_fully_used(spec: BlockSpec) -> int:
    """Count the subnets without a loose end: a path leads from every block to the output."""
    return int(spec.topologies.used.all(axis=1).sum()) * spec.num_ops**spec.num_blocks


def count_evaluated(spec: BlockSpec) -> int:
    """Count the subnets that the authors' generator finds, see :func:`evaluated_subset`."""
    return len(evaluated_subset(spec))


def counts(spec: BlockSpec, hashes: npt.NDArray[np.uint8] | None = None) -> dict[str, int]:
    """Return every count by name.

    Args:
        spec: The space.
        hashes: What :func:`nb101_hashes` returns, if it is known already.

    Raises:
        ValueError: If the space does not fit into NAS-Bench-101.
        ImportError: If ``nasfast._host`` is not built.
    """
    return {
        "encodings": count_encodings(spec),
        "loose_ended": count_loose_ended(spec),
        "subnets": count_subnets(spec),
        "published": count_published(spec),
        "compacted": count_compacted(spec),
        "hashes": count_hashes(spec, hashes),
        "fully_used": count_fully_used(spec),
        "evaluated": count_evaluated(spec),
    }


def evaluated_subset(spec: BlockSpec) -> IndexArray:
    """Return the subnets whose accuracies the published whole-space correlations compare.

    The authors' generator of architectures without loose ends is incomplete. It grows a graph from
    the output, each time on from one parent of the node that it has just completed, and takes a
    graph when no block lacks parents; two branches that both need parents are never both completed.
    What it finds are the subnets in which every used block lies on one path: from the output to the
    last of its parents, to the last parent of that, and so on.

    Returns:
        Positions in the list of the space, ascending, int64.
    """
    _, edges, used = spec.topologies
    on_path = np.zeros((len(edges), spec.num_blocks + 1), dtype=np.bool_)  # nodes but the output
    rows, node = np.arange(len(edges)), np.full(len(edges), spec.num_blocks + 1)
    for _ in range(spec.num_blocks + 1):
        node = np.where(node == 0, 0, spec.num_blocks + 1 - edges[rows, ::-1, node].argmax(axis=1))
        on_path[rows, node] = True
    taken = (on_path[:, 1:] == used).all(axis=1)
    return np.flatnonzero(taken[spec.topology_ranks(spec.list_array())])


def nb101_hashes(spec: BlockSpec) -> npt.NDArray[np.uint8]:
    """Hash the NAS-Bench-101 cell of every architecture of the list, loose ends pruned.

    Returns:
        uint8 ``[num_archs, 16]``; ``bytes(row).hex()`` is ``spec.to_nb101(arch).hash``.

    Raises:
        ValueError: If the space does not fit into NAS-Bench-101.
        ImportError: If ``nasfast._host`` is not built.
    """
    nodes = spec.num_blocks + 2
    unknown = [op.name for op in spec.ops if op.name not in nb101.OPS]
    if nodes > nb101.MAX_VERTICES or unknown:
        raise ValueError(
            f"spec: wanted at most {nb101.MAX_VERTICES - 2} blocks with operations of "
            f"NAS-Bench-101, got {spec.num_blocks} blocks and {unknown or 'no other operation'}"
        )
    rows = spec.list_array()
    edges = spec.topologies.edges
    bits = np.zeros(len(edges), dtype=np.uint32)
    for bit, (i, j) in enumerate(itertools.combinations(range(nb101.MAX_VERTICES), 2)):
        if j < nodes:
            bits |= edges[:, i, j].astype(np.uint32) << np.uint32(bit)
    numbers = np.array([nb101.OPS.index(op.name) for op in spec.ops], dtype=np.uint8)
    ops = np.full((len(rows), nb101.MAX_VERTICES - 2), nb101.NO_OP, dtype=np.uint8)
    ops[:, : spec.num_blocks] = numbers[rows[:, : spec.num_blocks]]
    sizes = np.full(len(rows), nodes, dtype=np.uint8)
    return nb101.hash_cells(sizes, bits[spec.topology_ranks(rows)], ops)


def _live_edges(spec: BlockSpec) -> BoolArray:
    """Edges of each choice of parents without those into loose ends."""
    edges, used = spec.topologies.edges, spec.topologies.used
    ends = np.ones((len(used), 1), dtype=np.bool_)
    return edges & np.concatenate([ends, used, ends], axis=1)[:, None]


def _pruned(spec: BlockSpec) -> tuple[BoolArray, BoolArray]:
    """Edges and used blocks of the distinct pruned topologies."""
    live = _live_edges(spec)
    _, first = np.unique(live.reshape(len(live), -1), axis=0, return_index=True)
    return live[first], spec.topologies.used[first]
