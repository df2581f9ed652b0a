"""NAS-Bench-101's layout as its authors write it: Google's protocol buffers, TensorBoard's records.

Nothing of nasfast is used here, so both directions of a reader can be held against it.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter

SMALL = Path(__file__).with_name("data") / "nb101_small.tfrecord"

# nasbench/lib/model_metrics.proto: (name, number, type, repeated)
METRICS = [
    ("evaluation_data", 1, ".nasbench.EvaluationData", True),
    ("trainable_parameters", 2, "TYPE_INT32", False),
    ("total_time", 3, "TYPE_DOUBLE", False),
]
EVALUATION = [
    ("current_epoch", 1, "TYPE_DOUBLE", False),
    ("training_time", 2, "TYPE_DOUBLE", False),
    ("train_accuracy", 3, "TYPE_DOUBLE", False),
    ("validation_accuracy", 4, "TYPE_DOUBLE", False),
    ("test_accuracy", 5, "TYPE_DOUBLE", False),
    ("checkpoint_path", 6, "TYPE_STRING", False),
]


def file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="model_metrics.proto", package="nasbench")
    for name, fields in (("ModelMetrics", METRICS), ("EvaluationData", EVALUATION)):
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            entry = message.field.add(name=field, number=number)
            entry.label = entry.LABEL_REPEATED if repeated else entry.LABEL_OPTIONAL
            if kind.startswith("."):
                entry.type, entry.type_name = entry.TYPE_MESSAGE, kind
            else:
                entry.type = getattr(entry, kind)
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(file_descriptor())
ModelMetrics: Any = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName("nasbench.ModelMetrics")
)


class Training(NamedTuple):
    hash: str
    epochs: int
    adjacency: str
    operations: str
    parameters: int
    evaluations: list[tuple[float, float, float, float, float]]  # the fields of EVALUATION


def metrics(training: Training, checkpoint: str | None = None) -> bytes:
    message = ModelMetrics(trainable_parameters=training.parameters, total_time=12.5)
    for values in training.evaluations:
        entry = message.evaluation_data.add()
        for (name, *_), value in zip(EVALUATION, values, strict=False):
            setattr(entry, name, value)
        if checkpoint is not None:
            entry.checkpoint_path = checkpoint
    return message.SerializeToString()


def record(training: Training, content: bytes | None = None) -> bytes:
    content = metrics(training) if content is None else content
    fields = [*training[:4], base64.b64encode(content).decode()]
    return json.dumps(fields).encode()


def framed(records: Iterable[bytes]) -> bytes:
    content = io.BytesIO()
    writer = RecordWriter(content)
    for entry in records:
        writer.write(entry)
    return content.getvalue()


def write(path: Path, records: Iterable[bytes]) -> Path:
    path.write_bytes(framed(records))
    return path


def unframed(content: bytes) -> Iterator[bytes]:
    """The records of a sound file, without a look at the checksums."""
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        yield content[12:end]
        content = content[end + 4 :]


def read(path: Path) -> Iterator[bytes]:
    """The records of a file by TensorBoard's reader."""
    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except Exception as error:
            if type(error).__name__ != "OutOfRangeError":
                raise
            return
        yield reader.record()


def statistics(path: Path) -> dict[str, dict[int, list[dict[str, float]]]]:
    """hash -> epochs -> runs in the order of the file, as nasbench's api.py keeps them."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    for content in read(path):
        name, epochs, _, _, text = json.loads(content)
        message = ModelMetrics.FromString(base64.b64decode(text))
        point: dict[str, float] = {}
        for prefix, entry in (("halfway_", message.evaluation_data[1]),
                              ("", message.evaluation_data[2])):  # fmt: skip
            point[f"{prefix}train_seconds"] = entry.training_time
            point[f"{prefix}train_accuracy"] = entry.train_accuracy
            point[f"{prefix}valid_accuracy"] = entry.validation_accuracy
            point[f"{prefix}test_accuracy"] = entry.test_accuracy
        found.setdefault(name, {}).setdefault(epochs, []).append(point)
    return found


OPS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")


def graph_hash(adjacency: str, operations: str) -> str:
    """The hash of a graph without loose ends, as nasbench's graph_util.py defines it."""

    def md5(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    names = operations.split(",")
    size = len(names)
    rows = [[int(digit) for digit in adjacency[i * size : (i + 1) * size]] for i in range(size)]
    columns = list(zip(*rows, strict=True))
    labels = [-1, *(OPS.index(name) for name in names[1:-1]), -2]
    found = [md5(str((sum(rows[v]), sum(columns[v]), labels[v]))) for v in range(size)]
    for _ in range(size):
        before, after = (
            ["".join(sorted(h for h, edge in zip(found, edges, strict=True) if edge))
             for edges in of] for of in (columns, rows)
        )  # fmt: skip
        found = [md5(f"{a}|{b}|{own}") for a, b, own in zip(before, after, found, strict=True)]
    return md5(str(sorted(found)))


def chain(number: int) -> tuple[str, str]:
    """Adjacency and operations of a chain; another number, another chain: 0 has no operation."""
    inner: list[str] = []
    while number:
        number, digit = divmod(number - 1, 3)
        inner.append(OPS[digit])
    size = len(inner) + 2
    digits = "".join(str(int(j == i + 1)) for i in range(size) for j in range(size))
    return digits, ",".join(["input", *inner, "output"])


# A training to change: an operation and a line.
EVALUATIONS = [(0, 0, 0.1, 0.1, 0.1), (54, 500, 0.5, 0.375, 0.25), (108, 1000, 1, 0.75, 0.625)]


def training(name: int = 1, epochs: int = 108, **changes: object) -> Training:
    graph = chain(name)
    made = Training(graph_hash(*graph), epochs, *graph, 1000, EVALUATIONS)
    return made._replace(**changes)
