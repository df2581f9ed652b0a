# SPDX-License-Identifier: MIT
"""What gpu_check.sh measured, as tables in Markdown: ``python bench/card_report.py FOLDER``."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

PRECISIONS = ("bf16", "tf32", "fp32")
MINIBATCHES = 391  # of 64, that 25,000 validation images make
WORDS = {
    "space_nb201_cuda": "an architecture of NAS-Bench-201",
    "card_1shot1": "an architecture of NAS-Bench-1Shot1 space 3",
    "card_finetune": "a fine-tuning step of an architecture",
    "mixed_edge_cuda": "a mixed operation of each size, forward and backward",
}


def results_of(folder: Path, name: str) -> Iterator[Result]:
    """Yield what a script measured on a card, by precision."""
    for precision in PRECISIONS:
        file = folder / f"{name}_{precision}.json"
        if file.is_file():
            result = json.loads(file.read_text(encoding="utf-8"))
            if result["device"] == "cuda":
                yield result


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return its lines; none where there are no rows."""
    if not rows:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def times(ratio: Mapping[str, float]) -> str:
    """Say how many times as long another took: median, minimum and maximum."""
    return f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})"


def rivals(folder: Path) -> list[str]:
    """Ours beside PyTorch."""
    rows = []
    for name, words in WORDS.items():
        for result in results_of(folder, name):
            best = result["best_pytorch"]
            rows.append([
                f"{words}, {result['precision']}",
                milliseconds(result["ours_s"]),
                f"{milliseconds(result['baselines'][best])}, "
                f"{times(result['ratio_vs_best_pytorch'])} ({best.removeprefix('PyTorch ')})",
                times(result["ratio_vs_eager_pytorch"]),
                f"{result['share_of_peak']:.1%}",
            ])  # fmt: skip
    head = ["work", "nasfast", "best PyTorch", "eager PyTorch", "share of a large matmul"]
    return table(head, rows)


def spaces(folder: Path) -> list[str]:
    """All of NAS-Bench-201 with merging."""
    rows = []
    for result in results_of(folder, "space_nb201_cuda"):
        space = result["whole_space"]
        rows.append([
            result["precision"], f"{space['archs']:,}", f"{space['lanes']:,}",
            f"{space['lowering_s']:.2f} s", f"{space['run_s']:.2f} s",
            f"{space['computing_s'] * MINIBATCHES / 60:.1f} min",
            f"{space['gflops'] / 1e3:.1f} TFLOP/s",
        ])  # fmt: skip
    head = ["precision", "architectures", "distinct", "lowering", "a minibatch of 64",
            "25,000 images (computed from that)", "rate"]  # fmt: skip
    return table(head, rows)


def kernels(folder: Path) -> list[str]:
    """Kernels alone."""
    rows = []
    for result in results_of(folder, "card_kernels"):
        for row in result["kernels"]:
            other_s = row["pytorch_s"]
            rows.append([
                f"{row['kernel']}, {result['precision']}", milliseconds(row["ours_s"]),
                f"{row['tflops']:.1f}" if row["flop"] else "", f"{row['gb_s']:.0f}",
                f"{row['share_of_ceiling']:.0%} of {row['bound']}",
                f"{other_s / row['ours_s']:.2f}x" if other_s else "",
            ])  # fmt: skip
    head = ["kernel", "time", "TFLOP/s", "GB/s", "share of the ceiling that binds",
            "PyTorch's operation, one weight for all"]  # fmt: skip
    return table(head, rows)


def ceilings(folder: Path) -> list[str]:
    """Where it was measured, and what that machine does at best."""
    lines = []
    for result in results_of(folder, "card_kernels"):
        where, peak = result["environment"], result["peak"]
        versions = where["versions"]
        lines.append(
            f"{where['gpu']}, torch {versions['torch']}, CUDA {versions['cuda']}; "
            f"{result['precision']}: a large matrix product {peak['matmul_gflops'] / 1e3:.0f} "
            f"TFLOP/s, a large copy {peak['copy_gb_s']:.0f} GB/s."
        )
    return lines


def memory(folder: Path) -> list[str]:
    """What a mixed operation takes beside what it is given."""
    rows = [
        [result["precision"], who, f"{mib:.0f} MiB"]
        for result in results_of(folder, "mixed_edge_cuda")
        for who, mib in result["memory"].items()
    ]
    return table(["precision", "a mixed operation of the largest size", "memory"], rows)


def report(folder: Path) -> str:
    """Return all of it, empty where nothing was measured on a card."""
    parts = [spaces(folder), rivals(folder), kernels(folder), memory(folder), ceilings(folder)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, help="where the results are")
    text = report(parser.parse_args().folder)
    print(text or "Nothing was measured on a card.")


if __name__ == "__main__":
    main()
