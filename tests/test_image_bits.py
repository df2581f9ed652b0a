"""The file of bits: what comes back, and every way in which it can be damaged."""

import errno
import os

import numpy as np
import pytest

from nasfast.image_bits import ImageBits
from nasfast.store import StoreError

ARCHS, IMAGES = 7, 21


def random_bits(rows, seed=0, images=IMAGES):
    return np.random.default_rng(seed).random((rows, images)) < 0.5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.bits"


@pytest.fixture
def written(path):
    with ImageBits(path, ARCHS, IMAGES) as bits:
        bits.write([5, 1], random_bits(2))
    return path


def refused(path, archs=ARCHS, images=IMAGES):
    with pytest.raises(StoreError) as caught:
        ImageBits(path, archs, images)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("images", [1, 7, 8, 9, 31, 32, 33, 1000])
def test_what_is_written_comes_back(path, images):
    correct = random_bits(3, images=images)
    with ImageBits(path, ARCHS, images) as bits:
        bits.write([6, 0, 3], correct)
        assert bits.read([3, 6]).tolist() == correct[[2, 0]].tolist()  # at once
    with ImageBits(path, ARCHS, images) as bits:
        assert bits.read([0, 3, 6]).tolist() == correct[[1, 2, 0]].tolist()
        assert bits.known(range(ARCHS)).tolist() == [True, False, False, True, False, False, True]


def test_all_wrong_differs_from_never_written(path):
    with ImageBits(path, ARCHS, IMAGES) as bits:
        bits.write([2], np.zeros((1, IMAGES), dtype=bool))
        assert bits.known([1, 2]).tolist() == [False, True]


def test_bytes_do_not_depend_on_the_order(tmp_path):
    correct = random_bits(ARCHS)
    files = []
    for k, order in enumerate([range(ARCHS), [3, 0, 6, 1, 5, 2, 4]]):
        files.append(tmp_path / str(k))
        with ImageBits(files[-1], ARCHS, IMAGES) as bits:
            for arch in order:
                bits.write([arch], random_bits(1, seed=9))  # what a killed run may have left
            for arch in order:
                bits.write([arch], correct[[arch]])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_layout_by_hand(path):
    """64 bytes of head; a row: checksum, bits, zeros to a multiple of 8 bytes."""
    with ImageBits(path, 2, 9) as bits:
        bits.write([1], np.array([[1, 0, 0, 0, 0, 0, 0, 1, 1]], dtype=bool))
    content = path.read_bytes()
    assert len(content) == 64 + 2 * 8
    assert content.startswith(b"nasfast correct bits 1\n")
    assert content[64:72] == bytes(8)
    assert content[76:80] == bytes([0b10000001, 0b10000000, 0, 0])


def test_a_changed_row_is_not_believed(written):
    place = 64 + 5 * 8 + 5
    content = bytearray(written.read_bytes())
    content[place] ^= 1
    written.write_bytes(content)
    with ImageBits(written, ARCHS, IMAGES) as bits:
        assert bits.known([1, 5]).tolist() == [True, False]
        with pytest.raises(StoreError, match=r"no valid bits of 1 architectures, such as 5; rank"):
            bits.read([1, 5])
        bits.write([5], random_bits(1))
        assert bits.known([1, 5]).all()


def test_a_moved_row_is_not_believed(written):
    content = bytearray(written.read_bytes())
    content[64 : 64 + 8] = content[64 + 8 : 64 + 16]  # architecture 1 as if it were 0
    written.write_bytes(content)
    with ImageBits(written, ARCHS, IMAGES) as bits:
        assert bits.known([0, 1]).tolist() == [False, True]


@pytest.mark.parametrize("size", [0, 1, 40, 63, 64, 100, 119])
def test_a_truncated_file_is_refused(written, size):
    os.truncate(written, size)
    message = refused(written)
    assert "damaged (" in message
    assert "scores are kept" in message


def test_a_longer_file_is_refused(written):
    written.write_bytes(written.read_bytes() + b"x")
    assert "wanted 120 bytes, got 121" in refused(written)


@pytest.mark.parametrize("place", [0, 35, 42, 49])
def test_a_damaged_head_is_refused(written, place):
    content = bytearray(written.read_bytes())
    content[place] ^= 0x10
    written.write_bytes(content)
    assert "damaged" in refused(written)


def test_bits_of_other_images_are_refused(written):
    message = refused(written, images=22)
    assert "wanted bits of 7 architectures and 22 images, got 7 and 21" in message


@pytest.mark.parametrize(
    ("archs", "shape", "wanted"),
    [([7], (1, IMAGES), "archs: wanted 0..6, got 7"), ([-1], (1, IMAGES), "archs: wanted 0..6"),
     ([1], (1, 20), "correct: wanted shape"), ([1, 2], (1, IMAGES), "correct: wanted shape")],
)  # fmt: skip
def test_wrong_rows_are_refused(path, archs, shape, wanted):
    with ImageBits(path, ARCHS, IMAGES) as bits, pytest.raises(ValueError, match=wanted):
        bits.write(archs, np.zeros(shape, dtype=bool))


def test_a_full_disk_is_said(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ImageBits(path, ARCHS, IMAGES) as bits:
        bits.write([0], random_bits(1))
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            bits.write([1], random_bits(1))
        assert bits.known([0, 1]).tolist() == [True, False]


def test_writes_that_are_cut_short_are_finished(path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[:3], place))
    correct = random_bits(2)
    with ImageBits(path, ARCHS, IMAGES) as bits:
        bits.write([0, 4], correct)
        assert bits.read([0, 4]).tolist() == correct.tolist()
