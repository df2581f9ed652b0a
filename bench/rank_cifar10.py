# SPDX-License-Identifier: MIT
"""A supernet on real CIFAR-10 images, its ranking of 1,000 architectures, the published truth.

Trains on 20,000 training images (C=16, N=1, 12 epochs of uniform single paths), ranks on 1,024 test
images, and correlates with the published 200-epoch test accuracies. Needs a folder (the environment
variable NASFAST_DATA) with ``cifar10_train.npz``, ``cifar10_test.npz`` and ``nb201_accuracy.npz``.
Takes about half an hour on one core; type the same command again to go on after a kill.
"""

import argparse
import json
from pathlib import Path

from cifar10 import CONFIG, data_files, nasfast
from environment import environment

VALID_IMAGES = 1024
MORE = """
[rank]
batch_size = 256
bn = "batch/running"
archs = 1000
"""


def main() -> None:
    """Train, rank, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and run")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    work = options.work.resolve()
    config, run = work / "cifar10.toml", work / "runs" / "cifar"
    values = dict(name="cifar10_n1", seed=0, threads=1, epochs=12)
    values |= data_files(work, valid_images=VALID_IMAGES)
    config.write_text((CONFIG + MORE).format(**values), encoding="utf-8")
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
