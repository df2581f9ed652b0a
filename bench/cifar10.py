# SPDX-License-Identifier: MIT
"""What the experiments on CIFAR-10 share: images from a data folder, and commands of nasfast."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def data_folder() -> Path:
    """Return the folder that the environment variable NASFAST_DATA names."""
    return Path(os.environ["NASFAST_DATA"]).resolve()


def write_images(data: Path, file: Path, *, valid_images: int) -> None:
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
