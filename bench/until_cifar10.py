# SPDX-License-Identifier: MIT
"""How much of a ranking is spared by stopping when it knows enough, on real CIFAR-10 images.

Trains a supernet (C=16, N=1, 12 epochs of uniform single paths, bf16) on 20,000 training images and
ranks all of NAS-Bench-201 on the 10,000 test images, by minibatches of 64, until each goal. Needs a
folder (the environment variable NASFAST_DATA) with ``cifar10_train.npz``, ``cifar10_test.npz`` and
``nb201_accuracy.npz``. Type the same command again to go on after a kill.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from cifar10 import CONFIG, nasfast
from environment import environment

VALID_IMAGES = 512  # of the training images; nothing is scored on them
GOALS = ("top-10", "tau ±0.05")
MORE = """
precision = "bf16"
[rank]
images = "test"
batch_size = 64
precision = "bf16"
"""


def write_images(file: Path) -> None:
    """Put all images into one file: those of the test are scored."""
    data = Path(os.environ["NASFAST_DATA"]).resolve()
    train, test = np.load(data / "cifar10_train.npz"), np.load(data / "cifar10_test.npz")
    arrays = {f"test_{key}": test[key] for key in ("images", "labels")}
    for part, chosen in (("train", slice(VALID_IMAGES, None)), ("valid", slice(VALID_IMAGES))):
        arrays |= {f"{part}_{key}": train[key][chosen] for key in ("images", "labels")}
    np.savez(file, **arrays, class_names=train["class_names"])


def main() -> None:
    """Train, rank until each goal, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and run")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--goals", nargs="+", default=GOALS, help="as of nasfast rank --until")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    images, config, run = work / "cifar10.npz", work / "cifar10.toml", work / "runs" / "cifar"
    if not images.is_file():
        write_images(images)
    truth = Path(os.environ["NASFAST_DATA"]).resolve() / "nb201_accuracy.npz"
    values = dict(name="until", seed=0, threads=1, epochs=12)
    config.write_text((CONFIG + MORE).format(**values, images=images, truth=truth))
    threads = ("--threads", str(options.threads))
    trained = nasfast("train", str(config), "--run", str(run), *threads)
    found = [nasfast("rank", str(run), "--until", goal, *threads) for goal in options.goals]
    result = {
        "name": "until_cifar10",
        "work": "20,000 CIFAR-10 images less 512 (JPEG-decoded), C=16, N=1, 12 epochs, bf16; all "
        "15,625 architectures on the 10,000 test images, minibatches of 64, batch statistics; "
        "truth: cifar10_test of NAS-Bench-201 (200 epochs). Each goal starts from the rounds that "
        "those before it have scored; `spared` counts as if it had not",
        "training": {key: trained[key] for key in ("epochs", "loss", "accuracy", "parameters")},
        "goals": [{key: value for key, value in one.items() if key != "best"} for one in found],
        "best": found[0]["best"],
        "environment": environment(threads=options.threads),
    }
    options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
