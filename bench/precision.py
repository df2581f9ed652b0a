# SPDX-License-Identifier: MIT
"""Whether bf16 may stand for fp32: what it does to a ranking by a trained supernet.

Trains on the digits that scikit-learn ships and, where the environment variable NASFAST_DATA names
a folder with ``cifar10_train.npz`` and ``cifar10_test.npz``, on CIFAR-10 (C=16, N=1); scores the
architectures in both precisions on the same images. bf16 is accepted when Kendall's tau between
the two rankings is at least 0.98, for at least 1,000 architectures and 1,024 images; otherwise the
script exits with 1 and writes nothing.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nasfast
from environment import environment
from nasfast.data import Batch, ImageSet
from nasfast.data.sets import channel_statistics
from nasfast.metrics import kendall_tau

LEAST_TAU, LEAST_ARCHS, LEAST_IMAGES = 0.98, 1000, 1024


def digits() -> tuple[ImageSet, ImageSet]:
    """Images to train on, and to score on: all of them, as the parts alone are too few."""
    splits = nasfast.data.load("digits")
    parts = [splits.train, splits.valid, splits.test]
    images = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts])
    first = splits.train
    whole = ImageSet(images, labels, "digits", first.num_classes, first.mean, first.std)
    return first, whole


def cifar10(folder: Path, count: int) -> tuple[ImageSet, ImageSet]:
    """Images to train on, and ``count`` test images."""
    train, test = (np.load(folder / f"cifar10_{part}.npz") for part in ("train", "test"))
    images = torch.from_numpy(train["images"]).permute(0, 3, 1, 2).contiguous()
    mean, std = channel_statistics(images)
    labels = torch.from_numpy(train["labels"]).long()
    return (
        ImageSet(images, labels, "cifar10/train", 10, mean, std),
        ImageSet(
            torch.from_numpy(test["images"][:count]).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(test["labels"][:count]).long(), "cifar10/test", 10, mean, std,
        ),
    )  # fmt: skip


def compare(
    name: str, parts: tuple[ImageSet, ImageSet], shape: nasfast.SupernetConfig, epochs: int,
    batch_size: int, archs: int, threads: int,
) -> dict[str, Any]:  # fmt: skip
    """Train, score in both precisions, and say how far the rankings agree."""
    space, (train, scored) = shape.spec, parts
    supernet = nasfast.Supernet.create(shape, seed=0)
    torch.set_num_threads(threads)
    loader = nasfast.data.TrainLoader(train, 64)
    settings = nasfast.TrainSettings(epochs=epochs, lr=0.05, clip=5.0)
    nasfast.train(supernet, loader, nasfast.UniformSampler(space, seed=0), settings)
    batches: list[Batch] = nasfast.data.batches(scored, batch_size, last="drop")
    chosen = space.sample(archs, seed=0, distinct=True)
    ours = {
        precision: nasfast.evaluate(
            supernet, chosen, batches, precision=precision, threads=threads, keep_images=False
        )
        for precision in ("fp32", "bf16")
    }
    exact, rounded = ours["fp32"], ours["bf16"]
    by_loss = kendall_tau(-rounded.loss, -exact.loss)
    by_accuracy = kendall_tau(rounded.accuracy, exact.accuracy)
    return {
        "images": f"{name}, {sum(len(batch.labels) for batch in batches)} in minibatches of "
        f"{batch_size}",
        "num_images": sum(len(batch.labels) for batch in batches),
        "supernet": f"C={shape.channels}, N={shape.cells_per_stage}, {epochs} epochs",
        "archs": archs,
        "best_accuracy": float(exact.accuracy.max()),
        "kendall_tau_loss": by_loss.value,
        "kendall_tau_accuracy": by_accuracy.value,
        "ties_loss": by_loss.ties_truth,
        "ties_accuracy": by_accuracy.ties_truth,
        "largest_accuracy_difference": float(np.abs(exact.accuracy - rounded.accuracy).max()),
        "largest_loss_difference": float(np.abs(exact.loss - rounded.loss).max()),
    }


def main() -> None:
    """Compare, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="few epochs, digits alone")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    small = nasfast.SupernetConfig(channels=8, cells_per_stage=1, in_channels=1)
    epochs, archs = (2, 50) if options.quick else (60, options.archs)
    found = [compare("digits", digits(), small, epochs, 256, archs, options.threads)]
    folder = os.environ.get("NASFAST_DATA")
    if folder and not options.quick:
        shape = nasfast.SupernetConfig(channels=16, cells_per_stage=1)
        parts = cifar10(Path(folder), LEAST_IMAGES)
        found.append(compare("CIFAR-10 test", parts, shape, 4, 256, archs, options.threads))
    for row in found:
        print(json.dumps(row, indent=1))
        enough = row["archs"] >= LEAST_ARCHS and row["num_images"] >= LEAST_IMAGES
        if row["kendall_tau_loss"] < LEAST_TAU or not (enough or options.quick):
            sys.exit("bf16 is not accepted: see the last object above")
    result = {
        "name": "precision",
        "work": "Kendall's tau-b between rankings in bf16 and fp32, same supernet and images",
        "least_tau": LEAST_TAU,
        "comparisons": found,
        "environment": environment(threads=options.threads),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
