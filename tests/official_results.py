"""Official results of NAS-Bench-201 and NATS-Bench in small, from the fixtures under tests/data."""

import bz2
import copy
import io
import lzma
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nasfast.tables.official_releases import cell_texts, size_texts

DATA = Path(__file__).parent / "data"
DATASETS = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
PARTS = ("train", "valid", "test", "valtest")


def nb201_infos():
    """What `arch2infos` has: the authors' state dicts of architectures 1 and 6111."""
    raw = lzma.decompress((DATA / "nb201_v1_1_arch2infos.pth.xz").read_bytes())
    return torch.load(io.BytesIO(raw), weights_only=False)


def one_file(infos, texts):
    """The dictionary that the authors save (`final_infos` in statistics.py, tss-collect.py)."""
    return {
        "meta_archs": texts,
        "total_archs": len(texts),
        "arch2infos": infos,
        "evaluated_indexes": set(infos),
    }


def nb201_dict():
    return one_file(nb201_infos(), cell_texts())


def save_nb201(folder, value=None, *, zipped=False):
    """Write the one file as torch.save did in 2020, or does since PyTorch 1.6."""
    path = folder / "NAS-Bench-201-v1_1-096897.pth"
    value = nb201_dict() if value is None else value
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def save_packed(path, value):
    """Write a file as `nats_bench.api_utils.pickle_save` does."""
    with bz2.BZ2File(path, "wb") as file:
        pickle.dump(value, file, protocol=4)


def load_packed(path):
    """Read a file that is our own."""
    with bz2.BZ2File(path) as file:
        return pickle.load(file)


def nats_folder(folder, kind):
    """Copy the fixture of a space, tss or sss, and add the list of its architectures."""
    name = {"tss": "NATS-tss-v1_0-3ffb9-simple", "sss": "NATS-sss-v1_0-50262-simple"}[kind]
    shutil.copytree(DATA / f"nb201_nats_{kind}", folder / name)
    texts = cell_texts() if kind == "tss" else size_texts()
    meta = one_file({}, texts) | {"arch2infos": None}
    save_packed(folder / name / "meta.pickle.pbz2", meta)
    return folder / name


def nats_states(kind):
    """The authors' state dicts by index."""
    files = sorted((DATA / f"nb201_nats_{kind}").glob("0*.pickle.pbz2"))
    return {int(file.name[:6]): load_packed(file) for file in files}


def changed(value, change):
    """A deep copy after a change in place."""
    other = copy.deepcopy(value)
    change(other)
    return other


def same_as_official(api, columns, hps, epochs):
    """Compare every number of `get_more_info` with the columns; return how many there were.

    Numbers of one run are equal in float32. The authors' are None, even of one run, where any run
    lacks the epoch; ours are of the runs that have it.
    """
    compared, columns = 0, dict(columns)
    for row, index in enumerate(columns["index"].tolist()):
        for hp in hps:
            for dataset in DATASETS:
                group = f"{dataset}/{int(hp)}"
                seeds = columns[f"{group}/seeds"][row].tolist()
                known = [seed for seed in seeds if seed >= 0]
                assert known == api.query_meta_info_by_index(index, hp).get_dataset_seeds(dataset)
                for seed in [*known, False]:
                    chosen = seeds.index(seed) if seed else [seeds.index(one) for one in known]
                    for epoch in epochs(int(hp)):
                        place = None if epoch == int(hp) - 1 else epoch
                        info = api.get_more_info(
                            index, dataset, iepoch=epoch, hp=hp, is_random=seed
                        )
                        for name in (f"{p}_{w}" for p in PARTS for w in ("loss", "accuracy")):
                            official = info.get(name.replace("_", "-"))
                            ours = at_epoch(columns.get(f"{group}/{name}"), row, chosen, place)
                            where = (group, name, index, seed, epoch)
                            if official is None:
                                runs = [seeds.index(one) for one in known]
                                column = columns.get(f"{group}/{name}")
                                each = [at_epoch(column, row, run, place) for run in runs]
                                assert any(map(math.isnan, each)), where
                                continue
                            compared += 1
                            if name.endswith("accuracy"):
                                official = official / 100.0
                            if seed:
                                assert ours == np.float32(official), where
                            else:
                                assert ours == pytest.approx(float(official), rel=1e-7), where
    return compared


def at_epoch(column, row, chosen, epoch):
    """A number of one run, or the mean over several that have it; NaN where there is none."""
    if column is None:
        return math.nan
    values = column[row][chosen]
    if column.ndim == 2:  # known at the end alone
        values = values if epoch is None else np.full_like(values, np.nan)
    else:
        values = values[..., -1 if epoch is None else epoch]
    if not isinstance(chosen, list):
        return values
    values = values[np.isfinite(values)]
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


def same_costs(api, columns, hp):
    """Compare `get_cost_info` and the seconds of `get_more_info` with the columns."""
    columns = dict(columns)
    for row, index in enumerate(columns["index"].tolist()):
        for dataset in DATASETS:
            costs = api.get_cost_info(index, dataset, hp)
            assert columns[f"{dataset}/parameters"][row] == round(costs["params"] * 1e6)
            assert columns[f"{dataset}/flops"][row] == pytest.approx(costs["flops"] * 1e6)
            latency = math.nan if costs["latency"] is None else costs["latency"]
            ours = columns[f"{dataset}/latency_seconds"][row]
            assert ours == pytest.approx(latency, nan_ok=True)
            group = f"{dataset}/{int(hp)}"
            seeds = columns[f"{group}/seeds"][row].tolist()
            for slot, seed in enumerate(seeds):
                if seed < 0:
                    continue
                info = api.get_more_info(index, dataset, hp=hp, is_random=seed)
                train = columns[f"{group}/train_seconds"][row, slot]
                official = info["train-all-time"]
                assert np.isnan(train) if official is None else train == np.float32(official)
                for part in ("valid", "test", "valtest"):
                    spent = info.get(f"{part}-per-time")
                    if spent is not None:
                        ours = columns[f"{group}/{part}_seconds"][row, slot]
                        assert ours == np.float32(spent)
