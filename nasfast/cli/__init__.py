# SPDX-License-Identifier: MIT
"""The command line: train, rank, finetune, verify, report; experiment, compare; tables; tools."""

from nasfast.cli import runs

# isort: split
# After them: help lists commands as they are imported.
from nasfast.cli import experiments, table_curves, tables, tools
from nasfast.cli.app import app

__all__ = ["app", "experiments", "main", "runs", "table_curves", "tables", "tools"]


def main() -> None:
    """Run the command line."""
    app()
