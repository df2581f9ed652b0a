# SPDX-License-Identifier: MIT
"""The joint supernet on an engine: functions of autograd over its packed program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast import native
from nasfast.program import Program, trained_units
from nasfast.slow_paths import warn_of_slow_paths
from nasfast.supernet import Supernet
from nasfast.units import ParamSpec

_Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class JointRun:
    """One minibatch through a joint program.

    Attributes:
        program: The joint supernet; one lane.
        table: Its packed form for images of this size, int32.
        supernet: Gives shape and arena, float32.
        tensors: Tensors by name to use instead of the supernet's; None: its arena.
        images: float32 ``[batch, channels, height, width]``.
        mixing: Mixing weights, float32 ``[cells, num_edges * num_ops]``.
        update: Whether to update running statistics.
        precision: ``"fp32"``, ``"bf16"``, or on a card ``"tf32"``.
        threads: Threads.
    """

    program: Program
    table: Tensor
    supernet: Supernet
    tensors: Mapping[str, Tensor] | None
    images: Tensor
    mixing: Tensor
    update: bool
    precision: str
    threads: int

    def logits(self) -> Tensor:
        """Return logits, float32 ``[batch, classes]``; the way back computes them once more."""
        apply: Callable[..., Tensor] = _Logits.apply
        return apply(self, *self._inputs())

    def loss(self, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy; its gradients are computed with it where any is needed.

        Args:
            labels: int64 ``[batch]``.
        """
        inputs = self._inputs()
        needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        apply: Callable[..., Tensor] = _Loss.apply
        return apply(self, labels.contiguous(), needed, *inputs)

    def _inputs(self) -> list[Tensor | None]:
        """Return what a gradient may reach: mixing weights, then the arena or trained tensors."""
        width = self.program.mixing_width
        mixing = self.mixing[:, :width].contiguous() if width else None
        if self.tensors is None:
            return [mixing, self.supernet.arena]
        return [mixing, *(self.tensors[p.name] for p in self.trained)]

    @cached_property
    def trained(self) -> list[ParamSpec]:
        """The parameters that the loss depends on; the others rest."""
        units = trained_units(self.program, 0)
        params = self.supernet.layout.params
        return [p for p in params if p.unit in units and not p.is_buffer]

    def arena(self) -> Tensor:
        """Return the arena, or a copy with the tensors in it where they lie elsewhere."""
        arena = self.supernet.arena.detach().contiguous()
        if self.tensors is None or self._shares(arena, self.tensors):
            return arena
        packed = Supernet(self.supernet.config, arena.clone(), self.supernet.layout)
        for name, view in packed.named_tensors():
            view.copy_(self.tensors[name])
        return packed.arena

    def _shares(self, arena: Tensor, tensors: Mapping[str, Tensor]) -> bool:
        begin, size = arena.data_ptr(), arena.element_size()
        return all(
            tensors[p.name].data_ptr() == begin + p.offset * size
            and tensors[p.name].is_contiguous()
            for p in self.supernet.layout.params
        )

    def run(
        self, arena: Tensor, mixing: Tensor | None, *, update: bool = False, **what: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Call the operator; ``what`` is labels or gradients of the logits, or nothing."""
        if not arena.is_cuda:
            warn_of_slow_paths()
        # Through .data, as batch norm of PyTorch does it: statistics of the minibatch do not read
        # what is updated, so nothing that autograd saved becomes invalid.
        running = arena.data if update else None
        logits, of_arena, of_mixing = native.ops().program_gradients(
            self.table, arena, self.images.detach().contiguous(), mixing=mixing,
            classes=self.supernet.config.classes, precision=self.precision, threads=self.threads,
            running=running, **what,
        )  # fmt: skip
        if update and self.tensors is not None and not self._shares(arena, self.tensors):
            updated = Supernet(self.supernet.config, arena, self.supernet.layout)
            for p in self.supernet.layout.params:
                if p.is_buffer:
                    self.tensors[p.name].data.copy_(updated.view(p))
        return logits, of_arena, of_mixing

    def split(self, of_arena: Tensor, needs: Sequence[bool]) -> _Gradients:
        """Return the gradients of what :meth:`_inputs` gives after the mixing weights."""
        if self.tensors is None:
            return (of_arena,)
        return tuple(
            of_arena[p.offset : p.offset + p.size].view(p.shape) if need else None
            for p, need in zip(self.trained, needs, strict=True)
        )


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: JointRun, mixing: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:  # fmt: skip
        arena = run.arena()
        logits, _, _ = run.run(arena, mixing, update=run.update)
        ctx.run = run
        ctx.save_for_backward(arena, mixing)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        _refuse_second_derivatives()
        arena, mixing = ctx.saved_tensors
        _, of_arena, of_mixing = ctx.run.run(arena, mixing, grad_logits=grad.contiguous())
        of_weights = ctx.run.split(of_arena, ctx.needs_input_grad[2:])
        return None, None if mixing is None else of_mixing, *of_weights


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: JointRun, labels: Tensor, needed: bool, mixing: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:  # fmt: skip
        what = dict(labels=labels) if needed else {}
        logits, of_arena, of_mixing = run.run(run.arena(), mixing, update=run.update, **what)
        ctx.run = run
        ctx.save_for_backward(of_arena, None if mixing is None else of_mixing)
        return F.cross_entropy(logits, labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        _refuse_second_derivatives()
        of_arena, of_mixing = ctx.saved_tensors
        of_weights = ctx.run.split(of_arena * grad, ctx.needs_input_grad[4:])
        return None, None, None, None if of_mixing is None else of_mixing * grad, *of_weights


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # on the way back: create_graph=True
        raise RuntimeError(
            "joint supernet: the engine has no second derivatives (create_graph=True); use "
            "backend='reference'"
        )
