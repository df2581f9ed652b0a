# SPDX-License-Identifier: MIT
"""A supernet of NAS-Bench-1Shot1 on real CIFAR-10 images, and the published NAS-Bench-101 truth.

Trains by uniform single paths on 20,000 training images, with the settings of the published random
search with weight sharing but fewer epochs, scores every distinct subnet of the space on validation
images taken from the test set, and correlates with the published 108-epoch test accuracies of the
cells that the subnets are. Controls: parameter count, FLOPs, and the supernet before training.

Needs a folder (the environment variable NASFAST_DATA) with ``cifar10_train.npz``,
``cifar10_test.npz`` and ``nb101_accuracy.npz``. The trained supernet is kept in the folder
``--work``: the same command again only ranks.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import nasfast
from environment import environment
from nasfast.data import Augmentation, ImageSet
from nasfast.metrics import kendall_tau, spearman
from precision import cifar10

Floats = npt.NDArray[np.float64]

CHANNELS, TRAIN_BATCH, RESAMPLES = 16, 64, 1000
TRUTH = "test_108"
CONTROLS = ("params", "flops")


@dataclass(frozen=True)
class Table:
    """Columns of NAS-Bench-101, float64 ``[archs]`` by name, and which network an arch is."""

    network: npt.NDArray[np.int64]
    columns: Mapping[str, Floats]


def published(file: Path, hashes: Sequence[str]) -> Table:
    """Return truth and controls of cells, by their hashes.

    Raises:
        SystemExit: If a cell is not in the table.
    """
    with np.load(file) as table:
        rows = {bytes(row): k for k, row in enumerate(table["hash"])}
        missing = [one for one in hashes if bytes.fromhex(one) not in rows]
        if missing:
            raise SystemExit(f"{file}: no cell with hash {missing[0]}")
        found = np.array([rows[bytes.fromhex(one)] for one in hashes])
        columns = {name: table[name][found].astype(np.float64) for name in (TRUTH, *CONTROLS)}
    return Table(np.unique(found, return_inverse=True)[1], columns)


# Rankings.


def figures(scores: Floats, truth: Floats) -> dict[str, Any]:
    """Return rank correlations; a higher score is better."""
    tau = kendall_tau(scores, truth, bootstrap=RESAMPLES)
    return {
        "kendall_tau_b": tau.value,
        "interval_95": tau.interval,
        "spearman": spearman(scores, truth).value,
        "n": tau.n,
        "dropped": tau.dropped,
        "ties": tau.ties_scores,
        "ties_truth": tau.ties_truth,
    }


def agreement(scores: Mapping[str, Floats], table: Table) -> list[dict[str, Any]]:
    """Return how far each ranking agrees with the truth, over subnets and over networks.

    Several subnets may be one network of NAS-Bench-101, trained once: over networks, each counts
    once, with the mean of its subnets' scores, and the interval is one over independent rows.
    """
    first = np.unique(table.network, return_index=True)[1]
    counts = np.bincount(table.network)
    rows = []
    for name, values in scores.items():
        means = np.bincount(table.network, weights=values) / counts
        rows.append(
            {
                "score": name,
                "subnets": figures(values, table.columns[TRUTH]),
                "networks": figures(means, table.columns[TRUTH][first]),
            }
        )
    return rows


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| score | tau-b, subnets (95 %) | tau-b, networks (95 %) | Spearman, networks |",
             "|---|---|---|---|"]  # fmt: skip
    for row in rows:
        cells = []
        for kind in ("subnets", "networks"):
            low, high = row[kind]["interval_95"] or (np.nan, np.nan)
            cells.append(f"{row[kind]['kendall_tau_b']:+.3f} ({low:+.3f} to {high:+.3f})")
        cells.append(f"{row['networks']['spearman']:+.3f}")
        lines.append(f"| {row['score']} | {' | '.join(cells)} |")
    return "\n".join(lines)


# The supernet.


def settings_of(options: argparse.Namespace) -> nasfast.TrainSettings:
    return nasfast.TrainSettings(
        epochs=options.epochs, lr=0.025, lr_min=0.001, momentum=0.9, nesterov=False,
        weight_decay=3e-4, clip=options.clip,
    )  # fmt: skip


def trained(
    shape: nasfast.SupernetConfig, images: ImageSet, options: argparse.Namespace
) -> tuple[nasfast.Supernet, dict[str, Any]]:
    """Train a supernet, or read the one that these settings have trained before."""
    settings = settings_of(options)
    about: dict[str, Any] = {
        "config": shape.to_dict(), "settings": asdict(settings), "seed": options.seed,
        "precision": options.precision, "images": len(images),
    }  # fmt: skip
    file, note = options.work / "supernet.safetensors", options.work / "training.json"
    if note.is_file():  # written last
        found = json.loads(note.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in about} == json.loads(json.dumps(about)):
            return nasfast.load(file), found
    supernet = nasfast.Supernet.create(shape, seed=options.seed)
    loader = nasfast.data.TrainLoader(
        images, TRAIN_BATCH, Augmentation(crop_padding=4, flip=True), seed=options.seed
    )
    begin = time.perf_counter()
    records = nasfast.train(
        supernet, loader, nasfast.UniformSampler(shape.spec, seed=options.seed), settings,
        precision=options.precision, threads=options.threads,
        on_epoch=lambda record, _: print(f"epoch {record.epoch}: loss {record.loss:.3f}, accuracy "
                                         f"{record.accuracy:.1%}", flush=True),
    )  # fmt: skip
    about |= {
        "train_s": time.perf_counter() - begin,
        "loss": records[-1].loss,
        "accuracy": records[-1].accuracy,
        "parameters": supernet.num_params,
    }
    note.unlink(missing_ok=True)
    supernet.save(file)
    note.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return supernet, about


def rank(options: argparse.Namespace) -> dict[str, Any]:
    """Train, score, and say how far the ranking agrees with the truth."""
    data = Path(os.environ["NASFAST_DATA"])
    shape = nasfast.SupernetConfig.published(f"nb1shot1-{options.space}", channels=CHANNELS)
    space = shape.spec
    if options.archs is None:
        archs = space.enumerate()
    else:
        archs = space.sample(options.archs, seed=options.seed, distinct=True)
    hashes = [space.to_nb101(arch).hash for arch in archs]
    table = published(data / "nb101_accuracy.npz", hashes)
    train_images, valid_images = cifar10(data, options.images)
    supernet, training = trained(shape, train_images, options)
    batches = nasfast.data.batches(valid_images, options.batch)

    def score(weights: nasfast.Supernet) -> nasfast.Scores:
        return nasfast.evaluate(
            weights, archs, batches, bn=options.bn, precision=options.precision,
            threads=options.threads, keep_images=False,
        )  # fmt: skip

    begin = time.perf_counter()
    scores = score(supernet)
    rank_s = time.perf_counter() - begin
    untrained = score(nasfast.Supernet.create(shape, seed=options.seed))
    rankings = {
        "supernet loss, negated": -scores.loss,
        "supernet accuracy": scores.accuracy,
        "parameter count": table.columns["params"],
        "FLOPs": table.columns["flops"],
        "untrained supernet, -loss": -untrained.loss,
    }
    best = int(np.nanargmin(scores.loss))
    return {
        "name": "rank_1shot1",
        "work": f"{len(train_images):,} CIFAR-10 images (JPEG-decoded), {space.title}, "
        f"C={CHANNELS}, {options.epochs} epochs of uniform single paths; {len(archs):,} distinct "
        f"subnets ranked on {options.images} test images, batch norm {options.bn!r}; truth: test "
        "accuracy of one run of NAS-Bench-101 (108 epochs)",
        "training": training,
        "rank_s": rank_s,
        "archs": len(archs),
        "networks": int(table.network.max()) + 1,
        "best": {
            "arch": str(archs[best]),
            "loss": float(scores.loss[best]),
            "accuracy": float(scores.accuracy[best]),
            "truth": float(table.columns[TRUTH][best]),
            "best_truth": float(table.columns[TRUTH].max()),
        },
        "correlations": agreement(rankings, table),
        "environment": environment(threads=options.threads),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, rank, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the supernet")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--space", choices=("1", "2", "3"), default="1", help="search space")
    parser.add_argument("--archs", type=int, help="score so many drawn subnets instead of all")
    parser.add_argument("--images", type=int, default=1024, help="to score on")
    parser.add_argument("--batch", type=int, default=256, help="images in a minibatch of these")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--clip", type=float, default=0.25, help="gradient norm; published: 0.25")
    parser.add_argument("--bn", default="batch", help="statistics to score with")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    result = rank(options)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text(result["correlations"]))


if __name__ == "__main__":
    main()
