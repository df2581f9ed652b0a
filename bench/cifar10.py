# SPDX-License-Identifier: MIT
"""What the experiments on CIFAR-10 share: images and truth, the supernet, commands of nasfast.

The environment variable NASFAST_DATA names the folder of images and truth.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# The supernet that is trained; the last section may go on.
CONFIG = """
name = "{name}"
seed = {seed}
threads = {threads}
[data]
name = "npz"
path = "{images}"
[supernet]
channels = 16
cells_per_stage = 1
[truth]
table = "{truth}"
column = "cifar10_test"
[train]
epochs = {epochs}
batch_size = 64
lr = 0.05
lr_min = 0.001
clip = 5.0
crop_padding = 4
flip = true
"""


def data_files(work: Path, *, valid_images: int) -> dict[str, Path]:
    """Return the file of images, made if it is not there yet, and the table of published truth.

    Args:
        work: Folder for the images.
        valid_images: Test images that become the validation part.
    """
    data, images = Path(os.environ["NASFAST_DATA"]).resolve(), work / "cifar10.npz"
    work.mkdir(parents=True, exist_ok=True)
    if not images.is_file():
        _write_images(data, images, valid_images)
    return {"images": images, "truth": data / "nb201_accuracy.npz"}


def _write_images(data: Path, file: Path, valid_images: int) -> None:
    """Put training images, and test images in two parts, into one file."""
    train, test = np.load(data / "cifar10_train.npz"), np.load(data / "cifar10_test.npz")
    arrays = {"train_images": train["images"], "train_labels": train["labels"]}
    for part, chosen in (("valid", slice(valid_images)), ("test", slice(valid_images, None))):
        arrays |= {f"{part}_{key}": test[key][chosen] for key in ("images", "labels")}
    np.savez(file, **arrays, class_names=train["class_names"])


def nasfast(*arguments: str) -> dict[str, Any]:
    """Run a command; return the object it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "nasfast", *arguments, "--json"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)
