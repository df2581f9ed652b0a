"""Random text, specs, configurations, tables and goals: read as meant, or one clear error."""

import json
import re
import string

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny_runs import RUN, TABLE, changed, write_toml

from nasfast import Supernet, SupernetConfig, _host, compile_archs, ops
from nasfast.anytime import Goal
from nasfast.config import ConfigError, RunConfig, TableConfig, load_config, parse_config
from nasfast.lane_training import Sgd
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import alone, build_training
from nasfast.spaces import NB201, CellSpec, OpKind, OpSpec

LONGEST = 2500
archs = st.lists(st.integers(0, 4), min_size=6, max_size=6).map(NB201.arch)
pieces = st.sampled_from([*"|~+0123 ", "none~0", "|none~0|", "skip_connect", "\0", "é", "|+|", ""])


@st.composite
def mutated(draw, texts, parts=pieces):
    """Texts with parts cut out, doubled, or put in."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        end = min(end, start + draw(st.sampled_from([0, 1, 3, 99])))
        new = draw(parts | st.just(text[start:end] * 2) | st.text(max_size=3))
        text = text[:start] + new + text[end:]
    return text


# Architectures.


@settings(max_examples=400)
@given(st.text(max_size=80) | st.lists(pieces).map("".join) | mutated(archs.map(str)))
@example("|none~0|" * 100_000)
@example("|" + "x" * 100_000 + "~0|+||+||")
def test_architecture_strings(text):
    try:
        arch = NB201.from_string(text)
    except ValueError as error:
        message = str(error)
        assert message.startswith("architecture ")
        assert "wanted " in message and "\n" not in message
        assert len(message) < LONGEST
    else:
        assert str(arch) == text.strip()
        assert NB201.from_index(NB201.to_index(arch)) == arch


@given(st.lists(st.integers(-3, 9) | st.just(2**70), max_size=8))
def test_operation_indices(indices):
    try:
        arch = NB201.arch(indices)
    except ValueError as error:
        assert str(error).startswith("op_indices")
    else:
        assert list(arch.op_indices) == indices


# Search spaces.

names = st.text("abc_|~+ é", max_size=3) | st.sampled_from(["none", "conv"])
operations = st.builds(OpSpec, names, st.sampled_from(OpKind), st.sampled_from([-1, 0, 1, 2, 3]))
nodes = st.integers(-1, 5) | st.sampled_from([10**12, -(10**12)])
graphs = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), max_size=8)


@st.composite
def specs(draw):
    """Arguments of a spec; often in order, so that some of them are sound."""
    edges = draw(graphs)
    count = draw(nodes)
    if draw(st.booleans()):
        count = draw(st.integers(2, 4))
        edges = {(i, j) for i, j in edges if 0 <= i < j < count}
        edges = sorted(edges | {(j - 1, j) for j in range(1, count)}, key=lambda e: (e[1], e[0]))
    kinds = draw(st.lists(operations, max_size=3))
    widths = draw(st.just((1, 2)) | st.lists(st.integers(-1, 4), max_size=3).map(tuple))
    return "x", "x", count, tuple(edges), tuple(kinds), widths, draw(st.none() | st.just(3))


@settings(max_examples=300)
@given(specs(), st.data())
@example(("x", "x", 10**12, ((0, 1),), (OpSpec("a", OpKind.ZERO),)), None)
def test_specs(arguments, data):
    try:
        spec = CellSpec(*arguments)
    except ValueError as error:
        assert str(error).startswith("CellSpec: ")
        assert len(str(error)) < LONGEST
        return
    assume(spec.num_archs <= 4096)
    arch = spec.from_index(data.draw(st.integers(0, spec.num_archs - 1)))
    assert spec.from_string(str(arch)) == arch
    assert spec.from_index(spec.to_index(arch)) == arch
    assert len({str(a) for a in spec.enumerate()}) == spec.num_archs


# Configurations.

SECTIONS = {
    RunConfig: ("data", "supernet", "train", "rank", "finetune", "truth"),
    TableConfig: ("data", "supernet", "train", "table"),
}
words = st.sampled_from(
    ["fp32", "bf16", "fp64", "auto", "reference", "cpu", "batch", "running", "fair", "uniform",
     "test", "valid", "drop", "keep", "error", "none", "node", "nb201", "npz", "cell", "cosine"]
)  # fmt: skip
scalars = (
    words | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4)
    | st.sampled_from([2**31, 2**63, 10**18, 10**400, -(10**400), 1e308])
)  # fmt: skip
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(words, scalars, max_size=2)


@st.composite
def changes(draw, model):
    """Other values of keys that are there, and keys that are not."""
    found = {}
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from(("", *SECTIONS[model])))
        kind = model.model_fields[section].annotation if section else model
        known = getattr(kind, "model_fields", {"table": 0, "column": 0})
        key = draw(st.sampled_from(sorted(known)) | st.text("abc_-é", min_size=1, max_size=4))
        found[".".join(filter(None, (section, key)))] = draw(values)
    return found


@pytest.mark.parametrize(("model", "base"), [(RunConfig, RUN), (TableConfig, TABLE)])
@settings(max_examples=400)
@given(data=st.data())
def test_configurations(model, base, data):
    new = data.draw(changes(model))
    try:
        plain = changed(base, new)
    except (AttributeError, TypeError):  # a section that is one no more
        assume(False)
    try:
        config = parse_config(plain, model, where="c.toml")
    except ConfigError as error:
        keys = {part for key in new for part in key.split(".")}
        for line in str(error).split("\n"):
            assert line.startswith("c.toml: ")
            assert any(key in line for key in keys) or re.match(r"c\.toml: \w+\.\w+: ", line), line
            assert len(line) < LONGEST
    else:
        assert parse_config(json.loads(config.model_dump_json()), model) == config


toml = st.lists(
    st.sampled_from(
        ["name", " = ", "'a'", '"b"', "\n", "[", "]", "[train]\n", "epochs", "3", ".", "{", "}",
         ",", "#", '"""', "1979-05-27", "0x", "inf", "\0", "é"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(max_examples=200)
