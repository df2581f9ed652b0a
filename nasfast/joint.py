# SPDX-License-Identifier: MIT
"""The joint supernet: every edge computes the weighted sum of all its candidate operations.

Gradient-based selection (DARTS and its family) trains mixing weights and shared weights through
it. How the weights come about (softmax, Gumbel, ...) is the caller's; here they are given.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from nasfast.inputs import check_batch_norm
from nasfast.layout import Layout
from nasfast.lower import Mode
from nasfast.program import Program, build_joint, joint_mask
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.reference_mixed import resting
from nasfast.spaces.spec import BoolArray
from nasfast.supernet import Supernet

JointBackend = Literal["auto", "reference"]


def joint_forward(
    supernet: Supernet,
    images: Tensor,
    weights: Tensor,
    *,
    mask: BoolArray | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    bn: BatchNorm | str = "batch",
    update: bool = False,
    backend: JointBackend = "auto",
) -> Tensor:
    """Run the joint supernet on a minibatch; differentiable in images, weights and tensors.

    Edge ``e`` is the sum over ``k``, in order, of ``weights[e, k]`` times operation ``k``; a node
    is the sum of its edges, in order. An operation whose weight is 0 in a cell is left out there if
    the weights need no gradient; it and what only it feeds then rest (gradient None, statistics
    unchanged), so that one-hot weights give the bits of the single path. Weights that need a
    gradient leave nothing out.

    The operation ``none`` carries zero, and the gradient of its weight is exactly 0. (Peers
    multiply by 0.0, which is the same as long as every value is finite.)

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
        backend: ``"reference"``: plain PyTorch, the definition; ``"auto"``: the fastest there is.

    Returns:
        Logits, ``[batch, classes]``.

    Raises:
        ValueError: If an argument does not fit.

    Definition:
        :func:`nasfast.reference_mixed.mixed_op` on every edge.

    Source:
        Liu et al., DARTS, ICLR 2019, section 2.2; Dong and Yang, NAS-Bench-201, ICLR 2020.
    """
    config, layout = supernet.config, supernet.layout
    if backend not in get_args(JointBackend):
        raise ValueError(f"backend: wanted {', '.join(get_args(JointBackend))}, got {backend!r}")
    modes = check_batch_norm(config, bn)
    if modes.recalibrates:
        raise ValueError(f"bn: the joint supernet does not recalibrate, got {str(modes)!r}")
    _check_images(supernet, images)
    mixing = _mixing(supernet, weights)
    allowed = joint_mask(layout, mask)
    allowed = allowed & ~resting(mixing).cpu().numpy().reshape(allowed.shape)
    program = _program(layout, Mode(modes.cells, config.affine), allowed.tobytes())
    own = _tensors(supernet, tensors)
    # The engine's place: for backend "auto", an autograd.Function of images, mixing and own over
    # the packed table of this program. Until it is there, "auto" is the reference.
    executor, norm = Executor(program, Weights(layout, own)), Normaliser(modes, update=update)
    return executor.logits(0, executor.stem(images, norm), {}, norm, mixing)


def _mixing(supernet: Supernet, weights: Tensor) -> Tensor:
    """Return the weights of each search cell as a row, ``[cells, num_edges * num_ops]``."""
    spec, cells = supernet.config.spec, supernet.layout.num_cells
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
    spec = layout.config.spec
    mask = np.frombuffer(allowed, dtype=np.bool_)
    return build_joint(layout, mode=mode, mask=mask.reshape(-1, spec.num_edges, spec.num_ops))


def _tensors(supernet: Supernet, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return every tensor by name; running statistics without a gradient."""
    params = supernet.layout.params
    if tensors is None:
        own = dict(supernet.named_tensors())
        return {p.name: own[p.name].detach() if p.is_buffer else own[p.name] for p in params}
    for p in params:
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
