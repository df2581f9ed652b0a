# SPDX-License-Identifier: MIT
"""Who may import whom: downward only. A module that is not in the table needs a row in it."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOT = "__init__"  # names of the package itself, such as nasfast.__version__


class Row(NamedTuple):
    modules: str  # of nasfast
    packages: str
    lazy_packages: str = ""  # only inside functions


ENGINE = (
    "unpickling spaces units skeletons layout supernet lower distinct lower_blocks lower_nb101 "
    "program registers engine_memory plan primitives reference reference_mixed "
    "ops native _host data cuda_device slow_paths inputs backends tf32"
)
DRIVERS = (
    "evaluate cost explain estimators lane_training lane_engine lane_backends curves finetune "
    "train joint_engine joint nn select metrics tables from_table"
)
RUNS = (
    "files origins journal runs image_bits scoring steps anytime anytime_run verify curve_store "
    "finetune_run finetune_summary from_scratch stand_alone cost_summary summary scalars markdown "
    "run_metrics experiment_config experiment_table experiment compare"
)
BELOW_CLI = f"{ENGINE} {DRIVERS} {RUNS} store sections config report compat"
LAYERS = {
    "spaces": Row("_host native", "numpy"),
    "unpickling": Row("", ""),
    "data": Row("unpickling", "numpy torch", "sklearn PIL"),
    "metrics": Row("_host native", "numpy"),
    "units": Row("", ""),
    "skeletons": Row("spaces units", ""),
    "layout": Row("spaces units skeletons", "numpy"),
    "supernet": Row("spaces units layout files", "numpy torch", "safetensors"),
    "lower": Row("spaces layout supernet _host", "numpy"),
    "distinct": Row("spaces", "numpy"),
    "lower_blocks": Row("spaces distinct lower", "numpy"),
    "lower_nb101": Row("spaces lower", "numpy"),
    "program": Row("spaces units distinct layout lower lower_blocks lower_nb101", "numpy"),
    "registers": Row("spaces program", "numpy"),
    "engine_memory": Row("spaces layout lower program", "numpy"),
    "plan": Row("spaces units layout lower program registers engine_memory", "numpy"),
    "primitives": Row("units", "torch"),
    "reference": Row(
        "spaces units layout supernet lower program registers plan primitives", "numpy torch"
    ),
    "reference_mixed": Row("spaces primitives reference", "torch"),
    "_register": Row("_ops", "torch"),
    "ops": Row("_register", "torch"),
    "native": Row("", ""),  # imports by name: _host and ops
    "cuda_device": Row("native", "torch"),
    "slow_paths": Row("cuda_device native ops", ""),
    "inputs": Row(ENGINE, "torch"),
    "tf32": Row("", "torch"),
    "backends": Row(ENGINE, "numpy torch"),
    "evaluate": Row(ENGINE, "numpy torch"),
    "cost": Row(ENGINE, "numpy"),
    "explain": Row(f"{ENGINE} cost", "numpy"),
    "estimators": Row("", "numpy"),
    "lane_training": Row(ENGINE, "numpy torch"),
    "lane_engine": Row(f"{ENGINE} lane_training", "numpy torch"),
    "lane_backends": Row(f"{ENGINE} lane_training lane_engine", ""),
    "curves": Row("spaces program estimators", "numpy"),
    "finetune": Row(f"{ENGINE} evaluate lane_training lane_backends curves", "numpy"),
    "train": Row(f"{ENGINE} evaluate lane_backends", "numpy torch"),
    "joint_engine": Row(ENGINE, "torch"),
    "joint": Row(f"{ENGINE} evaluate joint_engine", "numpy torch"),
    "nn": Row(
        "spaces units primitives reference reference_mixed native cuda_device slow_paths", "torch"
    ),
    "select": Row(f"{ENGINE} evaluate finetune metrics", "numpy torch"),
    "files": Row("", ""),
    "tables": Row(f"unpickling spaces data metrics files {ROOT}", "numpy", "torch safetensors"),
    "from_table": Row("estimators metrics tables", "numpy"),
    "origins": Row(ROOT, ""),
    "store": Row("files origins", "numpy"),
    "sections": Row(
        f"{ENGINE} lane_training lane_backends finetune train {ROOT}", "numpy torch pydantic"
    ),
    "config": Row(f"{ENGINE} lane_backends sections train {ROOT}", "numpy torch pydantic"),
    "report": Row(
        f"spaces metrics tables from_table store config {ROOT}",
        "numpy scipy matplotlib jinja2 markupsafe",
        "torch",  # its writer of TensorBoard's files
    ),
    "runs": Row(f"{ENGINE} train tables config files {ROOT}", "numpy torch"),
    "image_bits": Row("store", "numpy"),
    "scoring": Row(f"{ENGINE} evaluate tables runs store", "numpy torch"),
    "anytime": Row("metrics", "numpy scipy"),
    "anytime_run": Row(f"{ENGINE} anytime scoring runs store", "numpy"),
    "verify": Row(f"{ENGINE} files image_bits runs scoring store", "numpy torch"),
    "curve_store": Row("curves store", "numpy"),
    "finetune_run": Row(
        f"{ENGINE} lane_backends curves finetune tables runs scoring store curve_store",
        "numpy torch",
    ),
    "finetune_summary": Row(
        f"{ENGINE} cost estimators curves tables report runs finetune_run curve_store",
        "numpy",
    ),
    "steps": Row(
        f"{ENGINE} lane_backends train files runs image_bits scoring store",
        "numpy torch safetensors",
    ),
    "journal": Row("files", ""),
    "from_scratch": Row(f"{ENGINE} evaluate lane_training lane_backends train", "numpy"),
    "stand_alone": Row(
        f"{ENGINE} lane_backends from_scratch tables config files origins journal runs", "numpy"
    ),
    "cost_summary": Row(f"{ENGINE} cost explain report runs steps", ""),
    "summary": Row(
        f"{ENGINE} cost metrics tables report runs image_bits scoring steps store cost_summary "
        "finetune_summary verify",
        "numpy",
    ),
    "scalars": Row("metrics report runs finetune_summary", "numpy"),
    "markdown": Row("", ""),
    "run_metrics": Row(
        "spaces supernet estimators metrics runs scoring store curve_store finetune_run", "numpy"
    ),
    "experiment_config": Row("sections config", "pydantic"),
    "experiment_table": Row("metrics markdown run_metrics experiment_config", "numpy scipy"),
    "experiment": Row(
        "data train files sections runs store scoring steps finetune_run run_metrics "
        "experiment_config experiment_table",
        "",
    ),
    "compare": Row("metrics files markdown runs run_metrics experiment_table", ""),
    "compat": Row("spaces layout supernet unpickling", "numpy torch"),
    "cli": Row(f"{BELOW_CLI} {ROOT}", "numpy torch pydantic typer rich"),
    ROOT: Row(BELOW_CLI, "numpy torch"),
    "__main__": Row("cli", ""),
}

# What a C++ folder may not include or say.
FORBIDDEN_TEXT = [
    ("csrc/host/**/*", r'#include\s*[<"](torch|ATen|c10)/'),
    ("csrc/kernels/**/*", r'#include\s*[<"](torch/|ATen/|c10/|pybind11/|Python\.h)'),
    ("csrc/kernels/cpu/**/*", r'#include\s*[<"](.*/)?cuda'),
    ("csrc/kernels/cuda/**/*", r'#include\s*[<"](.*/)?cpu/'),
    ("csrc/ops/**/*", r"<<<"),
]


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, inside a function) of each import, less those for type checkers alone."""
    found: list[tuple[str, bool]] = []
    package = list(path.relative_to(REPOSITORY).parent.parts)

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            found.extend((".".join([*base, alias.name]), lazy) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(path.read_text(encoding="utf-8")), lazy=False)
    return found


