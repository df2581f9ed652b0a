# SPDX-License-Identifier: MIT
"""The joint supernet: every edge computes the weighted sum of all its candidate operations.

Gradient-based selection (DARTS and its family) trains mixing weights and shared weights through
it. How the weights come about (softmax, Gumbel, ...) is the caller's; here they are given.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast import cuda_device, slow_paths
from nasfast.backends import (
    PRECISIONS,
    Precision,
    ScoreBackend,
    check_score_backend,
    choose_backend,
)
from nasfast.evaluate import check_threads
from nasfast.inputs import check_batch_norm
from nasfast.joint_engine import JointRun
from nasfast.layout import Layout
from nasfast.lower import Mode
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import Program, build_joint, joint_mask, mixed_space
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.reference_mixed import resting
from nasfast.spaces.spec import BoolArray
from nasfast.supernet import Supernet


def joint_forward(
    supernet: Supernet,
    images: Tensor,
    weights: Tensor,
    *,
    mask: BoolArray | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    bn: BatchNorm | str = "batch",
    update: bool = False,
    backend: ScoreBackend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
) -> Tensor:
    """Run the joint supernet on a minibatch; differentiable in images, weights and tensors.

    Edge ``e`` is the sum over ``k``, in order, of ``weights[e, k]`` times operation ``k``; a node
    is the sum of its edges, in order. An operation whose weight is 0 in a cell is left out there if
    the weights need no gradient; it and what only it feeds then rest (gradient None, statistics
    unchanged), so that one-hot weights give the single path: its bits on the reference, equal but
    for rounding on the engine. Weights that need a gradient leave nothing out.

    The operation ``none`` carries zero, and the gradient of its weight is exactly 0. (Peers
    multiply by 0.0, which is the same as long as every value is finite.)

    On the engine the way back computes the way forward once more, so training steps are cheaper
    by :func:`joint_loss`; and there are no second derivatives.

    Args:
        supernet: Shared weights; a gradient reaches them through an ``arena`` that requires one, or
            through ``tensors``.
        images: ``[batch, channels, height, width]``, dtype of the arena.
        weights: Mixing weights, already normalised, ``[num_edges, num_ops]`` for all search cells
            or ``[cells, num_edges, num_ops]``, dtype of the arena.
        mask: Operations that may be mixed, bool, shaped like the weights; the others are left out
            whatever their weight, whose gradient is 0. All when left out.
        tensors: Tensors by name to use instead of the supernet's own, as from
            :meth:`Supernet.leaves`: then each has its own gradient.
        bn: Batch-norm modes; a string as :meth:`BatchNorm.parse` reads it. None may recalibrate.
        update: Update running statistics where batch norm uses the minibatch's and the supernet
            keeps some, in place, as a training step does.
        backend: ``"reference"``: plain PyTorch, the definition; ``"cpu"`` and ``"cuda"``: the
            engine, for tensors that are there, which takes float32, statistics of the minibatch in
            every part, weights on edges, and images that need no gradient; ``"auto"``: the engine
            of the tensors' device where it can, otherwise the reference, with a line in the log,
            once for each reason.
        precision: ``"fp32"`` or ``"fp64"``: that of the arena; ``"bf16"``, of a float32 arena and
            on the engine alone: operands of convolutions, values and their gradients bfloat16;
            weights, their gradients, sums and statistics float32; ``"tf32"``, of one on a card:
            operands of convolutions rounded to 10 bits behind the point. That of the arena when
            left out.
        threads: Threads of the engine, which change no bit; PyTorch's number when left out.

    Returns:
        Logits, ``[batch, classes]``, dtype of the arena.

    Raises:
        ValueError: If an argument does not fit.
        ImportError: If the engine is wanted and not built.

    Definition:
        :func:`nasfast.reference_mixed.mixed_op` on every edge.

    Source:
        Liu et al., DARTS, ICLR 2019, section 2.2; Dong and Yang, NAS-Bench-201, ICLR 2020.
    """
    call = _call(supernet, images, weights, mask, tensors, bn, update)
    if call.runs_on_engine(backend, precision):
        return call.on_engine(precision or "fp32", threads).logits()
    return call.by_reference()


def joint_loss(
    supernet: Supernet,
    images: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    mask: BoolArray | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    bn: BatchNorm | str = "batch",
    update: bool = False,
    backend: ScoreBackend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the joint supernet on a minibatch.

    On the engine the gradients are computed together with the loss where anything needs one;
    the way back only scales them. Training steps in the manner of DARTS call this.

    Args:
        supernet: As in :func:`joint_forward`.
        images: As in :func:`joint_forward`.
        labels: int64 ``[batch]``.
        weights: As in :func:`joint_forward`.
        mask: As in :func:`joint_forward`.
        tensors: As in :func:`joint_forward`.
        bn: As in :func:`joint_forward`.
        update: As in :func:`joint_forward`.
        backend: As in :func:`joint_forward`.
        precision: As in :func:`joint_forward`.
        threads: As in :func:`joint_forward`.

    Returns:
        One number, dtype of the arena.

    Raises:
        ValueError: If an argument does not fit.
        ImportError: If the engine is wanted and not built.

    Definition:
        ``cross_entropy(joint_forward(...), labels)``.
    """
    call = _call(supernet, images, weights, mask, tensors, bn, update)
    _check_labels(supernet, images, labels)
    if call.runs_on_engine(backend, precision):
        return call.on_engine(precision or "fp32", threads).loss(labels)
    return F.cross_entropy(call.by_reference(), labels)


