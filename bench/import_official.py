# SPDX-License-Identifier: MIT
"""Read NAS-Bench-201 and NATS-Bench: seconds and memory, beside the authors' reader.

The official files cannot be had everywhere, so some architectures are written by the authors' own
classes (packages `nas-bench-201` and `nats_bench`), with all epochs and data sets, two or three
runs of 200 epochs each, and random numbers. Each reader works in a process that does nothing else,
on some architectures and on four times as many; what one more takes, times 15,625, is what the
whole would take. That is an estimate, and named so.
"""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from environment import environment
from nasfast.tables import nats_files, nb201_files
from nasfast.tables.official_releases import cell_texts
from pairs import peak_memory_mib

ARCHS, QUICK_ARCHS, ALL = 100, 10, 15_625
TESTS = Path(__file__).parents[1] / "tests"
READERS = ("one_file", "authors_one_file", "folder")


def write(folder: Path, archs: int) -> dict[str, Path]:
    """Write the one file of NAS-Bench-201 and a folder of NATS-Bench."""
    sys.path += [str(TESTS), str(TESTS / "data")]
    import make_nb201_fixtures as fixtures
    from official_results import one_file, save_nb201, save_packed

    rng = np.random.default_rng(0)
    fixtures.curve = lambda epochs, *_: dict(enumerate(rng.random(epochs).tolist()))
    texts, infos, many = cell_texts(), {}, folder / "NATS-tss-v1_0-3ffb9-simple"
    many.mkdir(parents=True)
    save_packed(many / nats_files.META, one_file({}, texts) | {"arch2infos": None})
    for index in range(archs):
        config = {"channel": 16, "num_cells": 5, "arch_str": texts[index]}
        long = fixtures.every(*(777, 888, 999)[: 2 + index % 2])
        short = fixtures.every(777) | {"cifar10-valid": (111, 777)}
        states = {}
        for key, seeds, epochs in (("full", long, 200), ("less", short, 12)):
            found = fixtures.arch_results(
                fixtures.Kinds201, index, texts[index], config, seeds, epochs
            )
            found.clear_params()
            states[key] = found.state_dict()
        # Texts as objects of their own, as in a file that was collected from many.
        infos[index] = pickle.loads(pickle.dumps(states))
        packed = {"12": states["less"], "200": states["full"]}
        save_packed(many / f"{index:06d}.pickle.pbz2", packed)
    return {"one_file": save_nb201(folder, one_file(infos, texts)), "folder": many}


def child(reader: str, path: Path) -> None:
    """The process that is measured."""
    if reader == "authors_one_file":
        import torch
        from nas_201_api import NASBench201API

        before, start = peak_memory_mib(), time.perf_counter()
        # As the package does, which today's torch.load refuses without being told to trust.
        found = NASBench201API(torch.load(path, map_location="cpu", weights_only=False), False)
        rows = len(found.evaluated_indexes)
    else:
        read = nats_files.read_folder if reader == "folder" else nb201_files.read_file
        before, start = peak_memory_mib(), time.perf_counter()
        rows = len(read(path, lambda done, total: None).columns["index"])
    seconds = time.perf_counter() - start
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_mib": peak_memory_mib(),
                      "peak_mib_before": before}))  # fmt: skip


def measure(archs: int) -> dict[str, dict[str, float]]:
    """Run every reader on both sizes; say what the whole would take."""
    folder = Path(tempfile.mkdtemp(prefix="import_official"))
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    try:
        for count in (archs, 4 * archs):
            paths = write(folder / str(count), count)
            for reader in READERS:
                path = paths[reader.removeprefix("authors_")]
                done = subprocess.run(
                    [sys.executable, __file__, "--child", reader, str(path)],
                    stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
                files = [path] if path.is_file() else list(path.iterdir())
                size = sum(file.stat().st_size for file in files) / 1e6
                runs[reader].append({**json.loads(done.stdout), "megabytes": size})
                if runs[reader][-1]["rows"] != count:
                    raise SystemExit(f"{reader}: wanted {count} rows, got {runs[reader][-1]}")
            shutil.rmtree(folder / str(count))
    finally:
        shutil.rmtree(folder)
    return {reader: {**few_and_many(*runs[reader]), "runs": runs[reader]} for reader in READERS}


def few_and_many(few: dict[str, float], many: dict[str, float]) -> dict[str, float]:
    """What one more architecture takes, and all of them by that."""
    more = many["rows"] - few["rows"]
    found = {}
    for key in ("seconds", "peak_mib", "megabytes"):
        each = (many[key] - few[key]) / more
        found[f"{key}_each"] = each
        found[f"{key}_of_all_estimated"] = many[key] + each * (ALL - many["rows"])
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    options.add_argument("--quick", action="store_true", help=f"{QUICK_ARCHS} architectures")
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    values = options.parse_args()
    if values.child:
        child(values.child[0], Path(values.child[1]))
        return
    archs = QUICK_ARCHS if values.quick else ARCHS
    found = {
        "name": "import_official",
        "quick": values.quick,
        "work": "reading official results of NAS-Bench-201 (one file) and NATS-Bench (folder) with "
        f"random numbers, {archs} and {4 * archs} architectures, into columns; 'of_all_estimated' "
        f"is a straight line to {ALL:,}, which was not measured",
        "readers": measure(archs),
        "load_average": os.getloadavg()[0],
        "environment": environment(1),
    }
    if values.json:
        values.json.parent.mkdir(parents=True, exist_ok=True)
        values.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for reader, result in found["readers"].items():
        print(f"{reader}: {result['seconds_each'] * 1e3:.0f} ms and "
              f"{result['peak_mib_each'] * 1024:.0f} KiB an architecture; all {ALL:,} by that: "
              f"{result['seconds_of_all_estimated'] / 60:.0f} min, "
              f"{result['peak_mib_of_all_estimated']:,.0f} MiB at most")  # fmt: skip


if __name__ == "__main__":
    main()
