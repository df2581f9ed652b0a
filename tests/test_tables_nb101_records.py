"""Metrics of NAS-Bench-101's trainings: what comes out is what Google's runtime reads."""

import base64
import random

import nb101_official as official
from hypothesis import given
from hypothesis import strategies as st
from nb101_official import EVALUATIONS, training

from nasfast.tables.nb101_records import RecordError, metrics_of


def decoded(content: bytes) -> tuple[int, list[list[float]]]:
    parameters, values = metrics_of([base64.b64encode(content).decode()])
    return int(parameters[0]), values[0].tolist()


doubles = st.floats(0, 1, width=32)


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(doubles, doubles, doubles, doubles, doubles), min_size=3, max_size=3
            ),
            st.integers(0, 2**31 - 1),
            st.one_of(st.none(), st.text(max_size=5)),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_messages_of_googles_runtime(drawn):
    """Many together, with parameters of one to five bytes, with and without further fields."""
    texts = [
        base64.b64encode(
            official.metrics(training(evaluations=values, parameters=count), checkpoint)
        ).decode()
        for values, count, checkpoint in drawn
    ]
    parameters, found = metrics_of(texts)
    assert parameters.tolist() == [count for _, count, _ in drawn]
    assert found.tolist() == [[list(row[1:]) for row in values[1:]] for values, _, _ in drawn]


def test_fields_in_another_order_and_unknown_ones():
    whole = official.metrics(training())
    first = 2 + whole[1]
    turned = whole[3 * first :] + whole[: 3 * first]
    unknown = b"\x7d\x01\x02\x03\x04" + b"\x78\xac\x02" + b"\x7a\x03abc" + b"\x79" + bytes(8)
    wanted = decoded(whole)
    assert wanted == (1000, [list(row[1:]) for row in EVALUATIONS[1:]])
    for content in (turned, unknown + whole, whole + unknown):
        official.ModelMetrics.FromString(content)
        assert decoded(content) == wanted


def test_equally_long_messages_of_another_layout():
    """They differ only in what says how long something is."""
    whole = official.metrics(training(parameters=100_000))  # three bytes
    place = whole.index(b"\x10\xa0\x8d\x06")
    shorter = whole[:place] + b"\x10\x05" + b"\x78\x07" + whole[place + 4 :]
    hidden, given_twice = whole + b"\x7a\x02\x10\x05", whole + b"\x7a\x00\x10\x05"
    for contents in ([whole, shorter], [hidden, given_twice]):
        for order in (contents, contents[::-1]):
            parameters, _ = metrics_of([base64.b64encode(content).decode() for content in order])
            wanted = [official.ModelMetrics.FromString(c).trainable_parameters for c in order]
            assert parameters.tolist() == wanted
            assert sorted(wanted) == [5, 100_000]


def test_no_cut_or_damaged_message_is_read_as_another():
    """Whatever comes out of one is what Google's runtime reads in it."""
    whole = official.metrics(training())
    generator = random.Random(5)
    refused = 0
    bad = [whole[:size] for size in range(len(whole))]
    for _ in range(2000):
        copy = bytearray(whole)
        copy[generator.randrange(len(whole))] = generator.randrange(256)
        bad.append(bytes(copy))
    for content in bad:
        try:
            parameters, values = decoded(content)
        except RecordError as error:
            assert str(error).startswith("metrics: ")
            refused += 1
            continue
        read = official.ModelMetrics.FromString(content)
        assert read.trainable_parameters == parameters
        for row, entry in zip(values, read.evaluation_data[1:], strict=True):
            assert row == [entry.training_time, entry.train_accuracy,
                           entry.validation_accuracy, entry.test_accuracy]  # fmt: skip
    assert refused > len(whole) / 2