@dataclass(frozen=True, eq=False)
class _Call:
    """Checked arguments."""

    supernet: Supernet
    images: Tensor
    mixing: Tensor
    mode: Mode
    allowed: bytes
    tensors: Mapping[str, Tensor] | None
    modes: BatchNorm
    update: bool

    @property
    def program(self) -> Program:
        return _program(self.supernet.layout, self.mode, self.allowed)

    def runs_on_engine(self, backend: ScoreBackend, precision: Precision | None) -> bool:
        dtype = self.supernet.arena.dtype
        own: Precision = "fp64" if dtype == torch.float64 else "fp32"
        chosen = self._choose(backend, precision or own)
        if precision is not None and (precision == "fp64") != (own == "fp64"):
            raise ValueError(f"precision: wanted {own} of a supernet in {dtype}, got {precision!r}")
        why = "float64" if chosen == "reference" else self._why_not(chosen)
        if why and (backend in ("cpu", "cuda") or precision in ("bf16", "tf32")):
            name = {"cpu": "CPU", "cuda": "CUDA"}.get(chosen)
            raise ValueError(f"backend: the {name} engine does not take this call ({why})")
        if why and backend == "auto":
            slow_paths.warn_of_reference("joint supernet", why)
        return not why

    def _choose(self, backend: ScoreBackend, precision: Precision) -> str:
        check_score_backend(backend, precision, self.modes)
        is_there = self.supernet.arena.is_cuda and precision in PRECISIONS["cuda"]
        if backend == "cuda" or (backend == "auto" and is_there):
            return "cuda"
        return choose_backend(backend, precision)

    def _why_not(self, engine: str) -> str:
        """Return why an engine does not take the call; empty where it does."""
        config, arena = self.supernet.config, self.supernet.arena
        if self.modes != BatchNorm():
            return "running statistics serve"
        if config.weights_on == "node":
            return "weights on nodes"
        if self.images.requires_grad and torch.is_grad_enabled():
            return "a gradient of the images"
        tensors = [arena, self.images, *(self.tensors or {}).values()]
        if engine != arena.device.type or any(
            tensor.device != arena.device or tensor.dtype != torch.float32 for tensor in tensors
        ):
            place = "the CPU" if engine == "cpu" else "one CUDA device"
            return f"tensors other than float32 on {place}"
        layout = self.supernet.layout
        height, width = self.images.shape[2:]
        elements = len(self.images) * layout.pixels(height, width, layout.positions[-1].halvings)
        if elements == 1 and (config.track or config.fixed_track or config.last_track):
            return "running statistics of one element a channel"
        return cuda_device.why_not() if engine == "cuda" else ""

    def on_engine(self, precision: str, threads: int | None) -> JointRun:
        batch, _, height, width = self.images.shape
        layout = self.supernet.layout
        table = _table(layout, self.mode, self.allowed, batch, height, width)
        return JointRun(
            self.program, table, self.supernet, self.tensors, self.images, self.mixing, self.update,
            precision, check_threads(threads),
        )  # fmt: skip

    def by_reference(self) -> Tensor:
        own = self.tensors
        if own is None:
            params = self.supernet.layout.params
            own = {
                name: tensor.detach() if param.is_buffer else tensor
                for param, (name, tensor) in zip(params, self.supernet.named_tensors(), strict=True)
            }
        executor = Executor(self.program, Weights(self.supernet.layout, own))
        norm = Normaliser(self.modes, update=self.update)
        return executor.logits(0, executor.stem(self.images, norm), {}, norm, self.mixing)


