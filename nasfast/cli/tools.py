# SPDX-License-Identifier: MIT
"""Commands that need no run: explain, enumerate, build-table, info."""

from __future__ import annotations

import importlib.util
import io
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from nasfast import cuda_device, slow_paths, spaces, tables
from nasfast.cli.app import JsonFlag, app, guarded, resumable
from nasfast.cli.progress import progress
from nasfast.cli.results import emit, paragraph
from nasfast.config import TableConfig, load_config
from nasfast.files import check_target, write_bytes
from nasfast.layout import SupernetConfig, searched, searched_spaces
from nasfast.lower import Mode

NB101 = "nb101"  # a list of cells, not a space of decisions: spaces.get does not know it


@app.command(
    epilog="Examples: `nasfast explain nb201`; `nasfast explain nb201 --without none`; "
    "`nasfast explain nb201 0 1462 '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|"
    "avg_pool_3x3~2|'`"
)
@guarded
def explain(
    space: Annotated[str, typer.Argument(
        help=f"Search space: {', '.join(searched_spaces())}.")],
    archs: Annotated[
        list[str] | None,
        typer.Argument(help="Architecture strings or official indices; the whole space if none."),
    ] = None,
    bn: Annotated[str, typer.Option(help="Statistics of the cells: batch, running, recalibrate.")]
    = "batch",
    affine: Annotated[bool | None, typer.Option(
        help="Cells have a trainable scale and shift; as published by default.")] = None,
    channels: Annotated[int, typer.Option(help="Channels of the first stage.")] = 16,
    cells: Annotated[int | None, typer.Option(
        help="Cells a stage; as published by default.")] = None,
    image: Annotated[int, typer.Option(help="Height and width of an image.")] = 32,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out an operation; may be repeated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:  # fmt: skip
    """Show what merging and sharing save when architectures are scored together.

    One line for each level of merging, weakest first. *networks*: distinct networks that are left
    to run; *operations*: their convolutions and poolings; *MAC* (with G, M or k):
    multiply-accumulates for one image; *first cells*: of these, in the first cell; *shared*: what
    is left of it when networks share equal parts of it.
    """
    from nasfast import explain as count

    shape = {"affine": affine, "cells_per_stage": cells}
    chosen_shape = {key: value for key, value in shape.items() if value is not None}
    config = SupernetConfig.published(space, channels=channels, **chosen_shape)
    spec = searched(space)
    if archs and without:
        raise ValueError("--without: narrows the whole space, so it goes without architectures")
    if archs:
        chosen = [_arch(spec, text) for text in archs]
    else:
        chosen = spec.enumerate(spec.mask(without or []))
    mode = Mode(bn, config.affine)  # type: ignore[arg-type]  # checked by Mode itself
    whole = not archs and not without
    encodings = spec.num_encodings if whole and isinstance(spec, spaces.BlockSpec) else None
    result = count(spec, chosen, config=config, mode=mode, image=(image, image))
    plain = {
        "title": result.title,
        "networks": result.requests,
        **({} if encodings is None else {"raw_encodings": encodings}),
        "steps": [
            {"merge": step.merge.name.lower(), **{k: v for k, v in vars(step).items()
                                                 if k != "merge"}}
            for step in result.steps
        ],
    }  # fmt: skip
    text = str(result)
    if encodings is not None:
        text += f"\n{encodings:,} raw encodings are {result.requests:,} distinct subnets"
        text += " of a supernet: loose ends play no part"
    emit(as_json, plain, text)


@app.command(
    "enumerate",
    epilog="Examples: `nasfast enumerate nb101`; `nasfast enumerate nb1shot1-3 --out list.npz`",
)
@guarded
def enumerate_space(
    space: Annotated[
        str, typer.Argument(help=f"Search space: {', '.join((NB101, *spaces.names()))}.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="List to write (.npz).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Count the architectures of a search space by every definition in use, and list them.

    The list has one row for each architecture, in the order of its index (NAS-Bench-101: of its
    hash).
    """
    from nasfast.spaces import listing

    if out is not None and out.suffix != ".npz":
        raise ValueError(f"--out: wanted the name of an .npz file, got {str(out)!r}")
    if out is not None:
        check_target(out, "--out")
    if space != NB101 and space not in spaces.names():
        known = ", ".join((NB101, *spaces.names()))
        raise ValueError(f"space: wanted one of {known}, got {space!r}")
    start = time.perf_counter()
    if space == NB101:
        with progress("labelled cells", quiet=as_json) as (bar, task):
            arrays, counts = listing.list_nb101(
                lambda done, total: bar.update(task, completed=done, total=total)
            )
    else:
        arrays, counts = listing.list_space(spaces.get(space))
    seconds = time.perf_counter() - start
    if out is not None:
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_bytes(out, content.getvalue())
    lines = [f"{key.replace('_', ' ')}: {count:,}" for key, count in counts.items()]
    lines.append(f"listed in {seconds:.1f} s")
    if out is not None:
        lines.append(f"written: {out}")
    plain = {
        "space": space,
        "counts": counts,
        "rows": len(next(iter(arrays.values()))),
        "seconds": seconds,
        "out": None if out is None else str(out),
    }
    emit(as_json, plain, "\n".join(lines))


@app.command(
    "build-table",
    epilog="Example: `nasfast build-table configs/table_digits_nb201.toml --out truth.npz "
    "--threads 2`",
)
@resumable
def build_table(
    config: Annotated[Path, typer.Argument(help="TOML file with a [table] section.")],
    out: Annotated[Path, typer.Option("--out", help="Table to write (.npz).")],
    backend: Annotated[
        str | None, typer.Option(help="auto, cpu (compiled) or reference (plain PyTorch).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64.")] = None,
    memory: Annotated[
        int, typer.Option(min=1, help="MiB for private weights and feature maps.")
    ] = 2048,
    threads: Annotated[int | None, typer.Option(help="Threads of the cpu backend.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train architectures from scratch and write what they reach as a ground-truth table.

    Architectures of the same function are trained once, unless the config says otherwise; every
    chunk of trainings is kept as it is done. Name the table in the `[truth]` section of a run's
    config to have its ranking compared.
    `--backend` and `--precision` take the place of values of the config and change the table;
    `--memory` and `--threads` do not.
    """
    from nasfast.stand_alone import build_table as build

    checked = load_config(config, TableConfig).with_options(backend=backend, precision=precision)
    with progress("trainings", quiet=as_json) as (bar, task):

        def on_progress(done: float, total: int) -> None:
            if bar.tasks[task].total is None:
                # Anew: what an earlier call has trained is no speed of this one.
                bar.reset(task, total=total, completed=int(done))
            bar.update(task, completed=done)

        table = build(checked, out, threads=threads, memory=memory * 2**20, on_progress=on_progress)
    result = {
        "table": str(out),
        "architectures": len(table.index),
        "networks": int(table.network.max()) + 1,
        "trainings": table.measured["trainings"],
        "seconds": table.measured["seconds"],
    }
    words = "{table}: {architectures:,} architectures, {networks:,} distinct networks"
    words += ", {trainings:,} trainings in {seconds:,.1f} s"
    emit(as_json, result, f"written: {words.format(**result)}")


@app.command(epilog="Example: `nasfast info --json`")
@guarded
def info(as_json: JsonFlag = False) -> None:
    """Show versions, backends, spaces and shipped tables, and which paths are slow and why."""
    from nasfast.runs import environment

    facts = {
        **environment(),
        "extensions": {name: _extension(name) for name in ("_host", "_ops")},
        **_engine(),
        "cuda": _cuda(),
        "spaces": {name: spaces.get(name).num_archs for name in spaces.names()},
        "tables": list(tables.shipped()),
    }
    emit(as_json, facts, "\n".join(paragraph(key, value) for key, value in facts.items()))


def _engine() -> dict[str, Any]:
    """Say what the CPU engine uses and what is slow, or why there is no engine."""
    try:
        cpu = slow_paths.cpu_info()
    except (ValueError, ImportError) as error:
        return {"backends": ["reference"], "isa": {"error": str(error)}}
    return {
        "backends": [*([] if cuda_device.why_not() else ["cuda"]), "cpu", "reference"],
        "isa": {"chosen": cpu.chosen, "not_used": slow_paths.not_used(cpu)},
        "kernels": slow_paths.kernels(cpu),
        "slow_paths": slow_paths.slow_paths(cpu),
    }


def _cuda() -> dict[str, str]:
    try:
        return slow_paths.cuda_info()
    except ImportError as error:
        return {"error": str(error)}


def _extension(name: str) -> str:
    """Say whether a compiled module can be used, and if not, why."""
    full = f"nasfast.{name}"
    try:
        if importlib.util.find_spec(full) is None:
            return "not built; run 'make install'"
        importlib.import_module(full)
    except ImportError as error:
        return f"built, but cannot be imported ({error})"
    return "built"


def _arch(spec: spaces.Space, text: str) -> spaces.Architecture:
    return spec.from_index(int(text)) if text.lstrip("-").isdecimal() else spec.from_string(text)
