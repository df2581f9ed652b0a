# SPDX-License-Identifier: MIT
"""SoTL and validation accuracy as rankings, on CIFAR-10 images, with three supernets.

After Fil's thesis, Table 4.1: 200 architectures of NAS-Bench-201, drawn once, are fine-tuned for
100 steps from each of three supernets (C=16, N=1, uniform single paths, 20,000 training images);
estimators are correlated with the published test accuracies. SoTL is that of all steps; TLMini,
ValAcc and ValAccMini are taken before fine-tuning, as in the thesis. Controls: parameter count,
FLOPs, and SoTL from the first supernet's initial weights.

Needs a folder (the environment variable NASFAST_DATA) with ``cifar10_train.npz``,
``cifar10_test.npz`` and ``nb201_accuracy.npz``. Type the same command again to go on after a kill.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from cifar10 import CONFIG, data_files, nasfast
from environment import environment

VALID_IMAGES = 2048
MORE = """precision = "bf16"
[finetune]
archs = {archs}
sample_seed = 2021
control = {control}
steps = 100
lr = 0.01
validate_at = [0]
precision = "bf16"
"""


def over_seeds(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and deviation of each estimator's figures over the supernets."""
    rows = []
    for first in runs[0]["estimators"]:
        name = first["estimator"]
        same = [e for run in runs for e in run["estimators"] if e["estimator"] == name]
        row: dict[str, Any] = {"estimator": name, "supernets": len(same), "n": first["n"]}
        for figure in ("spearman", "kendall_tau_b", "top_10_mean_truth"):
            values = [e[figure] for e in same]
            row[figure] = {
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, mean (deviation)."""

    def cell(figure: dict[str, Any]) -> str:
        deviation = figure["deviation"]
        return f"{figure['mean']:.3f}" + (f" ({deviation:.3f})" if deviation is not None else "")

    lines = ["| estimator | Spearman | Kendall tau-b | top-10 test accuracy | supernets |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        cells = [cell(row[figure]) for figure in ("spearman", "kendall_tau_b", "top_10_mean_truth")]
        lines.append(f"| {row['estimator']} | {' | '.join(cells)} | {row['supernets']} |")
    return "\n".join(lines)


def main() -> None:
    """Train, fine-tune, write one JSON object, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of training a supernet")
    parser.add_argument("--archs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    work = options.work.resolve()
    files = data_files(work, valid_images=VALID_IMAGES)
    trained, tuned = [], []
    for seed in range(options.seeds):
        config, run = work / f"seed{seed}.toml", work / f"seed{seed}"
        config.write_text(
            (CONFIG + MORE).format(
                name="sotl_cifar10", seed=seed, threads=options.threads, epochs=options.epochs,
                archs=options.archs, control="true" if seed == 0 else "false", **files,
            ),
            encoding="utf-8",
        )  # fmt: skip
        trained.append(nasfast("train", str(config), "--run", str(run)))
        tuned.append(nasfast("finetune", str(run)))
    rows = over_seeds(tuned)
    result = {
        "name": "sotl_cifar10",
        "work": f"20,000 CIFAR-10 images (JPEG-decoded), C=16, N=1, {options.epochs} epochs in "
        f"bf16, {options.seeds} supernets; {options.archs} architectures fine-tuned for 100 steps "
        f"of 64 images at learning rate 0.01; validation: {VALID_IMAGES} test images, one "
        "minibatch of 64 for ValAccMini; truth: cifar10_test of NAS-Bench-201 (200 epochs)",
        "training": [{k: run[k] for k in ("epochs", "loss", "accuracy")} for run in trained],
        "estimators": rows,
        "diverged": [run["diverged"] for run in tuned],
        "environment": environment(threads=options.threads),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
