#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles the CUDA sources with all warnings, and compares what kernels use with a table.

The table is .ci/cuda_resources.txt: registers, stack, spills and static shared memory of every
kernel on every architecture. Spills or a stack need a reason there, written by hand behind the
numbers. No card is needed; without nvcc nothing is compiled.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / ".ci" / "cuda_resources.txt"
OBJECTS = REPOSITORY / "build" / "cuda"
UPDATE = ".venv/bin/python .ci/compile_cuda.py --update"
NVCC_FLAGS = [
    "-std=c++20", "-O3", "-lineinfo", "-Icsrc", "-Werror", "all-warnings",
    "-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", "-v,-Werror",
    "-gencode", "arch=compute_80,code=sm_80",
    "-gencode", "arch=compute_90,code=[sm_90,compute_90]",
]  # fmt: skip
HOST_FLAGS = [
    "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Icsrc", "-Wall", "-Wextra", "-Werror"
]  # fmt: skip
OPS_FLAGS = [
    "-DUSE_CUDA", "-DNASFAST_CUDA_ARCHS=\"8.0\"", "-DTORCH_TARGET_VERSION=0x020a000000000000"
]  # fmt: skip

Enumerators = dict[str, list[str]]


@dataclass(frozen=True, order=True)
class Kernel:
    """What a kernel uses on an architecture; bytes but for the registers."""

    file: str
    kernel: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    reason: str = ""

    def is_tight(self) -> bool:
        return bool(self.stack or self.spill_stores or self.spill_loads)


HEADER = tuple(field.name for field in fields(Kernel))


def enumerators_of(sources: str) -> Enumerators:
    """Return the words for the values of each enum class: ["fp32", "bf16"] of kFp32, kBf16."""
    found = re.findall(r"enum class (\w+)[^{;]*\{([^}]*)\}", sources)
    return {name: [word_of(value) for value in re.findall(r"\w+", body)] for name, body in found}


def word_of(enumerator: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enumerator.removeprefix("k")).lower()


def short_name(demangled: str, enumerators: Enumerators) -> str:
    """Return a kernel's name without namespaces, types and blanks: pass_kernel<bf16,64>."""
    name = demangled.replace("(anonymous namespace)::", "")
    name = re.sub(r"\b\w+::", "", name)
    name = re.sub(r"\((\w+)\)(\d+)", lambda m: enumerators[m[1]][int(m[2])], name)
    return name.partition("(")[0].removeprefix("void ").replace(" ", "")


def parse_report(file: str, report: str, enumerators: Enumerators) -> list[Kernel]:
    """Return the kernels of a demangled report of ``ptxas -v``.

    Functions that are called instead of inlined are counted with the kernel before them.

    Raises:
        ValueError: If the report has no kernel, or one without its registers.
    """
    entry = re.compile(r"Compiling entry function '(.*)' for '(\w+)'\n")
    _, *parts = entry.split(report)
    if not parts:
        raise ValueError(f"{file}: ptxas reports no kernel")
    kernels = []
    for name, arch, text in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        kernel = short_name(name, enumerators)
        registers = re.search(r"Used (\d+) registers", text)
        if registers is None:
            raise ValueError(f"{file}: {kernel} for {arch}: ptxas reports no registers")

        def numbers(what: str, text: str = text) -> list[int]:
            return [int(number) for number in re.findall(rf"(\d+) bytes {what}", text)]

        kernels.append(
            Kernel(
                file,
                kernel,
                arch,
                registers=int(registers[1]),
                stack=max(numbers("stack frame") + numbers("cumulative stack size")),
                spill_stores=sum(numbers("spill stores")),
                spill_loads=sum(numbers("spill loads")),
                shared=sum(numbers("smem")),
            )
        )
    return kernels


