# SPDX-License-Identifier: MIT
"""Registers of the templates of a program, and what lanes can share of a first cell.

A whole space has a hundred thousand templates and few shapes of them, so registers are given to
each shape once and everything else is done on arrays.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nasfast.program import Program
from nasfast.spaces.spec import IntArray

_Positions = npt.NDArray[np.int64]


class TemplateSteps:
    """The steps of all templates and where in the template their operands are computed.

    Attributes:
        begin: Start of each step's operands, ``[steps + 1]``.
        sources: For each operand the step of its template that computes it, counted from 1; 0 is
            the cell's input.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        steps, counts = program.steps, np.diff(program.operand_begin)[program.steps]
        self.begin: _Positions = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.template: _Positions = np.repeat(
            np.arange(program.num_templates), np.diff(program.template_begin)
        )
        self._owner = np.repeat(np.arange(len(steps)), counts)  # step of each operand
        place = np.arange(len(self._owner)) - np.repeat(self.begin[:-1] - _first(program), counts)
        self.operands = program.operands[place]
        keys = self.template * len(program.opcode) + steps
        order = np.argsort(keys, kind="stable")
        wanted = self.template[self._owner] * len(program.opcode) + self.operands
        at = order[np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)]
        local = at - program.template_begin[self.template[self._owner]] + 1
        self.sources: _Positions = np.where(self.operands == 0, 0, local)

    def shared(self) -> tuple[IntArray, IntArray]:
        """Return what lanes can share of a first cell: convolutions and what those need.

        Returns:
            Start of each template's expressions, int32 ``[templates + 1]``, and the expressions,
            ascending in each template, without the input, int32.
        """
        program = self.program
        needed = np.array(program.is_conv)[program.steps]
        lengths = np.diff(program.template_begin)
        counts = np.diff(self.begin)
        for position in reversed(range(int(lengths.max()))):  # users before operands
            step = program.template_begin[:-1][lengths > position] + position
            step = step[needed[step]]
            for k in range(int(counts[step].max(initial=0))):
                user = step[counts[step] > k]
                source = self.sources[self.begin[user] + k]
                inner = source > 0
                start = program.template_begin[self.template[user[inner]]]
                needed[start + source[inner] - 1] = True
        needed &= program.steps != 0
        template, expression = self.template[needed], program.steps[needed]
        order = np.lexsort((expression, template))
        sizes = np.bincount(template, minlength=program.num_templates)
        begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return begin, expression[order]

    def allocate(self) -> tuple[IntArray, IntArray, IntArray]:
        """Give every step a register; a register is free again after the last use of its value.

        Returns:
            The register that each step writes, those that its operands are read from, and the
            number of registers of each template.
        """
        begin = self.program.template_begin.astype(np.int64)
        counts = np.diff(self.begin)
        # A shape is written as the number of operands of each step, and where they come from.
        shape_of_steps = counts.astype(np.int32).tobytes()
        shape_of_sources = self.sources.astype(np.int32).tobytes()
        known: dict[tuple[bytes, bytes], int] = {}
        found: list[tuple[IntArray, IntArray, int]] = []
        chosen = []
        operand_begin = self.begin[begin]
        bounds = zip(pairwise(begin.tolist()), pairwise(operand_begin.tolist()), strict=True)
        for (a, b), (c, d) in bounds:
            key = (shape_of_steps[4 * a : 4 * b], shape_of_sources[4 * c : 4 * d])
            shape = known.setdefault(key, len(found))
            if shape == len(found):
                found.append(_allocate(counts[a:b].tolist(), self.sources[c:d].tolist()))
            chosen.append(found[shape])
        return (
            np.concatenate([registers for registers, _, _ in chosen]),
            np.concatenate([sources for _, sources, _ in chosen]),
            np.array([count for _, _, count in chosen], dtype=np.int32),
        )


def _first(program: Program) -> _Positions:
    return program.operand_begin[:-1][program.steps].astype(np.int64)


def _allocate(counts: list[int], sources: list[int]) -> tuple[IntArray, IntArray, int]:
    """Give the steps of one template registers.

    Args:
        counts: Operands of each step.
        sources: As of :class:`TemplateSteps`.
    """
    values = iter(sources)
    operands = [[next(values) for _ in range(count)] for count in counts]
    last_use = {source: k for k, own in enumerate(operands) for source in own}
    at = {0: 0}
    free: list[int] = []
    count = 1
    for k, own in enumerate(operands):
        # The destination is taken before operands are released: no step works in place.
        if free:
            at[k + 1] = free.pop()
        else:
            at[k + 1] = count
            count += 1
        for source in dict.fromkeys(own):
            # The input stays: a residual of the skeleton never reads it, but a later step may.
            if source != 0 and last_use[source] == k:
                free.append(at[source])
    return (
        np.array([at[k + 1] for k in range(len(counts))], dtype=np.int32),
        np.array([at[source] for source in sources], dtype=np.int32),
        count,
    )
