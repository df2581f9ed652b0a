"""Write nb101_small.tfrecord: five architectures of NAS-Bench-101 with all their 60 trainings.

Not run by the tests. The messages are made by Google's runtime for protocol buffers, the records by
the packages `tfrecord` and `crc32c` (1.14.6 and 2.9 at the time), which nothing else here uses:
`pip install --target FOLDER tfrecord crc32c`, then
`PYTHONPATH=FOLDER:tests python tests/data/make_nb101_fixture.py`. The graphs are of the space, the
hashes are theirs, the numbers are made up.
"""

import random
from pathlib import Path

import numpy as np
from nb101_official import OPS, Training, graph_hash, record
from tfrecord import TFRecordWriter

# Edges and inner operations; among them the smallest and one with all vertices and nine edges.
GRAPHS = [
    (2, [(0, 1)], []),
    (3, [(0, 1), (1, 2)], [0]),
    (4, [(0, 1), (0, 2), (1, 3), (2, 3)], [1, 2]),
    (5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)], [0, 0, 2]),
    (7, [(0, 1), (0, 2), (0, 3), (0, 5), (1, 6), (2, 6), (3, 4), (4, 6), (5, 6)], [1, 0, 0, 0, 2]),
]


def main() -> None:
    generator = random.Random(0)
    trainings = []
    for vertices, edges, inner in GRAPHS:
        matrix = np.zeros((vertices, vertices), dtype=int)
        for edge in edges:
            matrix[edge] = 1
        digits = "".join(map(str, matrix.reshape(-1)))
        names = ",".join(["input", *(OPS[op] for op in inner), "output"])
        name, parameters = graph_hash(digits, names), generator.randrange(1 << 25)
        for epochs in (4, 12, 36, 108):
            for _ in range(3):
                evaluations = [
                    (epochs * part, *(float(np.float32(generator.random() * scale))
                                      for scale in (epochs * part * 20, 1, 1, 1)))
                    for part in (0.0, 0.5, 1.0)
                ]  # fmt: skip
                trainings.append(Training(name, epochs, digits, names, parameters, evaluations))
    generator.shuffle(trainings)
    writer = TFRecordWriter(str(Path(__file__).with_name("nb101_small.tfrecord")))
    TFRecordWriter.serialize_tf_example = staticmethod(lambda content: content)
    for training in trainings:
        writer.write(record(training))
    writer.close()


if __name__ == "__main__":
    main()