def module_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "nasfast").parts[0].removesuffix(".py")


def offences(path: Path) -> list[str]:
    """The imports of one file that its row of the table does not allow."""
    module = module_of(path)
    row = LAYERS[module]
    found = []
    for name, lazy in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "nasfast":
            below = rest.partition(".")[0]
            below = below if below in LAYERS or below in ("_host", "_ops") else ROOT
            allowed = below in [module, *row.modules.split()]
        else:
            packages = f"{row.packages} {row.lazy_packages if lazy else ''}".split()
            allowed = top in sys.stdlib_module_names or top in packages
        if not allowed:
            found.append(name)
    return found


PYTHON_FILES = sorted((REPOSITORY / "nasfast").rglob("*.py"))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_downward(path):
    assert module_of(path) in LAYERS, "give this module a row in LAYERS"
    assert offences(path) == []


@pytest.mark.parametrize(("files", "pattern"), FORBIDDEN_TEXT)
def test_native_layers(files, pattern):
    lines = [
        f"{path.relative_to(REPOSITORY)}: {line}"
        for path in sorted(REPOSITORY.glob(files))
        if path.is_file()
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]
    assert lines == []


BLOCKER = """
import sys, types
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}.split():
            raise ModuleNotFoundError("blocked by the test: " + name, name=name)
sys.meta_path.insert(0, Blocker())
{code}
"""
NOT_NEEDED = "pydantic typer rich scipy matplotlib jinja2 sklearn safetensors"
# An empty parent package, because nasfast/__init__.py itself needs torch.
SPACES_ALONE = f"""
package = sys.modules["nasfast"] = types.ModuleType("nasfast")
package.__path__ = [{str(REPOSITORY / "nasfast")!r}]
import nasfast.spaces
"""


@pytest.mark.parametrize(
    ("code", "blocked"),
    [("import nasfast", NOT_NEEDED), (SPACES_ALONE, f"{NOT_NEEDED} torch")],
    ids=["nasfast", "spaces"],
)
def test_import_needs_little(code, blocked):
    program = BLOCKER.format(blocked=blocked, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
