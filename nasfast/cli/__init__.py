# SPDX-License-Identifier: MIT
"""The command line: train, rank, finetune, verify, report, explain, build-table, info."""

from nasfast.cli import runs, tools
from nasfast.cli.app import app

__all__ = ["app", "main", "runs", "tools"]


def main() -> None:
    """Run the command line."""
    app()
