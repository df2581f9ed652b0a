# SPDX-License-Identifier: MIT
"""Write the fixtures of NAS-Bench-201 and NATS-Bench with the authors' own classes.

Run where `nas-bench-201` and `nats_bench` are installed:
`python tests/data/make_nb201_fixtures.py`.
The layout is the official one, with all epochs; the numbers are made up, and coarse so that they
compress. nb201_README.md says what is in the files.
"""

import io
import lzma
from collections import OrderedDict
from pathlib import Path

import nas_201_api
import numpy as np
import torch
from nats_bench.api_utils import ArchResults, ResultsCount, pickle_save

from nasfast import spaces

HERE = Path(__file__).parent
SETS = {  # what the authors evaluate for each data set
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}
CLASSES = {"cifar10-valid": 10, "cifar10": 10, "cifar100": 100, "ImageNet16-120": 120}


def curve(epochs: int, seed: int, first: float, last: float, step: float) -> dict[int, float]:
    """From `first` to `last`, in multiples of `step`, with a little noise."""
    rng = np.random.default_rng(seed)
    way = 1.0 - (1.0 - np.arange(epochs) / max(1, epochs - 1)) ** 2
    noise = np.repeat(rng.normal(0.0, 0.05, -(-epochs // 40)), 40)[:epochs]
    values = first + (last - first) * np.clip(way + noise, 0.0, 1.0)
    return {epoch: float(np.round(v / step) * step) for epoch, v in enumerate(values)}


def numbers(index: int, dataset: str, seed: int, epochs: int) -> dict[str, dict]:
    """Curves by what they are of: train, and each set of images."""
    quality = (index * 37 % 101) / 101.0 + (seed % 7) / 50.0
    found = {}
    for place, part in enumerate(("train", *SETS[dataset])):
        draw = index * 1009 + seed * 17 + epochs * 3 + place + 7 * len(dataset)
        best = 95.0 - 30.0 * (CLASSES[dataset] > 10) - 10.0 * place - 8.0 * (1.0 - quality)
        found[part] = {
            "acc1": curve(epochs, draw, 10.0, best, 1.0),
            "loss": curve(epochs, draw + 5, 2.5, 0.25 + 0.5 * (1.0 - quality), 1 / 16),
        }
    return found


def result(kinds, index, config, dataset, seed, epochs, *, old):
    """One trial as `create_result_count` of the authors' scripts makes it."""
    found = numbers(index, dataset, seed, epochs)
    train = found.pop("train")
    params, flop = np.float64(0.1 + 0.001 * index), 10.0 + index  # NumPy's, as they count them
    trial = kinds.ResultsCount(
        dataset, {"weight": torch.zeros(2)}, train["acc1"], train["loss"], params, flop,
        config | {"class_num": CLASSES[dataset]}, str(seed), epochs, None,
    )  # fmt: skip
    if old:  # before times were kept: sets besides the first are evaluated once, at the end
        first = "x-valid" if dataset == "cifar10-valid" else "ori-test"
        for name, values in found.items():
            picked = values if name == first else {
                key: {epochs - 1: numbers[epochs - 1]} for key, numbers in values.items()
            }  # fmt: skip
            trial.update_OLD_eval(name, picked["acc1"], picked["loss"])
        trial.update_latency([0.015625, 0.03125])
    else:
        times = dict.fromkeys(range(epochs), 0.5 + index / 64)
        trial.update_train_info(train["acc1"], train["acc1"], train["loss"], times)
        accs, losses, spent = {}, {}, {}
        for name, values in found.items():
            for epoch in range(epochs):
                key = f"{name}@{epoch}"
                accs[key], losses[key] = values["acc1"][epoch], values["loss"][epoch]
                spent[key] = 0.25
        trial.update_eval(accs, losses, spent)
    return trial


def arch_results(kinds, index, text, config, seeds, epochs, *, old=()):
    """All trials of one architecture with one schedule."""
    found = kinds.ArchResults(index, text)
    for dataset, of_dataset in seeds.items():
        for seed in of_dataset:
            is_old = seed in old
            trial = result(kinds, index, config, dataset, seed, epochs, old=is_old)
            found.update(dataset, seed, trial)
    return found


def every(*seeds: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(SETS, seeds)


class Kinds201:
    ArchResults, ResultsCount = nas_201_api.ArchResults, nas_201_api.ResultsCount


class KindsNATS:
    ArchResults, ResultsCount = ArchResults, ResultsCount


def write_nb201(texts: list[str]) -> None:
    """What the one file of NAS-Bench-201 has under `arch2infos`, as statistics.py makes it."""
    infos = {}
    for index, seeds, old in ((1, (777,), ()), (6111, (777, 888), (777,))):
        config = {"channel": 16, "num_cells": 5, "arch_str": texts[index]}
        full = arch_results(Kinds201, index, texts[index], config, every(*seeds), 200, old=old)
        less_seeds = every(777) | {"cifar10-valid": (111, 777)}
        less = arch_results(Kinds201, index, texts[index], config, less_seeds, 12)
        full.clear_params()
        less.clear_params()
        infos[index] = {"full": full.state_dict(), "less": less.state_dict()}
    buffer = io.BytesIO()
    torch.save(infos, buffer, _use_new_zipfile_serialization=False)  # PyTorch was 1.4 then
    packed = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    (HERE / "nb201_v1_1_arch2infos.pth.xz").write_bytes(packed)


def write_tss(texts: list[str]) -> None:
    """Files of single architectures of the topology space, as `simplify` of tss-collect.py."""
    folder = HERE / "nb201_nats_tss"
    folder.mkdir(exist_ok=True)
    for index, seeds in ((0, (777, 888)), (11, (777,))):
        config = {"channel": 16, "num_cells": 5, "arch_str": texts[index]}
        short = every(777) | {"cifar10-valid": (111, 777)}
        by_hp = {
            "12": arch_results(KindsNATS, index, texts[index], config, short, 12),
            "200": arch_results(KindsNATS, index, texts[index], config, every(*seeds), 200),
        }
        save_simple(folder, index, by_hp)


def write_sss() -> None:
    """Files of single architectures of the size space, as `simplify` of sss-collect.py."""
    folder = HERE / "nb201_nats_sss"
    folder.mkdir(exist_ok=True)
    for index in (0, 11):
        digits = [index // 8**place % 8 for place in reversed(range(5))]
        text = ":".join(str(8 * (digit + 1)) for digit in digits)
        config = {
            "name": "infer.shape.tiny", "channels": text, "arch_str": text,
            "genotype": "(('nor_conv_3x3', 0),)",
        }  # fmt: skip
        seeds = {"01": (777,), "12": (777,), "90": (777, 888) if index else (777,)}
        by_hp = {
            hp: arch_results(KindsNATS, index, text, config, every(*seeds[hp]), int(hp))
            for hp in seeds
        }
        save_simple(folder, index, by_hp)


def save_simple(folder: Path, index: int, by_hp: dict[str, ArchResults]) -> None:
    for info in by_hp.values():
        for dataset in SETS:
            info.reset_latency(dataset, None, 0.015625)
        info.clear_params()
    state = OrderedDict({hp: info.state_dict() for hp, info in by_hp.items()})
    pickle_save(state, str(folder / f"{index:06d}.pickle"))


def main() -> None:
    space = spaces.get("nb201")
    texts = [str(space.from_index(index)) for index in range(space.num_archs)]
    write_nb201(texts)
    write_tss(texts)
    write_sss()


if __name__ == "__main__":
    main()
