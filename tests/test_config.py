import json

import pytest
from tiny_runs import REPOSITORY, RUN, TABLE, changed, write_toml

from nasfast.config import ConfigError, RunConfig, TableConfig, load_config, parse_config

CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.toml")
    if not path.name.startswith("experiment_")  # test_experiment.py has these
)


def message(changes, model=RunConfig):
    base = RUN if model is RunConfig else TABLE
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(base, changes), model, where="tiny.toml")
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    model = TableConfig if path.name.startswith("table_") else RunConfig
    config = load_config(path, model)
    assert parse_config(json.loads(config.model_dump_json()), model) == config
    if model is RunConfig:
        assert config.name == path.stem


def test_defaults_of_ranking():
    rank = parse_config(RUN, RunConfig).rank
    assert (rank.precision, rank.backend, rank.memory_mib) == ("fp32", "auto", 2048)


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        ("fp32", "cpu"),
        ("bf16", "cpu"),
        ("bf16", "auto"),
        ("fp64", "auto"),
        ("fp64", "reference"),
        ("fp32", "cuda"),
        ("bf16", "cuda"),
        ("tf32", "cuda"),
        ("tf32", "auto"),
    ],
)
def test_precisions_and_backends_that_go_together(precision, backend):
    changes = {"rank.precision": precision, "rank.backend": backend}
    rank = parse_config(changed(RUN, changes), RunConfig).rank
    assert (rank.precision, rank.backend) == (precision, backend)


def test_defaults_of_training():
    train = parse_config(RUN, RunConfig).train
    assert (train.precision, train.backend, train.paths, train.sampler) == (
        "fp32", "auto", 1, "uniform"
    )  # fmt: skip
    fair = changed(RUN, {"train.sampler": "fair", "train.paths": 8, "train.without": ["none"]})
    assert parse_config(fair, RunConfig).train.settings().paths == 8


def test_toml_and_plain_values_agree(tmp_path):
    values = changed(RUN, {"train.without": ["none"], "truth.table": "t", "train.lr": 1})
    file = write_toml(tmp_path / "a.toml", values)
    assert load_config(file, RunConfig) == parse_config(values, RunConfig)


def test_supernet_config_takes_every_key():
    config = parse_config(changed(RUN, {"supernet.weights_on": "node"}), RunConfig)
    shape = config.supernet_config(7, 3).to_dict()
    assert shape == {**config.supernet.model_dump(), "classes": 7, "in_channels": 3}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("trian", "train"),
        ("train.learning_rate", "train"),
        ("train.bath_size", "batch_size"),
        ("supernet.chanels", "channels"),
        ("rank.last_bach", "last_batch"),
    ],
)
def test_unknown_key_names_the_nearest(key, near):
    text = message({key: 1})
    assert text.startswith(f"tiny.toml: unknown key {key!r}, wanted one of ")
    if "learning" not in key:
        assert text.endswith(f"; nearest: {near}")
    assert "\n" not in text


