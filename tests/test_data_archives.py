# SPDX-License-Identifier: MIT
"""CIFAR in its official layouts, built tiny; and everything that can be wrong with an archive."""

import contextlib
import gzip
import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_pickles import python2_batch

from nasfast.data import load
from nasfast.data.archives import ArchiveError, read_archive
from nasfast.data.cifar import benchmark_split, read_cifar

COUNTS = {"train_count": 200, "test_count": 200}
LAYOUTS = {
    "cifar-10-batches-py": ("cifar10", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]),
    "cifar-10-batches-bin": (
        "cifar10",
        [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"],
    ),
    "cifar-100-python": ("cifar100", ["train", "test"]),
    "cifar-100-binary": ("cifar100", ["train.bin", "test.bin"]),
}
ARCHIVE_NAMES = {
    "cifar-10-batches-py": "cifar-10-python.tar.gz",
    "cifar-10-batches-bin": "cifar-10-binary.tar.gz",
    "cifar-100-python": "cifar-100-python.tar.gz",
    "cifar-100-binary": "cifar-100-binary.tar.gz",
}


def originals(name):
    """What the files hold in all: pixels [400, 3072] and labels [400]; the last 200 are test."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (400, 3072), dtype=np.uint8)
    return pixels, np.arange(400) % (10 if name == "cifar10" else 100)


def build_files(folder):
    """Official files as {name: content}, 200 training and 200 test images."""
    name, files = LAYOUTS[folder]
    pixels, labels = originals(name)
    bounds = [*np.linspace(0, 200, len(files), dtype=int).tolist(), 400]
    result = {}
    for file, start, stop in zip(files, bounds[:-1], bounds[1:], strict=True):
        part, numbers = pixels[start:stop], labels[start:stop]
        if file.endswith(".bin"):
            prefix = [numbers] if name == "cifar10" else [numbers // 5, numbers]
            columns = [column.astype(np.uint8)[:, None] for column in prefix]
            result[file] = np.hstack([*columns, part]).tobytes()
        else:
            key = b"labels" if name == "cifar10" else b"fine_labels"
            result[file] = python2_batch(part, numbers.tolist(), key)
    return result


def write_archive(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(folder):
    return {
        f"{folder}/readme.html": b"hello",
        **{f"{folder}/{name}": content for name, content in build_files(folder).items()},
    }


@pytest.mark.parametrize("folder", LAYOUTS)
@pytest.mark.parametrize("form", ["archive", "tar", "folder", "parent", "parent of archive"])
def test_every_layout_gives_the_same_splits(tmp_path, folder, form):
    name = LAYOUTS[folder][0]
    if form == "tar":
        path = write_archive(tmp_path / "plain.tar", packed(folder), "w")
    elif "archive" in form:
        path = write_archive(tmp_path / ARCHIVE_NAMES[folder], packed(folder))
        path = path.parent if form == "parent of archive" else path
    else:
        path = write_folder(tmp_path / folder, build_files(folder))
        path = path.parent if form == "parent" else path
    splits = read_cifar(name, path, **COUNTS)
    pixels, labels = originals(name)
    images = torch.from_numpy(pixels).view(-1, 3, 32, 32)
    train, valid, test = splits.train, splits.valid, splits.test
    if name == "cifar10":
        first, second = benchmark_split(200)
        assert torch.equal(train.images, images[first])
        assert torch.equal(valid.images, images[second])
        assert torch.equal(test.images, images[200:])
        assert test.labels.tolist() == labels[200:].tolist()
    else:
        assert torch.equal(train.images, images[:200])
        assert train.labels.tolist() == labels[:200].tolist()
        # Two test images of each class: one goes to each half.
        assert sorted(valid.labels.tolist()) == sorted(test.labels.tolist()) == list(range(100))
        halves = torch.cat([valid.images, test.images]).flatten(1)
        assert set(map(bytes, halves.numpy())) == set(map(bytes, pixels[200:]))


def test_a_folder_under_another_name_is_found_by_its_files(tmp_path):
    folder = write_folder(tmp_path / "renamed", build_files("cifar-10-batches-bin"))
    assert len(read_cifar("cifar10", folder, **COUNTS).test) == 200


def test_mean_and_std_are_those_of_the_benchmark(tmp_path):
    for folder, mean, std in (
        ("cifar-10-batches-bin", (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        ("cifar-100-binary", (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    ):
        path = write_folder(tmp_path / folder, build_files(folder))
        train = read_cifar(LAYOUTS[folder][0], path, **COUNTS).train
        assert train.mean == pytest.approx(tuple(value / 255 for value in mean))
        assert train.std == pytest.approx(tuple(value / 255 for value in std))


def test_the_benchmark_split_of_cifar10():
    train, valid = benchmark_split()
    assert len(train) == len(valid) == 25_000
    assert sorted(train + valid) == list(range(50_000))
    assert train == sorted(train)
    assert valid == sorted(valid)
    # The first positions of the published list.
    assert train[:12] == [0, 5, 7, 11, 13, 15, 16, 17, 20, 24, 26, 28]
    assert valid[:6] == [1, 2, 3, 4, 6, 8]
    assert benchmark_split() == (train, valid)


def test_full_size_through_load(tmp_path):
    for number in range(1, 6):
        with (tmp_path / f"data_batch_{number}.bin").open("wb") as file:
            file.truncate(10_000 * 3073)
    with (tmp_path / "test_batch.bin").open("wb") as file:
        file.truncate(10_000 * 3073)
    splits = load("cifar10", tmp_path, train_images=100, test_images=50)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [100, 25_000, 50]
    assert [splits.train.name, splits.valid.name] == ["cifar10/train", "cifar10/valid"]


@pytest.mark.parametrize("folder", LAYOUTS)
def test_load_wants_the_official_number_of_images(tmp_path, folder):
    name, files = LAYOUTS[folder]
    path = write_folder(tmp_path / folder, build_files(folder))
    count = 10_000 if name == "cifar10" else 50_000
    with pytest.raises(ValueError, match=f"{files[0]} must hold {count} images, got "):
        load(name, path)


def test_a_truncated_binary_batch(tmp_path):
    for folder, record in (("cifar-10-batches-bin", 3073), ("cifar-100-binary", 3074)):
        name, files = LAYOUTS[folder]
        path = write_folder(tmp_path / folder, build_files(folder))
        os.truncate(path / files[0], 5 * record + 17)
        message = f"{files[0]} must be a multiple of {record} bytes.*got {5 * record + 17} bytes"
        with pytest.raises(ValueError, match=message):
            read_cifar(name, path, **COUNTS)


@pytest.mark.parametrize("folder", LAYOUTS)
def test_a_label_out_of_range_names_file_and_position(tmp_path, folder):
    name, files = LAYOUTS[folder]
    contents = build_files(folder)
    count = 40 if name == "cifar10" else 200
    pixels, labels = np.zeros((count, 3072), np.uint8), [0] * count
    labels[3] = 200
    columns = [np.array(labels, np.uint8)[:, None]] * (1 if name == "cifar10" else 2)
    key = b"labels" if name == "cifar10" else b"fine_labels"
    binary = np.hstack([*columns, pixels]).tobytes()
    contents[files[0]] = binary if files[0].endswith(".bin") else python2_batch(pixels, labels, key)
    path = write_folder(tmp_path / folder, contents)
    classes = 10 if name == "cifar10" else 100
    message = rf"{files[0]}: labels must lie in 0\.\.{classes - 1}, got 200 at position 3"
    with pytest.raises(ValueError, match=message):
        read_cifar(name, path, **COUNTS)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [0]}, r"must have the entry 'data', got \['labels'\]"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "must have the entry 'labels'"),
        ({"data": [1], "labels": [0]}, "data must be a uint8 array .* got list"),
        ({"data": np.full((1, 3072), np.nan), "labels": [0]}, "uint8 array .* got float64"),
        ({"data": np.zeros((1, 768), np.uint8), "labels": [0]}, r"3072\], got uint8 \[1, 768\]"),
        ({"data": np.zeros(3072, np.uint8), "labels": [0]}, r"3072\], got uint8 \[3072\]"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [0, 1]}, "each of 1 images, got 2"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}, "labels must be a list of int"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [[0], []]}, "nested lists"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "must hold 40 images, got 0"),
    ],
)
def test_a_pickled_batch_of_another_form(tmp_path, batch, message):
    contents = build_files("cifar-10-batches-py")
    contents["data_batch_1"] = pickle.dumps(batch)
    path = write_folder(tmp_path / "batches", contents)
    with pytest.raises(ValueError, match=f"data_batch_1.*{message}"):
        read_cifar("cifar10", path, **COUNTS)


def test_a_malicious_member_is_refused_and_not_run(tmp_path):
    class Command:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    members = packed("cifar-10-batches-py")
    members["cifar-10-batches-py/data_batch_2"] = pickle.dumps({"data": Command()}, protocol=2)
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", members)
    with pytest.raises(ValueError, match=r"data_batch_2 is refused: it asks for posix\.system"):
        read_cifar("cifar10", path, **COUNTS)
    assert not (tmp_path / "executed").exists()


def test_missing_files(tmp_path):
    missing = tmp_path / "nowhere.tar.gz"
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz.*nowhere.*not exist"):
        load("cifar10", missing)
    with pytest.raises(FileNotFoundError, match="one of the folders cifar-100-python"):
        load("cifar100", tmp_path)
    contents = build_files("cifar-10-batches-py")
    del contents["data_batch_3"], contents["test_batch"]
    folder = write_folder(tmp_path / "part", contents)
    with pytest.raises(FileNotFoundError, match=r"missing: \['data_batch_3', 'test_batch'\]"):
        load("cifar10", folder)


def test_missing_members(tmp_path):
    members = packed("cifar-100-python")
    del members["cifar-100-python/test"]
    path = write_archive(tmp_path / "part.tar.gz", members)
    with pytest.raises(ValueError, match=r"missing: \['cifar-100-python/test'\]"):
        load("cifar100", path)
    with pytest.raises(ValueError, match=r"archive of cifar-10-batches-py or .* without any"):
        load("cifar10", path)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil"])
def test_a_member_that_leads_outside_is_refused(tmp_path, name):
    path = write_archive(tmp_path / "evil.tar.gz", {name: b"x", **packed("cifar-100-binary")})
    with pytest.raises(ValueError, match="holds a member outside itself"):
        read_cifar("cifar100", path, **COUNTS)


def test_links_doubles_and_giants_are_refused(tmp_path):
    link, double, giant = (tmp_path / name for name in ("link.tar", "double.tar", "giant.tar"))
    with tarfile.open(link, "w") as archive:
        info = tarfile.TarInfo("wanted")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with tarfile.open(double, "w") as archive:
        archive.addfile(tarfile.TarInfo("wanted"))
        archive.addfile(tarfile.TarInfo("./wanted"))
    info = tarfile.TarInfo("wanted")
    info.size = 1 << 40
    giant.write_bytes(info.tobuf() + bytes(1024))
    for path, message in ((link, "regular file"), (double, "come once"), (giant, "at most")):
        with pytest.raises(ArchiveError, match=message):
            read_archive(path, {"wanted"})


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8bno gzip", bytes(100)])
def test_no_archive_at_all(tmp_path, content):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"must be a whole tar or tar\.gz archive"):
        load("cifar10", path)


def small_archive(compressed):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name in ("folder/wanted", "folder/other"):
            info = tarfile.TarInfo(name)
            info.size = 3000
            archive.addfile(info, io.BytesIO(np.random.default_rng(1).bytes(3000)))
    return gzip.compress(raw.getvalue(), mtime=0) if compressed else raw.getvalue()


ZIPPED, PLAIN = small_archive(True), small_archive(False)
WANTED = {"folder/wanted": np.random.default_rng(1).bytes(3000)}


def read_bytes_as_archive(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.tar.gz"
        path.write_bytes(content)
        return read_archive(path, WANTED.keys())


def test_a_whole_archive():
    assert read_bytes_as_archive(ZIPPED) == read_bytes_as_archive(PLAIN) == WANTED


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, len(ZIPPED) - 1))
def test_a_truncated_archive_is_one_clear_error(cut):
    with pytest.raises(ArchiveError, match="cut off or damaged"):
        read_bytes_as_archive(ZIPPED[:cut])


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, len(ZIPPED) - 1), flip=st.integers(1, 255))
def test_a_damaged_archive_never_gives_wrong_content(position, flip):
    content = bytearray(ZIPPED)
    content[position] ^= flip
    # A flip in the gzip header's date, say, changes nothing.
    with contextlib.suppress(ArchiveError):
        assert read_bytes_as_archive(bytes(content)) == WANTED


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 600), value=st.integers(0, 255))
def test_a_damaged_plain_archive_is_read_or_refused(position, value):
    content = bytearray(PLAIN)
    content[position] = value
    with contextlib.suppress(ArchiveError):
        read_bytes_as_archive(bytes(content))


def test_an_archive_that_unfolds_without_end_is_refused(tmp_path):
    zeros = gzip.compress(bytes(1 << 24))
    info = tarfile.TarInfo("readme.html")
    info.size = 3 << 30
    head = gzip.compress(info.tobuf(tarfile.GNU_FORMAT))
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(head + zeros * 192)
    with pytest.raises(ArchiveError, match="must unfold to at most 1073741824 bytes"):
        read_archive(path, ["data"])


def test_a_file_with_holes_is_refused(tmp_path):
    info = tarfile.TarInfo("data")
    info.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[386:398] = b"00000000000\0"
    raw[398:410] = b"00000000000\0"
    raw[483:495] = b"07777777777\0"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(raw) + bytes(1024))
    with pytest.raises(ArchiveError, match="regular file, got a link, folder or sparse file"):
        read_archive(path, ["data"])
