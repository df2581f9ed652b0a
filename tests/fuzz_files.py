"""One small sound file of every kind that nasfast reads, and how it is read."""

import bz2
import functools
import io
import json
import pickle
import random
import tarfile
import zlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_mutations as mutations
import fuzz_tables
import numpy as np
import official_results
import torch

from nasfast import tables
from nasfast.anytime_run import RoundStore
from nasfast.compat.xautodl import load_xautodl, to_xautodl
from nasfast.curve_store import _ARRAYS, CurveStore
from nasfast.curves import Curves
from nasfast.data.cifar import read_cifar
from nasfast.data.imagenet16 import read_imagenet16
from nasfast.data.npz import read_npz
from nasfast.data.sets import Splits
from nasfast.image_bits import ImageBits
from nasfast.journal import Journal
from nasfast.layout import SupernetConfig
from nasfast.spaces import NB201
from nasfast.steps import _load_state, _save_state
from nasfast.store import ScoreStore, stored_settings
from nasfast.supernet import Supernet
from nasfast.tables import nats_files, nb201_files, trainings
from nasfast.tables.importers import Imported
from nasfast.tables.official_releases import cell_texts
from nasfast.train import EpochRecord, TrainState

SHAPE = SupernetConfig(channels=2, cells_per_stage=1, classes=4)
SETTINGS = {"seed": 0, "rank": {"bn": "batch", "archs": None}}
CIFAR_FILES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
SMALL = {"train_count": 20, "test_count": 20}


class Genotype:
    """Stands for the classes of xautodl's own whose objects its checkpoints hold."""

    def __init__(self) -> None:
        self.nodes = [("nor_conv_3x3", 0)]


@functools.cache
def supernet() -> Supernet:
    return Supernet.create(SHAPE, 0)


@functools.cache
def pixels(count: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 3 * side * side), dtype=np.uint8)


# Sound files.


def make_supernet(path: Path) -> None:
    supernet().save(path)


def make_training(path: Path) -> None:
    momentum = {n: t for n, t in list(supernet().state_dict().items())[:3] if "running" not in n}
    records = [EpochRecord(k, 2.5, 0.1, 0.05, 1.5) for k in range(2)]
    _save_state(path, supernet(), TrainState(2, momentum), records)


