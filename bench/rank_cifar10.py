# SPDX-License-Identifier: MIT
"""A supernet on real CIFAR-10 images, its ranking of 1,000 architectures, the published truth.

Trains on 20,000 training images (C=16, N=1, 12 epochs of uniform single paths), ranks on 1,024 test
images, and correlates with the published 200-epoch test accuracies. Needs a folder (the environment
variable NASFAST_DATA) with ``cifar10_train.npz``, ``cifar10_test.npz`` and ``nb201_accuracy.npz``.
Takes about half an hour on one core; type the same command again to go on after a kill.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from environment import environment

VALID_IMAGES = 1024
CONFIG = """
name = "cifar10_n1"
threads = 1
[data]
name = "npz"
path = "{images}"
[supernet]
channels = 16
cells_per_stage = 1
[train]
epochs = 12
batch_size = 64
lr = 0.05
lr_min = 0.001
clip = 5.0
crop_padding = 4
flip = true
[rank]
batch_size = 256
bn = "batch/running"
archs = 1000
[truth]
table = "{truth}"
column = "cifar10_test"
"""


def write_images(data: Path, file: Path) -> None:
    """Put training images, and test images in two parts, into one file."""
    train, test = np.load(data / "cifar10_train.npz"), np.load(data / "cifar10_test.npz")
    arrays = {"train_images": train["images"], "train_labels": train["labels"]}
    for part, chosen in (("valid", slice(VALID_IMAGES)), ("test", slice(VALID_IMAGES, None))):
        arrays |= {f"{part}_{key}": test[key][chosen] for key in ("images", "labels")}
    np.savez(file, **arrays, class_names=train["class_names"])


def nasfast(*arguments: str) -> dict[str, object]:
    """Run a command; return the object it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "nasfast", *arguments, "--json"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def main() -> None:
    """Train, rank, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and run")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    data, work = Path(os.environ["NASFAST_DATA"]).resolve(), options.work.resolve()
    images, config, run = work / "cifar10.npz", work / "cifar10.toml", work / "runs" / "cifar"
    if not images.is_file():
        write_images(data, images)
    truth = data / "nb201_accuracy.npz"
    config.write_text(CONFIG.format(images=images, truth=truth), encoding="utf-8")
    trained = nasfast("train", str(config), "--run", str(run))
    ranked = nasfast("rank", str(run))
    result = {
        "name": "rank_cifar10",
        "work": "20,000 CIFAR-10 images (JPEG-decoded), C=16, N=1, 12 epochs; 1,000 architectures "
        f"ranked on {VALID_IMAGES} images; truth: cifar10_test of NAS-Bench-201 (200 epochs)",
        "training": {key: trained[key] for key in ("epochs", "loss", "accuracy", "parameters")},
        "headline": ranked["headline"],
        "correlations": ranked["correlations"],
        "environment": environment(threads=1),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
