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


def rewritten(text: str) -> str:
    """Return the README with its blocks made anew."""
    for name, block in (("rank", rank_block()), ("explain", explain_block())):
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
