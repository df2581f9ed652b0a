# SPDX-License-Identifier: MIT
"""A few lanes on a card, in all precisions, for tools that watch every access to memory."""

import torch

from nasfast import Supernet, SupernetConfig, evaluate
from nasfast.data import Batch
from nasfast.spaces import NB201


def main() -> None:
    """Score lanes on full, repeated and partial minibatches."""
    supernet = Supernet.create(SupernetConfig(channels=8, cells_per_stage=1), seed=0)
    archs = NB201.sample(6, seed=1)
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.randn(size, 3, 10, 9, generator=generator),
            torch.randint(0, 10, (size,), generator=generator),
        )
        for size in (5, 5, 5, 5, 3)  # as many of one size as become a graph
    ]
    for precision in ("fp32", "tf32", "bf16"):
        scores = evaluate(supernet, archs, batches, precision=precision, backend="cuda")
        assert torch.from_numpy(scores.loss).isfinite().all()
        print(precision, scores.loss.tolist())


if __name__ == "__main__":
    main()
