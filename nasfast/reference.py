# SPDX-License-Identifier: MIT
"""The reference backend: a program run by plain PyTorch. It is the definition.

Every other backend is proved against what this file computes with the operations of
:mod:`nasfast.primitives`. It is written to be read. Values are
``[batch, channels, height, width]``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast.layout import Layout
from nasfast.lower import BatchNormMode, Opcode
from nasfast.primitives import (
    Unit,
    add,
    avg_pool,
    batch_statistics,
    classify,
    concat,
    convolve,
    max_halve,
    max_pool,
    mix,
    normalise,
    normalise_batch,
    shortcut,
)
from nasfast.program import Program
from nasfast.units import FIELDS


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Where batch norm takes its statistics from, for each part of the network.

    ``"batch"``: mean and biased variance of the minibatch. ``"running"``: the supernet's running
    statistics. ``"recalibrate"``: mean and biased variance over all calibration images, pooled,
    measured for each lane layer by layer, with the other parts in their own modes.

    Attributes:
        cells: Mode of the search cells.
        fixed: Mode of stem and reductions.
        last: Mode of the batch norm before the classifier.
    """

    cells: BatchNormMode = "batch"
    fixed: BatchNormMode = "batch"
    last: BatchNormMode = "batch"

    def __post_init__(self) -> None:
        """Check every mode.

        Raises:
            ValueError: If a part is no mode.
        """
        known = get_args(BatchNormMode)
        if any(mode not in known for mode in (self.cells, self.fixed, self.last)):
            raise ValueError(
                f"bn: wanted cells[/others] with each of {', '.join(known)}, got '{self}'"
            )

    @classmethod
    def parse(cls, text: str) -> BatchNorm:
        """Read ``"batch"`` (all parts), ``"batch/running"`` (cells/others) or three parts.

        Raises:
            ValueError: If a part is no mode.
        """
        parts: list[Any] = text.split("/")
        if len(parts) > 3:
            raise ValueError(f"bn: wanted cells[/others], got {text!r}")
        return cls(parts[0], parts[min(1, len(parts) - 1)], parts[-1])

    @property
    def recalibrates(self) -> bool:
        """Whether any part does."""
        return "recalibrate" in (self.cells, self.fixed, self.last)

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads."""
        return f"{self.cells}/{self.fixed}/{self.last}"


# Batch norm of a network: which statistics, by part and place.

Place = tuple[int, int]  # (position in the skeleton, expression or unit within it)


@dataclass
class Normaliser:
    """Applies batch norm in the mode of each part, and records or updates statistics on request.

    Attributes:
        modes: Mode of each part.
        update: Whether running statistics are updated (training).
        pooled: Statistics of this lane by place, for parts in mode ``"recalibrate"``; while
            ``recording`` they are measured from the (pooled) images at hand.
        recording: Sizes of the calibration minibatches that lie behind one another in the images
            at hand, while they are measured; empty otherwise.
    """

    modes: BatchNorm
    update: bool = False
    pooled: dict[Place, tuple[Tensor, Tensor]] = field(default_factory=dict)
    recording: Sequence[int] = ()

    def __call__(self, x: Tensor, unit: Unit, part: str, place: Place) -> Tensor:
        """Normalise ``x`` at a place of a part (``cells``, ``fixed`` or ``last``)."""
        mode = getattr(self.modes, part)
        if mode == "batch" and self.recording:
            minibatches = x.split(list(self.recording))
            return torch.cat([normalise_batch(minibatch, unit) for minibatch in minibatches])
        if mode == "batch":
            return normalise_batch(x, unit, update=self.update)
        if mode == "recalibrate":
            if self.recording:
                self.pooled[place] = batch_statistics(x)
            return normalise(x, *self.pooled[place], unit)
        assert unit.mean is not None and unit.variance is not None
        return normalise(x, unit.mean, unit.variance, unit)


# The walk over a network.

_OF_UNIT = (Opcode.CONV, Opcode.CONV_RELU, Opcode.CUT)


class Weights:
    """The tensors of a weight set by unit.

    Args:
        layout: Offsets.
        tensors: Tensors by name, as from ``Supernet.named_tensors``.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        rows: list[dict[str, Tensor | None]] = [dict.fromkeys(FIELDS) for _ in layout.offsets]
        for param in layout.params:
            rows[param.unit][param.field] = tensors[param.name]
        self.units = [
            Unit(**row, momentum=shape.momentum, channels=shape.out_channels)
            for row, shape in zip(rows, layout.shapes, strict=True)
        ]


