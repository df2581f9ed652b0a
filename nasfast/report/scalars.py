# SPDX-License-Identifier: MIT
"""Numbers of a report as TensorBoard scalars, for those who compare runs there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_SUFFIX = ".nasfast"  # of our event files


class Scalar(NamedTuple):
    """One point of a curve.

    Attributes:
        tag: Name of the curve; a slash makes a group.
        step: Epoch or step, 0 for a single value.
        value: The value.
    """

    tag: str
    step: int
    value: float


def tensorboard_writer() -> Any:
    """Return PyTorch's class that writes event files.

    Raises:
        ImportError: If the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"scalars need the package tensorboard ({error}): pip install 'nasfast[tensorboard]'"
        ) from None
    return SummaryWriter


def write_scalars(scalars: Iterable[Scalar], folder: Path) -> int:
    """Write scalars as one TensorBoard event file, in place of the one that was written before.

    Args:
        scalars: What to write.
        folder: Made if it does not exist; other files there stay.

    Returns:
        How many were written.

    Raises:
        ImportError: If the package ``tensorboard`` is not installed.
        OSError: If the file cannot be written.
    """
    writer_class = tensorboard_writer()
    folder.mkdir(parents=True, exist_ok=True)
    before = list(folder.glob(f"events.out.tfevents.*{_SUFFIX}"))
    count = 0
    with writer_class(str(folder), filename_suffix=_SUFFIX) as writer:
        for tag, step, value in scalars:
            writer.add_scalar(tag, value, step)
            count += 1
    for file in before:  # TensorBoard would join both lines
        file.unlink(missing_ok=True)
    return count
