# SPDX-License-Identifier: MIT
"""NAS-Bench-201 (topology space): 4 nodes, 6 edges, 5 candidate operations, 15,625 architectures.

Source: Dong and Yang, NAS-Bench-201, ICLR 2020, section 2.1.
"""

from __future__ import annotations

from nasfast.spaces.spec import Architecture, CellSpec, OpKind, OpSpec

NB201 = CellSpec(
    name="nb201",
    title="NAS-Bench-201",
    num_nodes=4,
    edges=((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
    ops=(
        OpSpec("none", OpKind.ZERO),
        OpSpec("skip_connect", OpKind.IDENTITY),
        OpSpec("nor_conv_1x1", OpKind.CONV, 1),
        OpSpec("nor_conv_3x3", OpKind.CONV, 3),
        OpSpec("avg_pool_3x3", OpKind.AVG_POOL, 3),
    ),
    # The official list is the lexicographic one, shuffled once by Python's generator.
    index_seed=88,
)


def isomorphism_key(arch: Architecture) -> str:
    """Return a string that equal stand-alone networks share, as the benchmark's authors count them.

    Stand-alone networks train their own weights, so an edge has no identity of its own: the value
    of a node is the sorted list of what flows in, where skip connections are transparent, and an
    edge that carries zero, or whose source is a single zero, contributes a zero.

    Two traps make this the benchmark's count (6,466 distinct strings) and not a mathematical one:
    zeros stay in the list, so a sum with one more zero counts as another network; and a sum that
    passes through a skip connection is spliced in as text, so which nested sums coincide depends
    on how the signs sort (zero ``#``, brackets, input ``0``). The signs are therefore part of the
    definition. It must not be used to merge subnets of a supernet, where every edge has weights of
    its own: see :mod:`nasfast.lower`.

    Raises:
        ValueError: If the space has its operations elsewhere than on edges.
    """
    spec = arch.spec
    if not isinstance(spec, CellSpec):
        raise ValueError(f"arch: wanted one with operations on edges, got one of {spec.name}")
    values = ["0"] + [""] * (spec.num_nodes - 1)
    for node in range(1, spec.num_nodes):
        terms = []
        for (source, target), k in zip(spec.edges, arch.op_indices, strict=True):
            if target != node:
                continue
            op = spec.ops[k]
            if op.kind == OpKind.ZERO or values[source] == "#":
                terms.append("#")
            elif op.kind == OpKind.IDENTITY:
                terms.append(values[source])
            else:
                terms.append(f"({values[source]})@{op.name}")
        values[node] = "+".join(sorted(terms))
    return values[-1]