def _call(
    supernet: Supernet, images: Tensor, weights: Tensor, mask: BoolArray | None,
    tensors: Mapping[str, Tensor] | None, bn: BatchNorm | str, update: bool,
) -> _Call:  # fmt: skip
    config, layout = supernet.config, supernet.layout
    modes = check_batch_norm(config, bn)
    if modes.recalibrates:
        raise ValueError(f"bn: the joint supernet does not recalibrate, got {str(modes)!r}")
    _check_images(supernet, images)
    mixing = _mixing(supernet, weights)
    allowed = joint_mask(layout, mask)
    allowed = allowed & ~resting(mixing).cpu().numpy().reshape(allowed.shape)
    mode = Mode(modes.cells, config.affine)
    own = None if tensors is None else _tensors(supernet, tensors)
    return _Call(supernet, images, mixing, mode, allowed.tobytes(), own, modes, update)


def _mixing(supernet: Supernet, weights: Tensor) -> Tensor:
    """Return the weights of each search cell as a row, ``[cells, num_edges * num_ops]``."""
    spec, cells = mixed_space(supernet.layout), supernet.layout.num_cells
    shape = (spec.num_edges, spec.num_ops)
    dtype, device = supernet.arena.dtype, supernet.arena.device
    fits = tuple(weights.shape) in (shape, (cells, *shape))
    if not fits or weights.dtype != dtype or weights.device != device:
        raise ValueError(
            f"weights: wanted {dtype} {list(shape)} or {[cells, *shape]} on {device}, "
            f"got {weights.dtype} {list(weights.shape)} on {weights.device}"
        )
    return weights.expand(cells, *shape).reshape(cells, -1)


@functools.lru_cache(maxsize=32)
def _program(layout: Layout, mode: Mode, allowed: bytes) -> Program:
    spec = mixed_space(layout)
    mask = np.frombuffer(allowed, dtype=np.bool_)
    return build_joint(layout, mode=mode, mask=mask.reshape(-1, spec.num_edges, spec.num_ops))


@functools.lru_cache(maxsize=32)
def _table(
    layout: Layout, mode: Mode, allowed: bytes, batch: int, height: int, width: int
) -> Tensor:  # fmt: skip
    program = _program(layout, mode, allowed)
    return torch.from_numpy(
        plan(program, batch=batch, height=height, width=width, memory=UNBOUNDED).table()
    )


def _tensors(supernet: Supernet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor by name."""
    for p in supernet.layout.params:
        given = tensors.get(p.name)
        if given is None or tuple(given.shape) != p.shape:
            got = "none" if given is None else str(list(given.shape))
            raise ValueError(f"tensors[{p.name!r}]: wanted {list(p.shape)}, got {got}")
    return dict(tensors)


def _check_images(supernet: Supernet, images: Tensor) -> None:
    config = supernet.config
    shape, dtype = tuple(images.shape), supernet.arena.dtype
    fits = len(shape) == 4 and shape[1] == config.in_channels and min(shape) > 0
    if not fits or images.dtype != dtype:
        raise ValueError(
            f"images: wanted {dtype} [batch, {config.in_channels}, height, width], "
            f"got {images.dtype} {list(shape)}"
        )


def _check_labels(supernet: Supernet, images: Tensor, labels: Tensor) -> None:
    count, classes = len(images), supernet.config.classes
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise ValueError(f"labels: wanted int64 [{count}], got {labels.dtype} {list(labels.shape)}")
    low, high = (int(number) for number in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: wanted 0..{classes - 1}, got {low if low < 0 else high}")
