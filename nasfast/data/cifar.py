# SPDX-License-Identifier: MIT
"""CIFAR-10 and CIFAR-100 in the four official layouts.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The search
protocol on top (parts, mean and std) is that of NAS-Bench-201, Dong and Yang, ICLR 2020.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from nasfast.data.archives import existing_path, read_archive, read_folder
from nasfast.data.batch_files import RawImages, join, parse_binary, parse_pickle
from nasfast.data.sampling import stratified_split
from nasfast.data.sets import ImageSet, Splits, check_range

__all__ = ["benchmark_split", "read_cifar"]

_SIDE = 32
_TRAIN_COUNT, _TEST_COUNT = 50_000, 10_000
_BENCHMARK_SEED = 1021
_HALVES_SEED = 100


@dataclass(frozen=True)
class _Layout:
    """One official way to store the set; `label_bytes` is 0 for pickles."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    label_key: str = ""
    label_bytes: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)

    def parse(self, content: bytes, where: str) -> RawImages:
        if self.label_bytes:
            return parse_binary(content, where, label_bytes=self.label_bytes, side=_SIDE)
        return parse_pickle(content, where, label_key=self.label_key, side=_SIDE)


@dataclass(frozen=True)
class _Kind:
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layouts: tuple[_Layout, ...]


def _scaled(*values: float) -> tuple[float, ...]:
    return tuple(value / 255 for value in values)


_FIVE = range(1, 6)
_KINDS = {
    "cifar10": _Kind(
        num_classes=10,
        mean=_scaled(125.3, 123.0, 113.9),
        std=_scaled(63.0, 62.1, 66.7),
        layouts=(
            _Layout(
                archive="cifar-10-python.tar.gz",
                folder="cifar-10-batches-py",
                train=tuple(f"data_batch_{number}" for number in _FIVE),
                test="test_batch",
                label_key="labels",
            ),
            _Layout(
                archive="cifar-10-binary.tar.gz",
                folder="cifar-10-batches-bin",
                train=tuple(f"data_batch_{number}.bin" for number in _FIVE),
                test="test_batch.bin",
                label_bytes=1,
            ),
        ),
    ),
    "cifar100": _Kind(
        num_classes=100,
        mean=_scaled(129.3, 124.1, 112.4),
        std=_scaled(68.2, 65.4, 70.4),
        layouts=(
            _Layout(
                archive="cifar-100-python.tar.gz",
                folder="cifar-100-python",
                train=("train",),
                test="test",
                label_key="fine_labels",
            ),
            _Layout(
                archive="cifar-100-binary.tar.gz",
                folder="cifar-100-binary",
                train=("train.bin",),
                test="test.bin",
                # The coarse label comes first, the fine one second.
                label_bytes=2,
            ),
        ),
    ),
}


def read_cifar(
    name: str, path: Path, *, train_count: int = _TRAIN_COUNT, test_count: int = _TEST_COUNT
) -> Splits:
    """Read CIFAR-10 or CIFAR-100 (fine labels) and part it as NAS-Bench-201 does.

    CIFAR-10: `train` and `valid` are the benchmark's halves of the training images
    (:func:`benchmark_split`), `test` is the official test set. CIFAR-100: `train` is the whole
    training set; `valid` and `test` are halves of the official test set. The benchmark's own
    halves are a published list that this package does not carry, so these are stratified halves
    with a fixed seed of our own, and accuracies on them differ from published ones by chance.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        path: An official archive (python or binary version), the folder extracted from one, or
            a folder that holds one of those; extracted folders are preferred there, then
            python over binary.
        train_count: Training images that the files must hold in all.
        test_count: Test images that the files must hold.

    Raises:
        FileNotFoundError: If `path` or a file in it is missing.
        ValueError: If a file is damaged, cut off, refused, or has other contents than wanted.
    """
    kind = _KINDS[name]
    layout, contents, source = _read_files(kind, path)
    counts = {file: train_count // len(layout.train) for file in layout.train}
    counts[layout.test] = test_count
    parsed = {}
    for file in layout.files:
        where = f"{source}/{file}"
        parsed[file] = layout.parse(contents.pop(file), where)
        if len(parsed[file].labels) != counts[file]:
            raise ValueError(
                f"{where} must hold {counts[file]} images, got {len(parsed[file].labels)}"
            )
        check_range(f"{where}: labels", parsed[file].labels, 0, kind.num_classes - 1)
    train = _image_set(join([parsed[file] for file in layout.train]), kind, f"{source} (train)")
    test = _image_set(parsed[layout.test], kind, f"{source} (test)")
    if name == "cifar10":
        parts = [train.subset(half) for half in benchmark_split(len(train))] + [test]
    else:
        half = len(test) // 2
        valid_half, test_half = stratified_split(
            test.labels, (half, len(test) - half), _HALVES_SEED
        )
        parts = [train, test.subset(valid_half), test.subset(test_half)]
    return Splits(name, kind.num_classes, *parts)


def benchmark_split(count: int = _TRAIN_COUNT) -> tuple[list[int], list[int]]:
    """The halves of CIFAR-10's training images that NAS-Bench-201 trains and validates on.

    Returns:
        ``(train, valid)``: positions, ascending, of the first and the second half of
        ``0..count - 1`` shuffled by Python's generator with seed 1021.
    """
    positions = list(range(count))
    random.Random(_BENCHMARK_SEED).shuffle(positions)
    half = count // 2
    return sorted(positions[:half]), sorted(positions[half:])


def _image_set(raw: RawImages, kind: _Kind, name: str) -> ImageSet:
    return ImageSet(raw.images, raw.labels, name, kind.num_classes, kind.mean, kind.std)


def _read_files(kind: _Kind, path: Path) -> tuple[_Layout, dict[str, bytes], str]:
    """The layout found at `path`, the content of its files, and the place for messages."""
    archives = ", ".join(layout.archive for layout in kind.layouts)
    existing_path(path, f"one of {archives}, or a folder with its files")
    if path.is_file():
        return _read_packed(kind, path)
    for folder in (path, *(path / layout.folder for layout in kind.layouts)):
        for layout in kind.layouts:
            if any((folder / file).is_file() for file in layout.files):
                return layout, read_folder(folder, layout.files), str(folder)
    for layout in kind.layouts:
        if (path / layout.archive).is_file():
            return _read_packed(kind, path / layout.archive)
    folders = ", ".join(layout.folder for layout in kind.layouts)
    raise FileNotFoundError(
        f"path must hold {archives}, or one of the folders {folders}, got {path} with none of them"
    )


def _read_packed(kind: _Kind, path: Path) -> tuple[_Layout, dict[str, bytes], str]:
    members = {f"{layout.folder}/{file}" for layout in kind.layouts for file in layout.files}
    found = read_archive(path, members)
    for layout in kind.layouts:
        names = {file: f"{layout.folder}/{file}" for file in layout.files}
        missing = [name for name in names.values() if name not in found]
        if not missing:
            contents = {file: found[name] for file, name in names.items()}
            return layout, contents, f"{path}:{layout.folder}"
        if len(missing) < len(names):
            raise ValueError(f"{path} must hold {', '.join(names.values())}; missing: {missing}")
    raise ValueError(
        f"{path} must be an archive of {' or '.join(layout.folder for layout in kind.layouts)}, "
        "got one without any of their files"
    )
