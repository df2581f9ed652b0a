# SPDX-License-Identifier: MIT
"""From the weights that a one-shot optimiser learns to the architecture that it means.

Source: NAS-Bench-1Shot1's evaluation of one-shot models: the likeliest operation of each block, as
many of the likeliest parents as a node has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.space import Architecture


def discretise(
    spec: BlockSpec,
    alpha: npt.ArrayLike,
    beta: Sequence[npt.ArrayLike],
    gamma: npt.ArrayLike,
) -> Architecture:
    """Return the architecture that architecture weights mean.

    The operation of a block is the one of the largest weight, the parents of a node are the ones of
    the ``num_parents`` largest. Of equal weights the one of the lower index is taken. Weights may
    be logits or probabilities, since softmax keeps their order.

    Blocks that no path joins to the output get an operation and parents as well; they are loose
    ends, which ``spec.pruned`` and ``spec.to_nb101`` leave out, as the authors do by building the
    graph from the output.

    Args:
        spec: The space.
        alpha: Weights of operations, ``[num_blocks, num_ops]``.
        beta: Weights of parents: for each block that has a choice, in order, ``[1, nodes before]``.
        gamma: Weights of parents of the output, ``[1, num_blocks + 1]``; the input is first.
            Each may be an array or a tensor of PyTorch, of any device and with gradients too.

    Raises:
        ValueError: If the space is not one of choice blocks, the number of arrays or a shape
            differs, or a weight is NaN or +infinity.
    """
    if not isinstance(spec, BlockSpec):
        raise ValueError(f"spec: wanted a space of choice blocks, got {spec!r:.80}")
    ops = _weights("alpha", alpha, (spec.num_blocks, spec.num_ops)).argmax(axis=1)
    output = spec.num_blocks + 1
    choosing = [node for node in spec.choosing_nodes if node != output]
    if len(beta) != len(choosing):
        raise ValueError(
            f"beta: {spec.name} has blocks {choosing} with a choice of parents, wanted an array "
            f"for each, got {len(beta)}"
        )
    weights = {
        node: _weights(f"beta[{place}] (block {node})", each, (1, node))
        for place, (node, each) in enumerate(zip(choosing, beta, strict=True))
    }
    weights[output] = _weights("gamma", gamma, (1, output))
    chosen = []
    for node in spec.choosing_nodes:
        count = spec.num_parents[node - 1]
        best = np.argsort(-weights[node][0], kind="stable")[:count]
        chosen.append(spec.parent_choices[node - 1].index(tuple(sorted(best.tolist()))))
    return spec.arch([*ops.tolist(), *chosen])


def _without_gradient(values: Any) -> Any:
    """Take a tensor out of its graph and to the host; PyTorch need not be there for that."""
    if not callable(getattr(values, "detach", None)):
        return values
    tensor = values.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16


def _weights(name: str, values: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.floating]:
    array = np.asarray(_without_gradient(values))
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: wanted real numbers {list(shape)}, got {array.dtype} {list(array.shape)}"
        )
    array = array.astype(np.float64)
    if np.isnan(array).any() or np.isposinf(array).any():
        raise ValueError(f"{name}: wanted weights less than infinity, got NaN or infinity")
    return array