def table_of(kernels: Sequence[Kernel], nvcc: str) -> str:
    """Return the table as text; :func:`parse_table` reads it."""
    rows = [HEADER, *(tuple(map(str, astuple(kernel))) for kernel in sorted(kernels))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"# What kernels use: made with nvcc {nvcc} by {UPDATE}"]
    for row in rows:
        cells = [
            cell.ljust(width) if index < 3 or index == 8 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def parse_table(text: str) -> tuple[list[Kernel], str]:
    """Return the kernels of a table and the version of nvcc that it was made with."""
    title, _, *rows = text.splitlines()
    kernels = []
    for row in rows:
        *names, numbers = row.split(maxsplit=3)
        cells = numbers.split(maxsplit=5)
        reason = cells[5] if len(cells) > 5 else ""
        kernels.append(Kernel(*names, *map(int, cells[:5]), reason))
    version = re.search(r"nvcc (\S+)", title)
    assert version is not None, title
    return kernels, version[1]


def with_reasons(kernels: Sequence[Kernel], committed: Sequence[Kernel]) -> list[Kernel]:
    """Return the kernels with the committed reasons of those that still need one."""
    reasons = {(k.file, k.kernel, k.arch): k.reason for k in committed}
    return [
        replace(k, reason=reasons.get((k.file, k.kernel, k.arch), "")) if k.is_tight() else k
        for k in kernels
    ]


def complaints(kernels: Sequence[Kernel], nvcc: str, committed_text: str) -> str:
    """Return what is wrong with what kernels use; empty text if nothing is.

    Numbers are those of one compiler: with another version of nvcc only spills and stacks count.
    """
    committed, made_with = parse_table(committed_text)
    kernels = with_reasons(kernels, committed)
    lines = [
        f"{k.file}.cu: {k.kernel} on {k.arch}: {k.stack} bytes of stack, {k.spill_stores} and "
        f"{k.spill_loads} bytes of spill stores and loads, and no reason in {TABLE.name}"
        for k in sorted(kernels)
        if k.is_tight() and not k.reason
    ]
    now = table_of(kernels, nvcc)
    if made_with == nvcc and now != committed_text:
        lines += difflib.unified_diff(
            committed_text.splitlines(), now.splitlines(), "committed", "compiled", lineterm=""
        )
        lines.append(f"if that is as it should be: {UPDATE}")
    return "\n".join(lines)


def run(*command: str | Path) -> str:
    """Return what a command prints; stop, showing it, if the command fails."""
    done = subprocess.run(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def compile_kernels() -> list[Kernel]:
    headers = sorted((REPOSITORY / "csrc/kernels/cuda").glob("*.[ch]*"))
    enumerators = enumerators_of("\n".join(path.read_text() for path in headers))

    def compile_one(source: Path) -> list[Kernel]:
        report = run("nvcc", *NVCC_FLAGS, "-c", source, "-o", OBJECTS / f"{source.name}.o")
        demangled = subprocess.run(
            ["c++filt"], input=report, capture_output=True, text=True, check=True
        )
        return parse_report(source.stem, demangled.stdout, enumerators)

    sources = sorted((REPOSITORY / "csrc/kernels/cuda").glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [kernel for kernels in pool.map(compile_one, sources) for kernel in kernels]


def compile_host() -> int:
    """Compile what launches the kernels, and return the number of files."""
    found = re.search(r'INCLUDES="-I(.*?)"', run("nvcc", "--dryrun", "-c", "no_such_file.cpp"))
    assert found is not None, "nvcc --dryrun names no include folder"
    jobs = [
        (source, [])
        for pattern in ("csrc/engine/cuda/*.cpp", "bench/card_*.cpp")
        for source in sorted(REPOSITORY.glob(pattern))
    ]
    operators = sorted(REPOSITORY.glob("csrc/ops/*_cuda.cpp"))
    if operators:
        from torch.utils.cpp_extension import include_paths

        flags = [flag for path in include_paths() for flag in ("-isystem", path)]
        jobs += [(source, [*OPS_FLAGS, *flags]) for source in operators]

    def compile_one(job: tuple[Path, list[str]]) -> None:
        source, flags = job
        out = OBJECTS / f"{source.name}.o"
        run(
            os.environ.get("CXX", "g++"), *HOST_FLAGS, *flags, "-isystem", found[1], "-c", source,
            "-o", out,
        )  # fmt: skip

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(list(pool.map(compile_one, jobs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.name} anew")
    update = parser.parse_args().update
    if shutil.which("nvcc") is None:
        print("no nvcc on this machine: CUDA sources not compiled")
        return
    OBJECTS.mkdir(parents=True, exist_ok=True)
    version = re.search(r"V(\d[\d.]*)", run("nvcc", "--version"))
    assert version is not None, "nvcc --version names no version"
    nvcc = version[1]
    kernels = compile_kernels()
    if update:
        committed = parse_table(TABLE.read_text())[0] if TABLE.exists() else []
        TABLE.write_text(table_of(with_reasons(kernels, committed), nvcc))
    print(f"{len(kernels)} kernels compiled by nvcc {nvcc}")
    committed_text = TABLE.read_text()
    wrong = complaints(kernels, nvcc, committed_text)
    if wrong:
        sys.exit(wrong)
    made_with = parse_table(committed_text)[1]
    if made_with != nvcc:
        print(f"{TABLE.name} was made with nvcc {made_with}: only spills and stacks are checked")
    print(f"{compile_host()} files of the host side compiled")


if __name__ == "__main__":
    main()
