# SPDX-License-Identifier: MIT
"""The application, and what all of its commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from nasfast import __version__
from nasfast.cli.progress import ERR
from nasfast.store import StoreError

app = typer.Typer(
    name="nasfast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Score whole neural-architecture-search spaces from one supernet.\n\n"
    "A first ranking, with nothing to download:\n\n"
    "    nasfast train configs/nb201_digits.toml\n\n"
    "    nasfast rank runs/nb201_digits\n\n"
    "train, rank, finetune, experiment and build-table can be killed and typed again: they go on "
    "where they stopped. "
    "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder, for example runs/nb201_digits.")]


_Params = ParamSpec("_Params")


def guarded(command: Callable[_Params, None]) -> Callable[_Params, None]:
    """Turn what a user can mend into one clear message and an exit code."""
    return _guarded(command, goes_on=False)


def resumable(command: Callable[_Params, None]) -> Callable[_Params, None]:
    """Do as :func:`guarded` for a command that goes on where it stopped."""
    return _guarded(command, goes_on=True)


def _guarded(command: Callable[_Params, None], goes_on: bool) -> Callable[_Params, None]:

    again = "; type the same command again to go on" if goes_on else ""

    @functools.wraps(command)
    def run(*args: _Params.args, **kwargs: _Params.kwargs) -> None:
        from nasfast.runs import RunError

        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            ERR.print(f"interrupted{again}")
            raise typer.Exit(130) from None
        except (ValueError, FileNotFoundError, RunError, StoreError) as error:
            ERR.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else error
            ERR.print(f"error: {where}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except (FloatingPointError, ImportError) as error:
            ERR.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return run


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