class Executor:
    """Runs the lanes of one program under one weight set.

    Args:
        program: What to compute.
        weights: The weight set.
    """

    def __init__(self, program: Program, weights: Weights) -> None:
        self.program, self.units = program, weights.units
        self.positions = program.layout.positions
        self._opcode = program.opcode.tolist()
        self._param = program.param.tolist()
        self._networks = program.networks.tolist()
        self._pools: dict[int, Callable[[Tensor, int], Tensor]] = {
            Opcode.AVG_POOL: avg_pool,
            Opcode.MAX_POOL: max_pool,
        }

    def stem(self, images: Tensor, norm: Normaliser) -> Tensor:
        """Convolution and batch norm; with a ReLU in spaces whose operations end with one."""
        unit = self.units[self.positions[0].unit]
        y = norm(convolve(images, unit), unit, "fixed", (0, 0))
        return F.relu(y) if self.positions[0].kind == "relu_stem" else y

    def shared(
        self, stem: Tensor, expressions: Sequence[int], norm: Normaliser
    ) -> dict[int, Tensor]:
        """Compute expressions of the first cell, in order, for all lanes that use them."""
        return self._cell(expressions, stem, {}, norm, index=1, keep=True)

    def logits(
        self, network: int, stem: Tensor, shared: Mapping[int, Tensor], norm: Normaliser,
        mixing: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run one network from the stem's output on.

        Args:
            network: Row of ``program.networks``.
            stem: Output of :meth:`stem`.
            shared: Values of first-cell expressions computed already.
            norm: Batch norm.
            mixing: Mixing weights of each search cell, ``[cells, num_edges * num_ops]``; for
                programs that mix operations. All that the program mixes is computed, whatever its
                weight: what may rest is left out when the program is built.

        Returns:
            ``[batch, classes]``.

        Raises:
            ValueError: If the program mixes operations and there are no weights.
        """
        if mixing is None and self.program.is_joint:
            raise ValueError("mixing: wanted the mixing weights of a joint program, got none")
        templates = self._networks[network]
        x = stem
        for index, position in enumerate(self.positions):
            if position.kind == "cell":
                known = shared if position.cell == 0 else {}
                steps = self.program.template(templates[position.cell])
                row = None if mixing is None else mixing[position.cell]
                x = self._cell(steps, x, known, norm, index, row, keep=False)[steps[-1]]
            elif position.kind == "reduction":
                x = self._reduction(x, index, norm)
            elif position.kind == "max_pool":
                x = max_halve(x, self.program.layout.padding)
            elif position.kind.endswith("head"):
                x = self._head(x, index, norm)
        return x

    def _head(self, x: Tensor, index: int, norm: Normaliser) -> Tensor:
        """Return logits; what is before the mean over the image is the kind's own."""
        kind, first = self.positions[index].kind, self.positions[index].unit
        if kind == "linear_head":
            return classify(x, self.units[first])
        last, classifier = self.units[first : first + 2]
        if kind == "projected_head":
            return classify(norm(convolve(F.relu(x), last), last, "last", (index, 0)), classifier)
        return classify(F.relu(norm(x, last, "last", (index, 0))), classifier)

    def _reduction(self, x: Tensor, index: int, norm: Normaliser) -> Tensor:
        """Return ``shortcut(x) + conv_b(conv_a(x))``; the shortcut reads ``x`` without ReLU."""
        first = self.positions[index].unit
        conv_a, conv_b, pooled = self.units[first : first + 3]
        y = norm(convolve(F.relu(x), conv_a, stride=2), conv_a, "fixed", (index, 0))
        y = norm(convolve(F.relu(y), conv_b), conv_b, "fixed", (index, 1))
        return shortcut(x, pooled) + y

    def _cell(
        self, steps: Sequence[int], cell_input: Tensor, known: Mapping[int, Tensor],
        norm: Normaliser, index: int, mixing: Tensor | None = None, *, keep: bool,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Compute steps of the cell at a position, in order.

        Returns:
            The values of all steps, or, unless they are to be kept, of those not used up.
        """
        values = {0: cell_input, **known}
        uses = Counter(o for step in steps for o in self.program.operands_of(step))
        for step in steps:
            operands = self.program.operands_of(step)
            if step not in values:
                inputs = [values[operand] for operand in operands]
                values[step] = self._step(step, inputs, cell_input, norm, index, mixing)
            uses.subtract(operands)
            for operand in set(operands):
                if not keep and uses[operand] == 0:
                    values.pop(operand, None)
        return values

    def _step(
        self, step: int, operands: list[Tensor], cell_input: Tensor, norm: Normaliser, index: int,
        mixing: Tensor | None,
    ) -> Tensor:  # fmt: skip
        opcode, param = self._opcode[step], self._param[step]
        unit = self.units[self.positions[index].unit + param] if opcode in _OF_UNIT else None
        if unit is not None:
            if opcode == Opcode.CUT:
                return operands[0][:, : unit.channels]
            if opcode == Opcode.CONV_RELU:
                return F.relu(norm(convolve(operands[0], unit), unit, "cells", (index, step)))
            return norm(convolve(F.relu(operands[0]), unit), unit, "cells", (index, step))
        if opcode == Opcode.SUM:
            return add(operands)
        if opcode == Opcode.MIX:
            assert mixing is not None
            sources = self.program.operands_of(step)  # zero contributes nothing: no 0 * weight
            live = [k for k, source in enumerate(sources) if self._opcode[source] != Opcode.ZERO]
            return mix([operands[k] for k in live], mixing[[param + k for k in live]])
        if opcode == Opcode.CONCAT:
            return concat(operands, param, self.positions[index].out_channels)
        if opcode == Opcode.COPY:
            return operands[0]
        if opcode == Opcode.ZERO:
            # Structural: zeros even where the operand is not finite (peers multiply by 0).
            return torch.zeros_like(operands[0] if operands else cell_input)
        return self._pools[opcode](operands[0], param)
