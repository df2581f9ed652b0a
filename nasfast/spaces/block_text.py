# SPDX-License-Identifier: MIT
"""Reads the strings of spaces of choice blocks; :mod:`nasfast.spaces.block_spec` has the form."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from nasfast.spaces.space import SHOWN
from nasfast.spaces.topologies import Parents


def decisions_of(
    string: str, ops: Sequence[str], parent_choices: Sequence[Sequence[Parents]]
) -> tuple[int, ...]:
    """Return the decisions that a string means.

    Args:
        string: ``|op~parents|+...+|~parents|``.
        ops: Names of the operations.
        parent_choices: The sets of parents that each node after the input may have.

    Raises:
        ValueError: If a group, an operation or a set of parents is none of these; the message names
            the node, what was wanted there and what came.
    """
    groups, shown = string.strip().split("+"), string[:SHOWN]
    if len(groups) != len(parent_choices):
        raise ValueError(
            f"architecture {shown!r}: wanted {len(parent_choices)} groups joined by '+' "
            f"(one for each node after the input), got {len(groups)}"
        )
    chosen_ops, chosen = [], []
    for node, (group, sets) in enumerate(zip(groups, parent_choices, strict=True), start=1):
        where = f"architecture {shown!r}, node {node}"
        output = node == len(parent_choices)
        name, parents = _parts(where, group, output)
        if not output:
            chosen_ops.append(_op(where, name, ops))
        place = _parents(where, node, parents, sets)
        if len(sets) > 1:
            chosen.append(place)
    return (*chosen_ops, *chosen)


def _parts(where: str, group: str, output: bool) -> tuple[str, str]:
    name, sign, parents = group[1:-1].partition("~")
    if len(group) < 3 or (group[0], group[-1], sign) != ("|", "|", "~"):
        form = "|~parents|" if output else "|op~parents|"
        raise ValueError(f"{where}: wanted '{form}', got {group[:SHOWN]!r}")
    if output and name:
        wanted = "the output has no operation, wanted '|~parents|'"
        raise ValueError(f"{where}: {wanted}, got {group[:SHOWN]!r}")
    return name, parents


def _op(where: str, name: str, ops: Sequence[str]) -> int:
    if name not in ops:
        near = difflib.get_close_matches(name[:SHOWN], ops, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{where}: unknown operation {name[:SHOWN]!r}, wanted one of {', '.join(ops)}; "
            f"nearest: {near}"
        )
    return ops.index(name)


def _parents(where: str, node: int, text: str, sets: Sequence[Parents]) -> int:
    texts = [",".join(map(str, parents)) for parents in sets]
    if text not in texts:
        numbers = f"{len(sets[0])} of the nodes 0..{node - 1}, ascending and joined by ','"
        wanted = f"wanted parents {texts[0]!r}" if len(sets) == 1 else f"wanted {numbers}"
        raise ValueError(f"{where}: {wanted}, got {text[:SHOWN]!r}")
    return texts.index(text)
