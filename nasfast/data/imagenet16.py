# SPDX-License-Identifier: MIT
"""ImageNet16-120: the first 120 classes of ImageNet at 16x16 pixels.

Source: Chrabaszcz, Loshchilov and Hutter, A Downsampled Variant of ImageNet, 2017 (the files);
Dong and Yang, NAS-Bench-201, ICLR 2020 (the 120 classes, mean and std).
"""

from pathlib import Path

from nasfast.data.archives import existing_path, read_folder
from nasfast.data.batch_files import RawImages, join, parse_pickle
from nasfast.data.sampling import stratified_split
from nasfast.data.sets import ImageSet, Splits, check_range

__all__ = ["read_imagenet16"]

_SIDE = 16
_FILE_CLASSES, _NUM_CLASSES = 1000, 120
_TRAIN_FILES = tuple(f"train_data_batch_{number}" for number in range(1, 11))
_TEST_FILE = "val_data"
_TRAIN_COUNT, _TEST_COUNT = 151_700, 6_000
_HALVES_SEED = 16
_MEAN = tuple(value / 255 for value in (122.68, 116.66, 104.01))
_STD = tuple(value / 255 for value in (63.22, 61.26, 65.09))


def read_imagenet16(
    path: Path, *, train_count: int = _TRAIN_COUNT, test_count: int = _TEST_COUNT
) -> Splits:
    """Read the official pickled batches, keep labels 1..120 and shift them to 0..119.

    `train` is the whole training set; `valid` and `test` are halves of the official validation
    set. The benchmark's own halves are a published list that this package does not carry, so
    these are stratified halves with a fixed seed of our own, and accuracies on them differ from
    published ones by chance.

    Args:
        path: Folder with ``train_data_batch_1`` to ``train_data_batch_10`` and ``val_data``.
        train_count: Training images of the 120 classes that the files must hold in all.
        test_count: Validation images of the 120 classes that ``val_data`` must hold.

    Raises:
        FileNotFoundError: If `path` or a file in it is missing.
        ValueError: If a file is damaged, cut off, refused, or has other contents than wanted.
    """
    existing_path(path, f"a folder with {_TRAIN_FILES[0]} and the other official batches")
    if not path.is_dir():
        raise ValueError(f"path must be the folder with {_TRAIN_FILES[0]}, got the file {path}")
    missing = [file for file in (*_TRAIN_FILES, _TEST_FILE) if not (path / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} must hold the official batches; missing: {missing}")
    train = join([_read_batch(path, file) for file in _TRAIN_FILES])
    test = _read_batch(path, _TEST_FILE)
    for part, raw, wanted in (("train", train, train_count), ("val", test, test_count)):
        if len(raw.labels) != wanted:
            raise ValueError(
                f"the {part} batches of {path} must hold {wanted} images with labels "
                f"1..{_NUM_CLASSES}, got {len(raw.labels)}"
            )
    whole = _image_set(test, f"{path} (val)")
    half = len(whole) // 2
    valid_half, test_half = stratified_split(whole.labels, (half, len(whole) - half), _HALVES_SEED)
    return Splits(
        "imagenet16-120",
        _NUM_CLASSES,
        _image_set(train, f"{path} (train)"),
        whole.subset(valid_half),
        whole.subset(test_half),
    )


def _read_batch(folder: Path, file: str) -> RawImages:
    # One file at a time: all ten together are a gigabyte, of which a ninth is kept.
    where = f"{folder}/{file}"
    content = read_folder(folder, [file])[file]
    raw = parse_pickle(content, where, label_key="labels", side=_SIDE)
    check_range(f"{where}: labels", raw.labels, 1, _FILE_CLASSES)
    kept = raw.labels <= _NUM_CLASSES
    return RawImages(raw.images[kept], raw.labels[kept] - 1)


def _image_set(raw: RawImages, name: str) -> ImageSet:
    return ImageSet(raw.images, raw.labels, name, _NUM_CLASSES, _MEAN, _STD)