@given(st.text(max_size=60) | toml)
@example("a = " + "[" * 100_000)
@example("a = " + "9" * 10_000)
@example("[" + "a." * 5_000 + "a]")
def test_configuration_files(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"fuzz\.toml: ") as caught:
        load_config(path, RunConfig)
    assert all(line.startswith(str(path)) for line in str(caught.value).split("\n"))


@given(st.dictionaries(st.sampled_from(["train.lr", "train.epochs", "seed"]), st.integers(1, 9)))
def test_sound_configurations_are_read(tmp_path_factory, new):
    path = write_toml(tmp_path_factory.getbasetemp() / "sound.toml", changed(RUN, new))
    assert load_config(path, RunConfig) == parse_config(changed(RUN, new), RunConfig)


# Instruction tables.

SUPERNET = Supernet.create(SupernetConfig(channels=2, cells_per_stage=1, classes=3), seed=0)
SCORING = compile_archs(SUPERNET, NB201.sample(4, seed=1))
TRAINING = build_training(SUPERNET.layout, NB201.sample(4, seed=1))
ALONE = alone(TRAINING, np.array([[n, n, 0] for n in range(4)], dtype=np.int32))
SIZE = {"batch": 3, "height": 5, "width": 4, "memory": UNBOUNDED}
TABLES = {
    "scoring": plan(SCORING, **SIZE).table(),
    "paths": plan(TRAINING, **SIZE).table(),
    "lanes": plan(TRAINING, **SIZE).table(),
    "alone": plan(ALONE, **SIZE, max_chunk_lanes=1).table(),
}
IMAGES = torch.randn(3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])
MODES = st.sampled_from(["batch", "running", "recalibrate"])


