# SPDX-License-Identifier: MIT
"""A report as a browser shows it. Skipped where none is installed; .ci/run installs one."""

import dataclasses
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from test_report import make_report
from test_report_finetuning import REPORT as FINE_TUNING
from test_report_metrics import with_images

from nasfast.report import CostReport, MergeRow, WorkRow, precision_check, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
WIDTH, HEIGHT = 1060, 9000
HEADINGS = (
    "Agreement with the ground truth", "What a search would find", "bf16 against fp32",
    "Fine-tuning", "All scored architectures", "Operations of the best", "The best architectures",
    "Cost", "How this was made", "Notes",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser installed (none of {', '.join(NAMES)})"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with every section."""
    report = with_images(make_report(3300))
    scores = report.loss[:50].astype(np.float64), np.asarray(report.accuracy[:50])
    cost = CostReport(
        "On a machine.", (WorkRow("Scoring", 3300, 2.5, macs=10**11),),
        (MergeRow("As asked for", 3300, 2 * 10**9), MergeRow("Merged", 1700, 10**9)),
    )  # fmt: skip
    report = dataclasses.replace(
        report,
        precision=precision_check("bf16", *scores, *scores),
        finetuning=FINE_TUNING,
        cost=cost,
    )
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(report, path)
    return path


def browse(page, *arguments):
    """Run the browser without a network: what it would fetch, it could not show."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={page.parent / 'profile'}", f"--window-size={WIDTH},{HEIGHT}",
        *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_browser_sees_every_section(page):
    dom = browse(page, "--dump-dom")
    assert tuple(re.findall("<h2>(.*?)</h2>", dom)) == HEADINGS
    figures = re.findall("<figure>.*?</figure>", dom, flags=re.DOTALL)
    assert len(figures) == 11
    assert all("<svg" in figure and "<figcaption>" in figure for figure in figures)
    outside = dom.replace("http://www.w3.org/", "")  # names of namespaces
    assert "http:" not in outside and "https:" not in outside and "<script" not in dom
    assert len(re.findall(r'<tr>\s*<td class="left rank">', dom)) == 10


def test_the_picture_has_content(page):
    file = page.parent / "page.png"
    browse(page, f"--screenshot={file}")
    picture = matplotlib.image.imread(file)[:, :, :3]
    assert picture.shape == (HEIGHT, WIDTH, 3)
    ink = (picture < 0.98).any(axis=2)
    bottom = int(np.flatnonzero(ink.any(axis=1)).max())
    assert 5000 < bottom < HEIGHT - 10  # all of the page fits into the picture
    # Nothing lies beyond the right edge, and no screenful is empty.
    assert not ink[:, -20:].any()
    assert all(ink[y : y + 700].mean() > 0.01 for y in range(0, bottom - 700, 700))
    # Most of it is black and white; plots are blue.
    red, blue = picture[..., 0], picture[..., 2]
    assert ((blue - red) > 0.2).sum() > 20_000
