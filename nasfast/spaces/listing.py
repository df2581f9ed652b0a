# SPDX-License-Identifier: MIT
"""A whole space as arrays and as numbers: what ``nasfast enumerate`` writes and prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces import counts as block_counts
from nasfast.spaces import nb101
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nats_sss import SizeSpec
from nasfast.spaces.nb201 import isomorphism_key
from nasfast.spaces.space import Space
from nasfast.spaces.spec import CellSpec

Arrays = dict[str, npt.NDArray[Any]]
OnProgress = Callable[[int, int], None]


def list_nb101(on_progress: OnProgress | None = None) -> tuple[Arrays, dict[str, int]]:
    """List NAS-Bench-101, and count its cells.

    Args:
        on_progress: Called with the labelled cells looked at and their total.

    Returns:
        The arrays of :class:`nasfast.spaces.nb101.Nb101List` with the names of the operations, and
        how many distinct cells there are with up to 2, 3, ... vertices.

    Raises:
        ImportError: If ``nasfast._host`` is not built.
    """
    cells = nb101.enumerate_nb101(on_progress=on_progress)
    sizes = range(2, nb101.MAX_VERTICES + 1)
    counts = {f"up_to_{size}_vertices": int((cells.num_vertices <= size).sum()) for size in sizes}
    return {**cells._asdict(), "op_names": _names(nb101.OPS)}, counts


def list_space(space: Space) -> tuple[Arrays, dict[str, int]]:
    """List the architectures of a space in the order of their index, and count them.

    Returns:
        Arrays, one row for each architecture. Operations on edges: ``ops``, ``arch_str``. Choice
        blocks: ``decisions``, ``hash`` (NAS-Bench-101's, of the pruned cell), ``arch_str``, and
        ``evaluated``, whether the architecture is in the authors' own subset. Sizes: ``channels``.
        And the counts of the space by every definition.

    Raises:
        ValueError: If this kind of space has no such list.
        ImportError: If it needs ``nasfast._host`` and that is not built.
    """
    archs = space.enumerate()
    if isinstance(space, SizeSpec):
        channels = np.array([space.channels(arch) for arch in archs], dtype=np.uint16)
        return {"channels": channels}, {"architectures": space.num_archs}
    strings = np.array([str(arch) for arch in archs], dtype=np.bytes_)
    if isinstance(space, CellSpec):
        arrays = {"ops": space.op_array(archs).astype(np.uint8), "arch_str": strings}
        return arrays | {"op_names": _names([op.name for op in space.ops])}, {
            "architectures": space.num_archs,
            "connected": sum(arch.connected for arch in archs),
            "isomorphism_classes": len({isomorphism_key(arch) for arch in archs}),
        }
    if isinstance(space, BlockSpec):
        evaluated = np.zeros(space.num_archs, dtype=np.bool_)
        evaluated[block_counts.evaluated_subset(space)] = True
        hashes = block_counts.nb101_hashes(space)
        return {
            "decisions": space.list_array().astype(np.uint8),
            "hash": hashes,
            "arch_str": strings,
            "evaluated": evaluated,
            "op_names": _names([op.name for op in space.ops]),
        }, block_counts.counts(space, hashes)
    raise ValueError(f"space: {space.name} is of a kind that has no list to write")


def _names(names: Any) -> npt.NDArray[np.bytes_]:
    return np.array([name.encode() for name in names], dtype=np.bytes_)