@st.composite
def tables(draw, base):
    """A table with some numbers changed, put in, or cut off."""
    table = base.copy()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(table) - 1) | st.integers(0, min(80, len(table) - 1)))
        near = int(table[place])
        low, high = max(near - 3, -(2**31)), min(near + 3, 2**31 - 1)
        table[place] = draw(
            st.integers(low, high) | st.sampled_from([0, -1, 16, 2**30, 2**31 - 1, -(2**31)])
        )
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(table)))
        table = np.concatenate([table[:cut], table[cut + draw(st.sampled_from([-1, 1, 7])) :]])
    return np.ascontiguousarray(table)


def run(table, name, fixed, last, precision):
    """An operator that takes such a table; the weights that it changes are copies."""
    arenas = SUPERNET.arena[None].clone()
    modes = dict(fixed=fixed, last=last, precision=precision)
    if name == "scoring":
        lanes = SCORING.num_lanes
        ops.run_program(table, arenas, IMAGES, LABELS, sizes=[3], chunk=0, lanes=lanes, **modes)
        ops.subnet_forward(table, arenas, IMAGES, lanes=lanes, classes=3, **modes)
    elif name == "alone":
        ops.score_lanes(table, arenas.repeat(4, 1), IMAGES, LABELS, [3], **modes)
    elif name == "lanes":
        ops.train_lanes(
            table, arenas.repeat(4, 1), None, None, torch.full((4,), -1, dtype=torch.int32), IMAGES,
            LABELS, [3], torch.full((4, 1), 0.1, dtype=torch.float64), 0, 0, Sgd(0.0, False),
            precision=precision,
        )  # fmt: skip
    else:
        momenta = torch.zeros_like(arenas[0])
        ops.train_paths(
            table, arenas[0], momenta, IMAGES, LABELS, [3], [0], 1, 0.1, Sgd(), precision=precision
        )


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=250)
@given(data=st.data())
def test_tables(name, data):
    table = data.draw(tables(TABLES[name]))
    sound = True
    try:
        _host.check_table(table)
        work = _host.count_work(table, 5, 4)
        assert work["macs"] >= 0
    except ValueError as error:
        sound = False
        assert str(error).startswith("program table: ")
    assume(not sound or work["macs"] < 1e9)
    modes = [data.draw(MODES) for _ in range(2)]
    try:
        run(torch.from_numpy(table), name, *modes, data.draw(st.sampled_from(["fp32", "bf16"])))
    except (RuntimeError, ValueError) as error:
        assert ": " in str(error)
    else:
        assert sound, "an operator takes a table that the checker refuses"


@pytest.mark.parametrize("name", TABLES)
def test_sound_tables_are_run(name):
    _host.check_table(TABLES[name])
    run(torch.from_numpy(TABLES[name]), name, "batch", "batch", "fp32")


# Goals of a ranking that stops when it knows enough.

goal_parts = st.sampled_from(
    ["tau", "top-", "±", "+-", "+/-", "0", ".", "01", "10", " at ", "99", "%", " ", "9" * 5000, "٣",
     "1e-3", "nan", "-"]
)  # fmt: skip
goals = st.sampled_from(["tau ±0.01", "top-10", "top-3 at 99%", "tau +-.5 at 99.9%"])
digits = st.text(string.digits, min_size=1, max_size=6)


@settings(max_examples=300)
@given(
    st.text(max_size=20)
    | st.lists(goal_parts, max_size=8).map("".join)
    | mutated(goals, goal_parts)
    | digits.map("tau ±0.{}".format)
    | st.tuples(digits, digits).map(lambda d: f"top-{d[0]} at 9.{d[1]}%")
)
@example("tau ±0.00000001")
@example("top-3 at 99.999999%")
def test_goals(text):
    try:
        goal = Goal.parse(text)
    except ValueError as error:
        assert str(error).startswith("until: ")
        assert str(error).endswith(f"got {text!r}")
    else:
        assert 0 < goal.confidence < 1
        again = Goal.parse(str(goal))
        assert (again.kind, again.k) == (goal.kind, goal.k)
        assert again.confidence == pytest.approx(goal.confidence, rel=1e-9)
        if goal.kind == "tau":
            assert again.half_width == pytest.approx(goal.half_width, rel=1e-9)