def make_checkpoint(path: Path, new: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    content = {
        "epoch": 3, "args": Namespace(a=1, b=[2]), "search_model": to_xautodl(supernet()),
        "w_optimizer": optimizer.state_dict(), "genotypes": {-1: Genotype()}, "seen": {1, 2},
        "valid_accuracies": {"best": np.float64(1.5), 0: torch.tensor(2.0)},
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=new)


def make_table(path: Path) -> None:
    rng = np.random.default_rng(0)
    results = trainings.Trainings(
        rng.random((3, 2, 4)), rng.integers(30, size=(3, 2)), rng.integers(40, size=(3, 2)),
        np.array([[-1, -1], [-1, 8], [-1, -1]], dtype=np.int32),
    )  # fmt: skip
    trainings.write(
        path, results, name="toy", truth_name="accuracy", merging="none", images=(30, 40),
        archs=[NB201.from_index(k) for k in (4, 7, 9)], settings={"seeds": [0, 5]},
        network=np.array([0, 1, 0], dtype=np.int32), measured={"seconds": 2.5},
    )  # fmt: skip


def make_nb201(path: Path) -> None:
    states = {"less": official_results.nb201_infos()[1]["less"]}
    official_results.save_nb201(path.parent, official_results.one_file({1: states}, cell_texts()))


def make_nats(path: Path) -> None:
    """The file of one architecture that will be damaged, and the list around it."""
    meta = official_results.one_file({}, cell_texts()) | {"arch2infos": None}
    official_results.save_packed(path.parent / nats_files.META, meta)
    official_results.save_packed(path, official_results.nats_states("tss")[11])


def unpacked(content: bytes, draw: random.Random) -> bytes:
    """Damage what bzip2 packs; its checksums fit."""
    return bz2.compress(mutations.damaged(bz2.decompress(content), draw))


@functools.cache
def strings() -> np.ndarray:
    return np.array([str(arch) for arch in NB201.enumerate()], dtype="S")


def make_truth(path: Path) -> None:
    np.savez_compressed(path, x=np.linspace(0, 1, 15625), arch_str=strings())


def make_python_archive(path: Path) -> None:
    write_tar(path, "w:gz", {
        f"cifar-10-batches-py/{name}": pickle.dumps(
            {b"data": pixels(count, 32), b"labels": [k % 10 for k in range(count)]}, protocol=2)
        for name, count in zip(CIFAR_FILES, (4, 4, 4, 4, 4, 20), strict=True)
    })  # fmt: skip


def make_binary_archive(path: Path) -> None:
    labels = np.arange(20, dtype=np.uint8)[:, None]
    raw = np.hstack([labels // 5, labels, pixels(20, 32)]).tobytes()
    write_tar(path, "w", {f"cifar-100-binary/{name}": raw for name in ("train.bin", "test.bin")})


def write_tar(path: Path, mode: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def make_imagenet(path: Path) -> None:
    """The batch that will be damaged, and the others around it."""
    protocol = 2
    for k in range(1, 11):
        batch = {"data": pixels(2, 16), "labels": [2 * k - 1, 2 * k], "mean": pixels(2, 16).mean(0)}
        (path.parent / f"train_data_batch_{k}").write_bytes(pickle.dumps(batch, protocol))
        protocol = protocol % 5 + 1
    batch = {"data": pixels(20, 16), "labels": np.arange(1, 21)}
    (path.parent / "val_data").write_bytes(pickle.dumps(batch, protocol=5))


def make_images(path: Path) -> None:
    images = pixels(20, 8).reshape(20, 8, 8, 3)
    np.savez(path, images=images, labels=np.arange(20) % 4, class_names=np.array(list("abcd")))


def make_scores(path: Path) -> None:
    with ScoreStore(path, SETTINGS) as store:
        store.add("supernet", range(300), np.linspace(1, 2, 300), [5] * 300, 8)
        store.add_origin("cpu")


def curves(count: int) -> Curves:
    arrays = {name: np.ones((count, 3)) for name in _ARRAYS}
    return Curves(**arrays, diverged_at=np.full(count, -1, dtype=np.int32))


def make_curves(path: Path) -> None:
    with CurveStore(path, SETTINGS) as store:
        store.add("supernet", range(20), curves(20))


def make_rounds(path: Path) -> None:
    with RoundStore(path, SETTINGS) as store:
        store.add("0", range(20), np.ones((20, 4)))


def make_bits(path: Path) -> None:
    with ImageBits(path, 40, 21) as bits:
        bits.write(range(40), np.random.default_rng(0).random((40, 21)) < 0.5)


def make_journal(path: Path) -> None:
    with Journal(path, SETTINGS) as file:
        for k in range(5):
            file.append({"n": k, "loss": [0.5, k]})


# Reading: raises a documented error, or everything is plausible.


def read_supernet(path: Path) -> None:
    assert bool(torch.isfinite(Supernet.load(path).arena).all())


def read_training(path: Path) -> None:
    target = supernet().copy()
    state, records = _load_state(path, target)
    assert bool(torch.isfinite(target.arena).all())
    assert state.epoch == len(records)
    assert all(bool(torch.isfinite(t).all()) for t in state.momentum.values())


def read_checkpoint(path: Path) -> None:
    found = load_xautodl(path)
    assert bool(torch.isfinite(found.arena).all())
    assert found.arena.numel() < 1 << 20


def read_table(path: Path, column: str | None = None) -> None:
    table = tables.load(path, NB201, column)
    assert table.truth.shape == (15625,)
    assert table.truth.dtype == np.float64
    if isinstance(table, tables.TrainingTable):
        known = table.truth[table.known]
        assert ((known >= 0) & (known <= 1)).all()
        assert all(type(seed) is int for seed in table.seeds)
        trainings.identity(path)


def check_results(found: Imported) -> None:
    assert len(found.columns["index"]) == 1
    for name in found.columns:
        column = found.columns[name]
        assert column.nbytes < 1 << 20
        if name.endswith("_accuracy"):
            assert np.nanmax(column, initial=0.0) <= 1.0


def check_splits(splits: Splits, counts: tuple[int, int, int] | None) -> None:
    parts = (splits.train, splits.valid, splits.test)
    assert counts is None or tuple(map(len, parts)) == counts
    assert all(int(part.labels.max()) < splits.num_classes for part in parts)


def read_scores(path: Path) -> None:
    stored = stored_settings(path)
    with ScoreStore(path, SETTINGS) as store:
        archs, loss, accuracy = store.read("supernet")
        assert stored == SETTINGS or not len(archs)
        assert len(archs) == len(loss) == len(accuracy) == len(store.done("supernet"))
        assert ((accuracy >= 0) & (accuracy <= 1)).all()
        store.note_origin("cpu")
        store.add("other", [1], [0.5], [1], 2, work={"archs": 1})
        assert store.work()["other"] == {"archs": 1}


def read_curves(path: Path) -> None:
    with CurveStore(path, SETTINGS) as store:
        archs, found = store.read("supernet")
        assert len(found.diverged_at) == len(archs)


def read_rounds(path: Path) -> None:
    with RoundStore(path, SETTINGS) as store:
        assert all(row.shape == (4,) for row in store.read("0", 4).values())


def read_bits(path: Path) -> None:
    with ImageBits(path, 40, 21) as bits:
        known = np.flatnonzero(bits.known(range(40)))
        wanted = np.random.default_rng(0).random((40, 21)) < 0.5
        assert (bits.read(known.tolist()) == wanted[known]).all()
        bits.read(range(40))


def read_journal(path: Path) -> None:
    with Journal(path, SETTINGS) as file:
        assert all(isinstance(record, dict) for record in file.records)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: Its name.
        make: Writes a sound one.
        read: Reads one.
        structured: Damages what the format is made of.
        cases: How many are tested.
        said: Different messages that they come to, at least: how far in the damage reached.
    """

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    structured: Callable[[bytes, random.Random], bytes]
    cases: int
    said: int


KINDS = {
    "supernet": Kind(
        "supernet.safetensors", make_supernet, read_supernet, mutations.safetensors, 110, 12
    ),
    "training": Kind(
        "training.safetensors", make_training, read_training, mutations.safetensors, 90, 10
    ),
    "checkpoint": Kind(
        "zip.pth", lambda p: make_checkpoint(p, True), read_checkpoint, mutations.zip_file, 110, 12
    ),
    "old_checkpoint": Kind(
        "old.pth", lambda p: make_checkpoint(p, False), read_checkpoint, mutations.plain, 70, 8
    ),
    "table": Kind("table.npz", make_table, read_table, mutations.zip_file, 90, 10),
    "truth": Kind(
        "truth.npz", make_truth, lambda p: read_table(p, "x"), mutations.zip_file, 60, 8
    ),
    "python_archive": Kind(
        "cifar-10-python.tar.gz", make_python_archive,
        lambda p: check_splits(read_cifar("cifar10", p, **SMALL), (10, 10, 20)),
        mutations.tar_file, 90, 10,
    ),
    "binary_archive": Kind(
        "cifar-100-binary.tar", make_binary_archive,
        lambda p: check_splits(read_cifar("cifar100", p, **SMALL), (20, 10, 10)),
        mutations.tar_file, 50, 5,
    ),
    "imagenet": Kind(
        "train_data_batch_1", make_imagenet,
        lambda p: check_splits(read_imagenet16(p.parent, **SMALL), (20, 10, 10)),
        mutations.plain, 80, 8,
    ),
    "images": Kind(
        "images.npz", make_images, lambda p: check_splits(read_npz(p, 0), None),
        mutations.zip_file, 70, 8,
    ),
    "nb201": Kind(
        "NAS-Bench-201-v1_1-096897.pth", make_nb201,
        lambda p: check_results(nb201_files.read_file(p, lambda done, total: None)),
        mutations.plain, 30, 6,
    ),
    "nats": Kind(
        "000011.pickle.pbz2", make_nats,
        lambda p: check_results(nats_files.read_folder(p.parent, lambda done, total: None)),
        unpacked, 60, 8,
    ),
    "columns": Kind(
        "official.table", fuzz_tables.make_columns, fuzz_tables.read_columns,
        fuzz_tables.changed_columns, 110, 12,
    ),
    "tfrecord": Kind(
        "nb101.tfrecord", fuzz_tables.make_tfrecord, fuzz_tables.read_tfrecord,
        fuzz_tables.changed_record, 110, 12,
    ),
    "scores": Kind("scores.sqlite", make_scores, read_scores, mutations.sqlite_file, 60, 8),
    "curves": Kind("finetune.sqlite", make_curves, read_curves, mutations.sqlite_file, 30, 5),
    "rounds": Kind("until.sqlite", make_rounds, read_rounds, mutations.sqlite_file, 20, 4),
    "bits": Kind("scores.bits", make_bits, read_bits, mutations.bits, 30, 4),
    "journal": Kind("table.npz.progress", make_journal, read_journal, mutations.journal, 40, 2),
}  # fmt: skip


@functools.cache
def originals(folder: Path) -> dict[str, bytes]:
    """Write a sound file of every kind, check that it can be read, and return the contents."""
    contents = {}
    for name, kind in KINDS.items():
        (folder / name).mkdir()
        path = folder / name / kind.file
        kind.make(path)
        contents[name] = path.read_bytes()
        kind.read(path)
    return contents


def case(name: str, seed: int, folder: Path) -> tuple[str, Callable[[], None]]:
    """Write a damaged file; return what a message must name, and what reads it."""
    kind, draw = KINDS[name], random.Random(zlib.crc32(json.dumps([name, seed]).encode()))
    content = originals(folder)[name]
    content = (kind.structured if seed % 2 else mutations.damaged)(content, draw)
    path = folder / name / kind.file
    for other in path.parent.glob(f"{kind.file}*"):
        if other.name == kind.file or other.suffix not in {""}:
            other.unlink()
    path.write_bytes(content)
    told = path.parent.name if name == "imagenet" else kind.file
    return told, lambda: kind.read(path)
