# SPDX-License-Identifier: MIT
"""Import a file as large as nasbench_only108.tfrecord: seconds and memory.

The official file cannot be had everywhere, so one of the same layout, with as many records and
about as many bytes, is made of the space's own cells and random numbers in a temporary folder. A
process that does nothing else imports it, as `nasfast import table --partial` does: random
accuracies are not the known best.
"""

import argparse
import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from environment import environment
from nasfast.spaces.nb101 import MAX_VERTICES, enumerate_nb101
from nasfast.tables.curve_table import CurveTable
from nasfast.tables.importers import import_table
from nasfast.tables.nb101_files import BUDGETS, REPEATS, ROWS
from nasfast.tables.tfrecord import Checksums
from pairs import peak_memory_mib

QUICK_ROWS = 4_000
# Two doubles and three accuracies with their tags; then the parameters.
EVALUATION = struct.Struct("<BBBdBdBdBdBd")


def message(seconds: np.ndarray, accuracies: np.ndarray, parameters: int) -> bytes:
    """A ModelMetrics message: three evaluations, parameters, total time."""
    content = b""
    for when in range(3):
        train, valid, test = accuracies[when].tolist()
        content += EVALUATION.pack(
            0x0A, EVALUATION.size - 2, 0x09, 54.0 * when, 0x11, float(seconds[when]),
            0x19, train, 0x21, valid, 0x29, test,
        )  # fmt: skip
    content += b"\x10"
    while parameters > 127:
        content += bytes([parameters & 127 | 128])
        parameters >>= 7
    return content + bytes([parameters, 0x19]) + struct.pack("<d", float(seconds[2]) * 1.2)


def cells(rows: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Hash, adjacency and operations of some cells of the space, in no order."""
    for vertices in range(5, MAX_VERTICES + 1):  # few small cells are listed in a moment
        listed = enumerate_nb101(vertices)
        if len(listed.hash) >= rows:
            break
    found = []
    for row in rng.permutation(len(listed.hash))[:rows].tolist():
        cell = listed.cell(row)
        digits = "".join(str(digit) for line in cell.matrix for digit in line)
        found.append((listed.hash[row].tobytes().hex(), digits, ",".join(cell.ops)))
    return found


def records(rows: int, epochs: int, seed: int = 0) -> Iterator[bytes]:
    """All repeats of all architectures, one repeat after the other."""
    rng = np.random.default_rng(seed)
    graphs = cells(rows, rng)
    parameters = rng.integers(300_000, 50_000_000, rows).tolist()
    for _ in range(REPEATS):
        for row in range(rows):
            if row % 1000 == 0:
                seconds = np.float32(rng.random((1000, 3)) * 2000).astype(np.float64)
                accuracies = np.float32(rng.random((1000, 3, 3))).astype(np.float64)
            metrics = message(seconds[row % 1000], accuracies[row % 1000], parameters[row])
            name, adjacency, operations = graphs[row]
            text = base64.b64encode(metrics).decode()
            fields = [name, epochs, adjacency, operations, text]
            yield json.dumps(fields, separators=(",", ":")).encode()


def write(path: Path, contents: Iterator[bytes], at_once: int = 20_000) -> int:
    """Write a TFRecord file; return the number of its records."""
    checker, count = Checksums(), 0
    with path.open("wb") as file:
        while group := list(islice(contents, at_once)):
            count += len(group)
            lengths = np.array([len(record) for record in group], dtype=np.int64)
            heads = lengths.astype("<u8").tobytes()
            body = b"".join(group)
            eights = np.full_like(lengths, 8)
            head_sums = checker.masked(np.frombuffer(heads, np.uint8), np.arange(len(group)) * 8,
                                       eights)  # fmt: skip
            body_sums = checker.masked(
                np.frombuffer(body, np.uint8), np.cumsum(lengths) - lengths, lengths
            )
            for index, record in enumerate(group):
                file.write(heads[8 * index : 8 * index + 8])
                file.write(int(head_sums[index]).to_bytes(4, "little"))
                file.write(record)
                file.write(int(body_sums[index]).to_bytes(4, "little"))
    return count


def child(source: Path, out: Path) -> None:
    """The process that is measured."""
    before = peak_memory_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    report = import_table(source, out, partial=True)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_seconds, "rows": report["rows"],
                      "peak_mib": peak_memory_mib(), "peak_mib_before": before}))  # fmt: skip


def loading_seconds(table: Path) -> tuple[float, float]:
    """To open the table, and to open it and read the mean test accuracy of every row."""
    start = time.perf_counter()
    opened = CurveTable.open(table)
    opening = time.perf_counter() - start
    opened.truth("cifar10", 108)
    return opening, time.perf_counter() - start


def measure(rows: int, repeats: int, budgets: tuple[int, ...] = (108,)) -> dict[str, object]:
    """Make the file, import it some times, open the table, and remove both."""
    folder = Path(tempfile.mkdtemp(prefix="import_tfrecord"))
    try:
        source, table = folder / "random.tfrecord", folder / "random.table"
        every = (record for epochs in budgets for record in records(rows, epochs))
        count = write(source, every)
        runs = []
        for _ in range(repeats):
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(source), str(table)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            runs.append(json.loads(done.stdout))
        if runs[0]["rows"] != rows:
            raise SystemExit(f"wanted {rows} rows, got {runs[0]['rows']}")
        seconds = sorted(run["seconds"] for run in runs)
        loading = [loading_seconds(table) for _ in range(5)]
        megabytes = source.stat().st_size / 1e6
        return {
            "records": count,
            "megabytes": megabytes,
            "ours_s": seconds[len(seconds) // 2],
            "runs_s": seconds,
            "cpu_s": sorted(run["cpu_s"] for run in runs)[len(runs) // 2],
            "mb_per_s": megabytes / seconds[len(seconds) // 2],
            "peak_mib": max(run["peak_mib"] for run in runs),
            "peak_mib_before": max(run["peak_mib_before"] for run in runs),
            "table_megabytes": table.stat().st_size / 1e6,
            "opening_s": sorted(opening for opening, _ in loading)[2],
            "truth_s": sorted(truth for _, truth in loading)[2],
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    options.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} architectures")
    options.add_argument("--full", action="store_true", help="all lengths: nasbench_full.tfrecord")
    options.add_argument("--repeats", type=int, default=1, metavar="N")
    options.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    values = options.parse_args()
    if values.child:
        child(*values.child)
        return
    rows = QUICK_ROWS if values.quick else ROWS
    which = "full" if values.full else "only108"
    found = {
        "name": "import_tfrecord",
        "quick": values.quick,
        "work": f"all records of a file of the layout and size of nasbench_{which}.tfrecord, with "
        "random numbers: both checksums of each, JSON, metrics, sorting by hash, writing",
        **measure(rows, values.repeats, BUDGETS if values.full else (108,)),
        "load_average": os.getloadavg()[0],
        "environment": environment(1),
    }
    if values.json:
        values.json.parent.mkdir(parents=True, exist_ok=True)
        values.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['records']:,} records, {found['megabytes']:,.0f} MB: {found['ours_s']:.1f} s "
          f"({found['cpu_s']:.1f} s of processor), {found['mb_per_s']:.1f} MB/s, "
          f"peak {found['peak_mib']:,.0f} MiB; "
          f"opening the table {found['opening_s'] * 1e3:.1f} ms, "
          f"with one quantity of every row {found['truth_s'] * 1e3:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
