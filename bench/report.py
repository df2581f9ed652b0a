# SPDX-License-Identifier: MIT
"""Write the measured blocks of the README: no number in it is typed by hand.

``python bench/report.py`` writes, ``python bench/report.py --check`` exits with 1 if it would.
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import card_report
import nasfast

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
RESULTS = REPOSITORY / "bench" / "results"
WIDTH = 116


def rank_block() -> str:
    """Return what the main job prints, and how long it took where."""
    result = json.loads((RESULTS / "rank_digits.json").read_text(encoding="utf-8"))
    lines: list[str] = []
    for line in result["output"]:
        lines += textwrap.wrap(line, WIDTH, subsequent_indent="    ") or [""]
    where = result["environment"]
    seconds = f"{result['train_s']:.0f} s to train and {result['rank_s']:.0f} s to rank"
    text = "\n".join(lines)
    return f"```\n{text}\n```\n\n({seconds} on one thread of {where['cpu']}.)"


def explain_block() -> str:
    """Return the table of what merging and sharing save on the whole space."""
    space = nasfast.spaces.NB201
    return f"```\n{nasfast.explain(space, space.enumerate())}\n```"


def ratio(result: dict[str, Any], rival: str) -> str:
    """Say how many times as long a rival took: median, minimum and maximum."""
    times = result[f"ratio_vs_{rival}"]
    return f"{times['median']:.1f}x ({times['min']:.1f} to {times['max']:.1f})"


def space_block() -> str:
    """Return the table of bench/space_nb201.py, with one row for each precision measured."""
    rows, notes = [], []
    for precision in ("fp32", "bf16"):
        file = RESULTS / f"space_nb201_{precision}.json"
        if not file.is_file():
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        baselines, peak = result["baselines"], result["peak"]
        cells = [f"{result['ours_s'] * 1e3:.1f} ms"]
        for rival in ("peer", "best_pytorch"):
            name = result[rival]
            cells += [f"{baselines[name] * 1e3:.0f} ms ({name})", ratio(result, rival)]
        cells.append(f"{result['share_of_peak']:.0%} of {peak['gflops']:.0f} ({peak['probe']})")
        rows.append(f"| {precision} | {' | '.join(cells)} |")
        where, count = result["environment"], result["repeats"]
        notes.append(
            f"{precision}: {where['threads']} threads of {where['cpu']}, torch "
            f"{where['versions']['torch']}, {len(result['work']['compared'])} architectures, "
            f"median (minimum to maximum) of {count} interleaved pairs."
        )
    if not rows:
        return "Not measured yet: `python bench/space_nb201.py --json FILE`."
    head = ["precision", "nasfast", "published code", "ratio", "best PyTorch", "ratio"]
    table = [f"| {' | '.join([*head, 'share of peak GFLOP/s'])} |", "|---" * 7 + "|", *rows]
    return "\n".join([*table, "", *notes])


def blocks_block() -> str:
    """Return the table of bench/space_1shot1.py, with one row for each precision measured."""
    rows, notes = [], []
    for precision in ("fp32", "bf16"):
        file = RESULTS / f"space_1shot1_{precision}.json"
        if not file.is_file():
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        cells = [precision, f"{result['ours_s'] * 1e3:.0f} ms"]
        for rival in ("peer", "eager_pytorch", "best_pytorch"):
            seconds = result["baselines"][result[rival]]
            cells.append(f"{seconds * 1e3:.0f} ms, {ratio(result, rival)}")
        cells.append(f"{result['share_of_peak']:.0%}")
        rows.append(f"| {' | '.join(cells)} |")
        where, order = result["environment"], result["list_order"]
        notes.append(
            f"{precision}: {where['threads']} threads of {where['cpu']}, torch "
            f"{where['versions']['torch']}; best PyTorch: {result['best_pytorch']}. In the order "
            f"of the list {order['lane_s'] * 1e3:.1f} ms each ({order['lanes']} measured): all "
            f"{order['space_archs']:,} subnets in about "
            f"{order['space_estimate_s'] / 60:.0f} min."
        )
    if not rows:
        return "Not measured yet: `python bench/space_1shot1.py --json FILE`."
    head = ["precision", "nasfast", "published code's way", "plain PyTorch", "best PyTorch"]
    table = [f"| {' | '.join([*head, 'share of peak'])} |", "|---" * 6 + "|", *rows]
    return "\n".join([*table, "", *notes])


TRAINING = {
    "train_nb201": "single-path training step",
    "mixed_op": "joint supernet, forward and backward",
    "finetune_nb201": "fine-tuning step",
}


def training_block() -> str:
    """Return the table of the scripts that measure training, a row for each and precision."""
    rows, notes = [], []
    for name, words in TRAINING.items():
        for precision in ("fp32", "bf16"):
            file = RESULTS / f"{name}_{precision}.json"
            if not file.is_file():
                continue
            result = json.loads(file.read_text(encoding="utf-8"))
            cells = [f"{words}, {precision}", f"{result['ours_s'] * 1e3:.0f} ms"]
            for rival in ("peer", "best_pytorch", "eager_pytorch"):
                seconds = result["baselines"][result[rival]]
                cells.append(f"{seconds * 1e3:.0f} ms, {ratio(result, rival)}")
            cells.append(f"{result['share_of_peak']:.0%}")
            rows.append(f"| {' | '.join(cells)} |")
            where = result["environment"]
            notes.append(f"{where['threads']} threads of {where['cpu']}, torch "
                         f"{where['versions']['torch']}")  # fmt: skip
            if "ours_all_s" in result:
                work, best = result["work"], result["baselines_all_s"][result["best_pytorch"]]
                notes.append(
                    f"{work['archs']} architectures x {work['steps']} steps, {precision}: "
                    f"{result['ours_all_s'] / 60:.1f} min; best PyTorch, scaled from fewer: "
                    f"{best / 60:.0f} min"
                )
    if not rows:
        return f"Not measured yet: `python bench/{next(iter(TRAINING))}.py --json FILE`."
    head = ["work", "nasfast", "published code", "best PyTorch", "plain PyTorch", "share of peak"]
    table = [f"| {' | '.join(head)} |", "|---" * 6 + "|", *rows]
    return "\n".join([*table, "", *(f"{note}." for note in dict.fromkeys(notes))])


def card_block() -> str:
    """Return the tables of bench/gpu_check.sh."""
    return card_report.report(RESULTS) or "Not measured yet: `bench/gpu_check.sh`."


def rewritten(text: str) -> str:
    """Return the README with its blocks made anew."""
    blocks = {"rank": rank_block(), "explain": explain_block()}
    if "<!-- space_nb201: " in text:
        blocks["space_nb201"] = space_block()
    if "<!-- space_1shot1: " in text:
        blocks["space_1shot1"] = blocks_block()
    if "<!-- training: " in text:
        blocks["training"] = training_block()
    if "<!-- card: " in text:
        blocks["card"] = card_block()
    for name, block in blocks.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, count=1, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"README.md: no block {name!r}")
    return text


def main() -> None:
    """Write the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = rewritten(before)
    if options.check:
        sys.exit(0 if before == after else "README.md is not what bench/report.py writes")
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