def test_unknown_key_of_an_optional_section():
    text = message({"truth.table": "t", "truth.colum": "c"})
    assert text.endswith("'truth.colum', wanted one of column, table; nearest: column")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": None}, "key 'name' is missing"),
        ({"train": None}, "key 'train' is missing"),
        ({"train.epochs": None}, "key 'train.epochs' is missing"),
        ({"truth.column": "c"}, "key 'truth.table' is missing"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
        ({"seed": 2**63}, "seed: Input should be less than 9223372036854775808"),
        ({"threads": 0}, "threads: Input should be greater than or equal to 1, got 0"),
        ({"data.name": "cifar11"}, "data.name: Input should be 'digits', 'cifar10'"),
        ({"data.train_images": 0}, "data.train_images: Input should be greater"),
        (
            {"supernet.space": "nb202"},
            "supernet.space: wanted one of nb201, nb1shot1-1, nb1shot1-2, nb1shot1-3, got",
        ),
        ({"supernet.channels": 0}, "supernet.channels: Input should be greater than or equal"),
        ({"supernet.channels": 2.5}, "supernet.channels: Input should be a valid integer, got 2.5"),
        ({"supernet.affine": 1}, "supernet.affine: Input should be a valid boolean, got 1"),
        ({"supernet.weights_on": "edges"}, "supernet.weights_on: Input should be 'edge' or 'node'"),
        ({"train": 3}, "train: Input should be a valid dictionary"),
        ({"train.epochs": "2"}, "train.epochs: Input should be a valid integer, got '2'"),
        ({"train.epochs": True}, "train.epochs: Input should be a valid integer, got True"),
        ({"train.lr": -0.1}, "train.lr: Input should be greater than or equal to 0, got -0.1"),
        ({"train.lr": float("nan")}, "train.lr: Input should be a finite number, got nan"),
        ({"train.clip": float("inf")}, "train.clip: Input should be a finite number, got inf"),
        ({"train.momentum": 1.0}, "train.momentum: Input should be less than 1, got 1.0"),
        ({"train.schedule": "step"}, "train.schedule: Input should be 'cosine' or 'constant'"),
        ({"train.scope": "edge"}, "train.scope: Input should be 'network' or 'cell'"),
        ({"train.without": ["nonee"]}, "train.without: unknown operation 'nonee', wanted some of"),
        ({"train.without": "none"}, "train.without"),
        ({"train.paths": 0}, "train.paths: Input should be greater than or equal to 1, got 0"),
        (
            {"train.sampler": "fair", "train.paths": 4},
            "train.paths: sampler 'fair' wants a multiple of the 5 operations of an edge, got 4",
        ),
        (
            {"train.precision": "fp64", "train.backend": "cpu"},
            "train.precision: no training in 'fp64' with backend 'cpu'; there is cpu: fp32, bf16",
        ),
        (
            {"train.precision": "bf16", "supernet.weights_on": "node"},
            "train.backend: weights on nodes are trained by 'reference' alone, in fp32 or fp64",
        ),
        ({"rank.without": ["pool"]}, "rank.without: unknown operation 'pool', wanted some of"),
        ({"rank.images": "train"}, "rank.images: Input should be 'valid' or 'test', got 'train'"),
        ({"rank.bn": "batch/runing"}, "rank.bn: wanted cells[/others] with each of batch, running"),
        ({"rank.precision": "fp16"}, "rank.precision: Input should be 'fp32', 'tf32', 'bf16' or"),
        ({"rank.backend": "gpu"}, "rank.backend: Input should be 'auto', 'cpu', 'cuda' or 'ref"),
        (
            {"rank.backend": "reference", "rank.precision": "bf16"},
            "rank.precision: backend 'reference' has fp32, fp64, got 'bf16'",
        ),
        (
            {"rank.backend": "cpu", "rank.precision": "fp64"},
            "rank.precision: backend 'cpu' has fp32, bf16, got 'fp64'",
        ),
        (
            {"rank.backend": "cuda", "rank.precision": "fp64"},
            "rank.precision: backend 'cuda' has fp32, tf32, bf16, got 'fp64'",
        ),
        (
            {"rank.backend": "cpu", "rank.precision": "tf32"},
            "rank.precision: backend 'cpu' has fp32, bf16, got 'tf32'",
        ),
        (
            {"rank.precision": "tf32", "rank.bn": "recalibrate/batch"},
            "rank.precision: 'tf32' wants a CUDA device, which does not recalibrate, got bn='recal",
        ),
        (
            {"train.precision": "tf32", "train.backend": "cpu"},
            "train.precision: no training in 'tf32' with backend 'cpu'; there is cpu: fp32, bf16",
        ),
        (
            {"rank.backend": "cuda", "rank.bn": "recalibrate/batch"},
            "rank.backend: 'cuda' does not recalibrate, got bn='recalibrate/batch/batch'",
        ),
        ({"rank.memory_mib": 0}, "rank.memory_mib: Input should be greater than or equal to 1"),
        ({"rank.archs": 15626}, "rank.archs: wanted at most the 15625 allowed, got 15626"),
        (
            {"rank.archs": 730, "rank.without": ["none", "avg_pool_3x3"]},
            "rank.archs: wanted at most the 729 allowed, got 730",
        ),
    ],
    ids=str,
)
def test_wrong_value(changes, wanted):
    text = message(changes)
    assert text.startswith(f"tiny.toml: {wanted}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"train.paths": 2}, "unknown key 'train.paths', wanted one of batch_size, clip,"),
        ({"table.seeds": []}, "table.seeds: Tuple should have at least 1 item"),
        ({"table.seeds": [1, 1]}, "table.seeds: wanted distinct seeds, got [1, 1]"),
        ({"table.seeds": [0, -1]}, "table.seeds.1: Input should be greater than or equal to 0"),
        ({"table.archs": 15626}, "table.archs: wanted at most the 15625 allowed, got 15626"),
        ({"table.merging": "all"}, "table.merging: Input should be 'linear' or 'none', got 'all'"),
        ({"table.precision": "bf16"}, "table.precision: no training in 'bf16' with backend 'refer"),
        ({"supernet.track": True}, "unknown key 'supernet.track', wanted one of affine, cells_per"),
        ({"table": None}, "key 'table' is missing"),
        ({"rank": {}}, "unknown key 'rank', wanted one of"),
    ],
    ids=str,
)
def test_wrong_value_of_a_table(changes, wanted):
    assert message(changes, TableConfig).startswith(f"tiny.toml: {wanted}")


def test_every_mistake_is_told():
    lines = message({"seed": -1, "train.lr": -1.0}).split("\n")
    assert len(lines) == 2
    assert all(line.startswith("tiny.toml: ") for line in lines)


def test_a_list_is_no_configuration():
    with pytest.raises(ConfigError, match=r"config: Input should be .*dictionary"):
        parse_config([], RunConfig)


def test_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config file not found: .*none\.toml"):
        load_config(tmp_path / "none.toml", RunConfig)


@pytest.mark.parametrize("content", [b"name = \n", b"[data\n", b"name = '\xff'\n"])
def test_no_toml(tmp_path, content):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML: "):
        load_config(file, RunConfig)
