# SPDX-License-Identifier: MIT
"""The restricted unpickler: official batches are read, anything else is refused unexecuted."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasfast.data.pickles import load_batch

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 12)


def python2_batch(pixels, labels, label_key=b"labels"):
    """A batch byte by byte as Python 2's cPickle with protocol 2 wrote it."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
        + b"(K\x01"
        + b"".join(b"M" + size.to_bytes(2, "little") for size in pixels.shape)
        + b"\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}q\x01("
        + short(b"batch_label")
        + short(b"training batch 1 of 5")
        + short(label_key)
        + numbers
        + short(b"data")
        + array
        + short(b"filenames")
        + b"]("
        + short(b"caf\xe9.png")
        + b"eu."
    )


def test_a_python_2_batch():
    batch = load_batch(python2_batch(PIXELS, [7, 3]), "toy")
    assert sorted(batch) == ["batch_label", "data", "filenames", "labels"]
    assert batch["labels"] == [7, 3]
    assert batch["data"].dtype == np.uint8
    assert np.array_equal(batch["data"], PIXELS)
    assert batch["filenames"] == ["caf\xe9.png"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", ["data", b"data"])
def test_a_python_3_batch(protocol, key):
    mean = np.linspace(0, 1, 12)
    content = pickle.dumps({key: PIXELS, "labels": [1, 2], "mean": mean}, protocol=protocol)
    batch = load_batch(content, "toy")
    assert np.array_equal(batch["data"], PIXELS)
    assert np.array_equal(batch["mean"], mean)
    assert batch["labels"] == [1, 2]


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_another_order_or_without_memory_of_their_own(protocol):
    for array in (np.asfortranarray(PIXELS), PIXELS[:, ::2]):
        batch = load_batch(pickle.dumps({"data": array}, protocol=protocol), "toy")
        assert np.array_equal(batch["data"], array)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path):
    target = tmp_path / "executed"
    content = pickle.dumps({"data": Call(os.system, f"touch {target}"), "labels": []})
    with pytest.raises(ValueError, match=r"toy is refused: it asks for posix\.system"):
        load_batch(content, "toy")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\neval\n.", r"asks for builtins\.eval"),
        (b"c__builtin__\neval\n.", r"asks for __builtin__\.eval"),
        (b"cnumpy\nload\n.", r"asks for numpy\.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", r"numpy\.ndarray\.dumps"),
        (b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR.", "array of type 'O'"),
        (b"cnumpy\ndtype\n(U\x02S5K\x00K\x01tR.", "array of type 'S5'"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "encoding 'hex'"),
        # Calling the array type itself, with a size of its own choice.
        (b"cnumpy\nndarray\n(J\x00\x00\x00\x7ftR.", "TypeError"),
        # Changing a stand-in for later loads.
        (b"cnumpy\nndarray\n}U\x01aK\x01sb.", "AttributeError"),
        (b"cnumpy\ndtype\nN}U\x08__call__K\x01s\x86b.", "AttributeError"),
        (b"P1\n.", "UnpicklingError"),
        (b"", "whole pickled batch"),
        (b"not a pickle", "whole pickled batch"),
        (b"].", "must hold a dictionary, got list"),
    ],
)
def test_refused(content, message):
    with pytest.raises(ValueError, match=f"^toy .*{message}"):
        load_batch(content, "toy")


def test_byte_order_is_kept():
    array = np.arange(3, dtype=">u2")
    for protocol in (2, 5):
        batch = load_batch(pickle.dumps({"data": array}, protocol=protocol), "toy")
        assert batch["data"].dtype.str == ">u2"
        assert np.array_equal(batch["data"], array)


@pytest.mark.parametrize("shape", [(2, 11), (25,), (-2, -12), (1 << 62, 1 << 62), (2.0, 12)])
def test_an_array_whose_shape_and_bytes_differ(shape):
    class Array:
        def __reduce__(self):
            function, arguments, state = PIXELS.__reduce__()
            return function, arguments, (state[0], shape, *state[2:])

    with pytest.raises(ValueError, match=r"^toy must be a whole pickled batch.*24 bytes for an"):
        load_batch(pickle.dumps({"data": Array()}, protocol=2), "toy")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_pickle_is_one_clear_error(data):
    content = data.draw(
        st.sampled_from([python2_batch(PIXELS, [7, 3]), pickle.dumps({"data": PIXELS})])
    )
    cut = data.draw(st.integers(0, len(content) - 1))
    # A cut just after a full stop, as in "numpy.", looks like an unknown name.
    with pytest.raises(ValueError, match=r"^toy (must be a whole pickled batch|is refused)"):
        load_batch(content[:cut], "toy")


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_pickle_is_read_or_refused(position, value):
    content = bytearray(python2_batch(PIXELS, [7, 3]))
    content[position % len(content)] = value
    try:
        load_batch(bytes(content), "toy")
    except ValueError as error:
        assert str(error).startswith("toy ")
