# SPDX-License-Identifier: MIT
"""A data set of one's own in NumPy's npz files."""

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from nasfast.data.archives import existing_path
from nasfast.data.batch_files import RawImages
from nasfast.data.sampling import stratified_split
from nasfast.data.sets import ImageSet, Splits, channel_statistics, check_range

__all__ = ["read_npz"]

_PARTS = ("train", "valid", "test")
_Arrays = dict[str, np.ndarray]


def read_npz(path: Path, seed: int) -> Splits:
    """Read images and labels from an npz file, or from two in a folder.

    The arrays, by where they come from:

    * a file with ``images`` and ``labels``: split 60/20/20;
    * a file with ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and maybe
      ``valid_images``, ``valid_labels``;
    * a folder with exactly one ``*_train.npz`` and one ``*_test.npz``, each with ``images`` and
      ``labels``.

    Without validation images the training images are split into halves for `train` and `valid`.
    Splits are stratified and drawn with `seed`. Images are uint8, ``[n, height, width, channels]``
    if the last size is 1 or 3, else ``[n, channels, height, width]`` with 1 or 3 channels; labels
    are integers from 0. There are as many classes as names in ``class_names``, if the (training)
    file has that array, else one more than the largest label. Mean and std are those of `train`.

    Args:
        path: The file or the folder.
        seed: Seed of the splits.

    Raises:
        FileNotFoundError: If `path`, or one of the two files of a folder, is missing.
        ValueError: If a file is damaged, or an array is missing or of another form.
    """
    existing_path(path, "an npz file, or a folder with one *_train.npz and one *_test.npz")
    if path.is_dir():
        arrays, origin = _read_folder(path)
    else:
        arrays, origin = _read_file(path), dict.fromkeys(("", *_PARTS), str(path))
    raw = {
        part: _raw_images(arrays, f"{part}_" if part else "", origin[part])
        for part in ("", *_PARTS)
        if any(f"{part}_{key}".lstrip("_") in arrays for key in ("images", "labels"))
    }
    _check_parts(raw.keys(), path)
    num_classes = _num_classes(arrays, raw, path)
    for part, content in raw.items():
        check_range(f"{origin[part]}: {part} labels", content.labels, 0, num_classes - 1)
    parts = _split(raw, seed, str(path))
    mean, std = channel_statistics(parts["train"].images)
    sets = {
        name: ImageSet(part.images, part.labels, f"{path} ({name})", num_classes, mean, std)
        for name, part in parts.items()
    }
    return Splits("npz", num_classes, *(sets[name] for name in _PARTS))


def _read_file(path: Path) -> _Arrays:
    """The arrays this module knows; others, such as file numbers, are not even read."""
    known = {f"{part}_{key}" for part in _PARTS for key in ("images", "labels")}
    known |= {"images", "labels", "class_names"}
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise zipfile.BadZipFile("no zip archive, or its end is missing")
            stream.seek(0)
            # From our own stream: NumPy leaves a file open that it cannot read.
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files if name in known}
                odd = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
                if odd:  # NumPy returns a member without an array's beginning as bytes
                    raise ValueError(f"{odd[0]!r} is no array")
                return arrays
    # Damaged bytes fail in any layer: zipfile, zlib, or the header of an array.
    except Exception as error:
        raise ValueError(
            f"{path} must be a whole npz file without pickled objects, but reading it failed "
            f"({type(error).__name__}: {error!s:.200})"
        ) from error


def _read_folder(folder: Path) -> tuple[_Arrays, dict[str, str]]:
    arrays: _Arrays = {}
    origin = {}
    for part in ("train", "test"):
        files = sorted(folder.glob(f"*_{part}.npz"))
        if not files:
            raise FileNotFoundError(f"{folder} must hold one *_{part}.npz, got none")
        if len(files) > 1:
            names = [file.name for file in files]
            raise ValueError(f"{folder} must hold one *_{part}.npz, got {names}")
        origin[part] = str(files[0])
        content = _read_file(files[0])
        for key in ("images", "labels"):
            if key not in content:
                raise ValueError(f"{files[0]} must have the array {key!r}, got {sorted(content)}")
            arrays[f"{part}_{key}"] = content[key]
        if part == "train" and "class_names" in content:
            arrays["class_names"] = content["class_names"]
    return arrays, origin


def _check_parts(parts: Collection[str], path: Path) -> None:
    found = set(parts)
    if found not in ({""}, {"train", "test"}, set(_PARTS)):
        got = sorted(f"{part}_images".lstrip("_") for part in found) or "none of these arrays"
        raise ValueError(
            f"{path} must have images and labels, or train_images, train_labels, test_images, "
            f"test_labels and maybe valid_images, valid_labels, got {got}"
        )


def _raw_images(arrays: _Arrays, prefix: str, where: str) -> RawImages:
    for key in ("images", "labels"):
        if prefix + key not in arrays:
            raise ValueError(f"{where} must have the array {prefix + key!r}")
    images = _channels_first(arrays[f"{prefix}images"], f"{where}: {prefix}images")
    labels = arrays[f"{prefix}labels"]
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(
            f"{where}: {prefix}labels must be integers [{len(images)}], one for each image, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return RawImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _channels_first(images: np.ndarray, where: str) -> np.ndarray:
    if images.dtype != np.uint8:
        nans = int(np.isnan(images).sum()) if images.dtype.kind == "f" else 0
        note = f" with {nans} NaN values" if nans else ""
        raise ValueError(
            f"{where} must be uint8 (0..255; normalisation is done later), got {images.dtype}{note}"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{where} must be [n, height, width, channels] or [n, channels, height, width] with "
            f"1 or 3 channels, got shape {list(images.shape)}"
        )
    if images.size == 0:
        raise ValueError(f"{where} must not be empty, got shape {list(images.shape)}")
    return np.ascontiguousarray(images)


def _split(raw: dict[str, RawImages], seed: int, where: str) -> dict[str, RawImages]:
    if "valid" in raw:
        return raw
    whole = raw[""] if "" in raw else raw["train"]
    count = len(whole.labels)
    names: tuple[str, ...] = _PARTS
    sizes: tuple[int, ...]
    if "" in raw:
        fifth = max(1, round(count / 5))
        sizes = (count - 2 * fifth, fifth, fifth)
    else:
        names, sizes = names[:2], (count - count // 2, count // 2)
    if min(sizes) < 1:
        raise ValueError(f"{where} must hold at least {len(names)} images to split, got {count}")
    positions = stratified_split(whole.labels, sizes, seed)
    parts = {
        name: RawImages(whole.images[part], whole.labels[part])
        for name, part in zip(names, positions, strict=True)
    }
    return parts if "" in raw else {**parts, "test": raw["test"]}


def _num_classes(arrays: _Arrays, raw: dict[str, RawImages], path: Path) -> int:
    if "class_names" not in arrays:
        # At least 1, so that a set with negative labels only is reported for its labels.
        return max(1, *(int(part.labels.max()) + 1 for part in raw.values()))
    names = arrays["class_names"]
    if names.ndim != 1 or not len(names):
        raise ValueError(f"{path}: class_names must be a flat list, got shape {list(names.shape)}")
    return len(names)
