"""NATS-Bench as its authors publish it, both spaces, compared with their own package."""

import bz2
import hashlib
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from official_results import (
    changed,
    load_packed,
    nats_folder,
    nats_states,
    one_file,
    same_as_official,
    same_costs,
    save_packed,
)

from nasfast.tables import CurveTable, nats_files
from nasfast.tables.importers import find_importer, import_table
from nasfast.tables.official_columns import OfficialColumns
from nasfast.tables.official_releases import (
    NATS_CELLS,
    SIZE_SPACE,
    cell_texts,
    cells,
    finished,
    size_texts,
    sizes,
)
from nasfast.tables.official_runs import DATASETS, ArchRuns, Run

HPS = {"tss": ("12", "200"), "sss": ("01", "12", "90")}
TEXTS = {"tss": cell_texts, "sss": size_texts}
ONE_FILE = {"tss": "NATS-tss-v1_0-3ffb9.pickle.pbz2", "sss": "NATS-sss-v1_0-50262.pickle.pbz2"}


def quiet(done, total):
    pass


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module", params=["tss", "sss"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return nats_folder(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def found(folder):
    return nats_files.read_folder(folder, quiet)


@pytest.fixture
def tss(tmp_path):
    return nats_folder(tmp_path, "tss")


def test_every_query_as_the_official_package(kind, folder, found):
    nats_bench = pytest.importorskip("nats_bench")
    api = nats_bench.create(str(folder), kind, fast_mode=True, verbose=False)

    def epochs(total):
        return [None, *sorted({0, total // 3, 2 * total // 3, total - 1})]

    assert same_as_official(api, found.columns, HPS[kind], epochs) > 1000
    same_costs(api, found.columns, HPS[kind][-1])


def test_rows_and_report(kind, found):
    columns = found.columns
    assert columns["index"].tolist() == [0, 11]
    if kind == "tss":
        assert (found.space, found.release) == ("nb201", "NATS-Bench topology space v1.0")
        assert columns["cifar10/200/seeds"].tolist() == [[777, 888], [777, -1]]
        assert columns["cifar10/200/train_loss"].shape == (2, 2, 200)
        assert found.missing == ["15,623 of 15,625 architectures"]
    else:
        assert (found.space, found.release) == (SIZE_SPACE, "NATS-Bench size space v1.0")
        assert columns["cifar10/1/test_accuracy"].shape == (2, 1)
        assert columns["cifar100/90/valid_loss"].shape == (2, 2, 90)
        assert found.missing == ["32,766 of 32,768 architectures"]


def test_one_file_is_the_same(kind, found, tmp_path):
    path, calls = tmp_path / ONE_FILE[kind], []
    save_packed(path, one_file(nats_states(kind), TEXTS[kind]()))
    assert find_importer(path).read is nats_files.read_file
    other = nats_files.read_file(path, lambda *call: calls.append(call))
    same(found.columns, other.columns)
    assert len(calls) == 2 * len(HPS[kind])


def test_the_checksum_in_the_name_of_one_file(kind, tmp_path):
    content = one_file(nats_states(kind), TEXTS[kind]())
    save_packed(tmp_path / "a", content)
    digits = hashlib.md5((tmp_path / "a").read_bytes()).hexdigest()[-5:]
    for name, good in ((f"NATS-{kind}-v1_0-{digits}", True), (f"NATS-{kind}-v1_0-00000", False)):
        path = (tmp_path / "a").rename(tmp_path / f"{name}.pickle.pbz2")
        found = nats_files.read_file(path, quiet)
        check = found.checks[0]
        assert (check.name, check.got) == ("end of the file's MD5, as in its name", digits)
        assert (check.wanted, check.good) == (name[-5:], good)
        assert found.sources[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(tmp_path / "a")
    path = (tmp_path / "a").rename(tmp_path / f"{kind}.pickle.pbz2")
    found = nats_files.read_file(path, quiet)
    assert not any("MD5" in check.name for check in found.checks)
    assert found.notes[-1].startswith("the file's name lacks the last five digits of its MD5")


def test_no_table_is_written_into_its_source(tss, monkeypatch):
    before = sorted(tss.iterdir())
    monkeypatch.setattr(nats_files, "_unpacked", None)  # to read would be an error
    (tss / "link").symlink_to(tss)
    for out in (tss / "t.table", tss.parent / tss.name / "." / "t", tss / "link" / "t"):
        with pytest.raises(ValueError, match="out: wanted a file outside the source, got "):
            import_table(tss, out, partial=True)
    (tss / "link").unlink()
    assert sorted(tss.iterdir()) == before


def test_full_archive_has_weights_that_are_passed_over(kind, found, folder, tmp_path):
    full = shutil.copytree(folder, tmp_path / "full")
    for index, states in nats_states(kind).items():
        for state in states.values():
            for result in state["all_results"].values():
                result["net_state_dict"] = torch.nn.BatchNorm2d(3).state_dict()
        save_packed(full / f"{index:06d}.pickle.pbz2", states)
    same(found.columns, nats_files.read_folder(full, quiet).columns)


def test_import_opens_at_once_and_says_what_it_lacks(kind, folder, tmp_path):
    out = tmp_path / "nats.table"
    with pytest.raises(ValueError, match="not the whole of NATS-Bench"):
        import_table(folder, out)
    assert not out.exists()
    report = import_table(folder, out, partial=True)
    assert report["reader"] == "NATS-Bench folder"
    assert report["sources"][0]["name"].endswith("-simple/ (3 files)")
    start = time.perf_counter()
    table = CurveTable.open(out)
    assert time.perf_counter() - start < 0.2
    assert table.rows == 2
    assert len(table.columns.header["missing"]) == 1


def test_missing_runs_are_named(tss, tmp_path):
    states = nats_states("tss")[11]
    for state in states.values():
        state["all_results"] = {
            key: run for key, run in state["all_results"].items() if key[0] != "cifar100"
        }
        state["dataset_seed"].pop("cifar100")
    save_packed(tss / "000011.pickle.pbz2", states)
    found = nats_files.read_folder(tss, quiet)
    assert "runs on cifar100 for 200 epochs of 1 of 2 architectures" in found.missing
    assert np.isnan(found.columns["cifar100/200/test_accuracy"][1]).all()
    assert found.columns["cifar100/200/seeds"][1].tolist() == [-1, -1]
    (tss / "000000.pickle.pbz2").unlink()
    assert "all runs on cifar100 for 12 epochs" in nats_files.read_folder(tss, quiet).missing


def test_known_architecture_is_checked(tss):
    """The fixture's numbers are made up, so the best cell of CIFAR-10 does not reach 94.37."""
    states = nats_states("tss")[11]
    for state in states.values():
        state.update(arch_index=6111, arch_str=cell_texts()[6111])
    save_packed(tss / "006111.pickle.pbz2", states)
    found = nats_files.read_folder(tss, quiet)
    (check,) = (check for check in found.checks if "architecture 6111" in check.name)
    assert check.name == "mean test accuracy of architecture 6111 on cifar10"
    runs = [run for key, run in states["200"]["all_results"].items() if key[0] == "cifar10"]
    mean = np.mean([run["eval_acc1es"]["ori-test@199"] for run in runs])
    assert (check.wanted, check.got, check.good) == ("94.37", f"{mean:.2f}", False)


def test_official_lists():
    assert len(cell_texts()) == 15625
    assert size_texts()[:9] == [f"8:8:8:8:{8 * k}" for k in range(1, 9)] + ["8:8:8:16:8"]
    assert (len(size_texts()), size_texts()[-1]) == (32768, "64:64:64:64:64")


def test_official_lists_are_those_of_the_measured_tables(data_folder):
    with np.load(data_folder / "nats_sss.npz") as sizes:
        texts = [":".join(map(str, row)) for row in sizes["channels"].tolist()]
    assert texts == size_texts()
    with np.load(data_folder / "nb201_accuracy.npz") as cells:
        assert [text.decode() for text in cells["arch_str"]] == cell_texts()


@pytest.mark.parametrize("kind", ["tss", "sss"])
def test_known_optima_are_those_of_the_measured_tables(kind, data_folder):
    """What a whole release is checked against, from the numbers that others published of it."""
    release = cells(NATS_CELLS) if kind == "tss" else sizes()
    assert (release.best["cifar10"][0] >= 0) == (kind == "tss")
    name = "nb201_accuracy.npz" if kind == "tss" else "nats_sss.npz"
    arrays = {"cifar10": "cifar10_test", "cifar100": "cifar100_test", "ImageNet16-120": "in16_test"}
    with np.load(data_folder / name) as file:
        for dataset, (index, value) in release.best.items():
            accuracy = file[arrays[dataset]]
            assert accuracy.max() == pytest.approx(value, abs=0.0051)
            assert index in (-1, int(accuracy.argmax()))


@pytest.mark.parametrize("wrong", ["", "best", "row"])
def test_whole_release_with_its_optima(wrong, data_folder):
    """All 32,768 rows of the size space, with the published accuracies as the only numbers."""
    arrays = {"cifar10": "cifar10_test", "cifar100": "cifar100_test", "ImageNet16-120": "in16_test"}
    with np.load(data_folder / "nats_sss.npz") as file:
        accuracy = {dataset: file[name].astype(np.float64) for dataset, name in arrays.items()}
    accuracy["cifar10-valid"] = accuracy["cifar10"]
    if wrong == "best":
        accuracy["cifar100"][accuracy["cifar100"].argmax()] -= 2.0
    release = replace(sizes(), seeds={90: (777,)})  # the other schedules would take as long again
    columns, texts = OfficialColumns(release), size_texts()
    for index in range(len(texts) - (wrong == "row")):
        runs = {}
        for dataset in DATASETS:
            part = "x-test" if dataset in ("cifar100", "ImageNet16-120") else "ori-test"
            values = {part: accuracy[dataset][index : index + 1]}
            run = Run(dataset, 777, 90, 1.0, 1.0, 1.0, 1.0, {part: 1.0}, values, values)
            runs[dataset, 777] = run
        columns.add(ArchRuns(index, texts[index], 90, runs))
    found = finished(columns, [])
    assert found.missing == (["1 of 32,768 architectures"] if wrong == "row" else [])
    best = {check.name: check.good for check in found.checks if check.name.startswith("best")}
    if wrong == "row":
        assert best == {}
    else:
        assert best == {
            f"best mean test accuracy on {dataset}": (wrong, dataset) != ("best", "cifar100")
            for dataset in arrays
        }


def meta_of(folder):
    return folder / "meta.pickle.pbz2"


def test_bad_folders(tss, tmp_path):
    good = load_packed(meta_of(tss))
    save_packed(meta_of(tss), changed(good, lambda meta: meta["meta_archs"].reverse()))
    with pytest.raises(ValueError, match="meta_archs: not in the official order of NATS-Bench top"):
        nats_files.read_folder(tss, quiet)
    save_packed(meta_of(tss), good | {"meta_archs": size_texts()})
    with pytest.raises(
        ValueError, match=r"000000.*architecture 0: wanted 8:8:8:8:8 .*another rele"
    ):
        nats_files.read_folder(tss, quiet)
    save_packed(meta_of(tss), ["8:8:8:8:8"])
    with pytest.raises(ValueError, match="meta_archs: wanted the 15,625 architectures"):
        nats_files.read_folder(tss, quiet)
    save_packed(meta_of(tss), good)
    (tss / "000000.pickle.pbz2").rename(tss / "000001.pickle.pbz2")
    with pytest.raises(ValueError, match="wanted results of architecture 1, got 0"):
        nats_files.read_folder(tss, quiet)


@pytest.mark.parametrize("name", ["000000.pickle.pbz2", "meta.pickle.pbz2"])
def test_cut_off_or_damaged(tss, name):
    path = tss / name
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 20, 3, 0):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{name}: .*(cut off or )?damaged"):
            nats_files.read_folder(tss, quiet)
    raw = bytearray(content)
    raw[len(raw) // 2] ^= 0x55
    path.write_bytes(raw)  # bzip2 has a checksum for each block
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        nats_files.read_folder(tss, quiet)


def test_one_file_that_is_cut_off(tmp_path):
    path = tmp_path / ONE_FILE["tss"]
    save_packed(path, one_file(nats_states("tss"), cell_texts()))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"NATS-tss.*damaged"):
        nats_files.read_file(path, quiet)


def test_packed_tight_is_refused(tss, monkeypatch):
    monkeypatch.setattr(nats_files, "_MOST_BYTES", 2 << 20)
    (tss / "000011.pickle.pbz2").write_bytes(bz2.compress(bytes(3 << 20)))
    with pytest.raises(ValueError, match=r"000011.*unpacks to more than 2 MiB"):
        nats_files.read_folder(tss, quiet)


def test_schedule_of_the_other_space_is_refused(tss):
    states = nats_states("tss")[0]
    for run in states["200"]["all_results"].values():
        run["epochs"] = 90
    save_packed(tss / "000000.pickle.pbz2", {"12": states["12"], "90": states["200"]})
    with pytest.raises(ValueError, match="wanted schedules of 12, 200 epochs as in NATS-Bench top"):
        nats_files.read_folder(tss, quiet)
    save_packed(tss / "000000.pickle.pbz2", {"12": states["12"], "20": states["200"]})
    with pytest.raises(ValueError, match=r"wanted schedules .* got \['12', '20'\]"):
        nats_files.read_folder(tss, quiet)


def test_other_paths_are_told_apart(tss, tmp_path):
    assert nats_files.why_not_folder(tss) is None
    assert nats_files.why_not_folder(tss / "meta.pickle.pbz2") == "no folder"
    assert nats_files.why_not_folder(tmp_path) == "a folder without meta.pickle.pbz2"
    meta_of(tss).rename(tmp_path / "meta.pickle.pbz2")
    assert nats_files.why_not_folder(tmp_path) == "a folder without NNNNNN.pickle.pbz2"
    (tmp_path / "a.pickle.pbz2").write_bytes(b"no")
    assert nats_files.why_not_file(tmp_path / "a.pickle.pbz2") == "not packed by bzip2"
    with pytest.raises(ValueError, match=r"of no known kind.*NATS-Bench folder: a folder without"):
        import_table(tmp_path, tmp_path / "out.table")


def test_infinite_losses_are_counted(tss):
    """They are there, but no table has them: not the same as what the source lacks."""
    states = nats_states("tss")[11]
    for (dataset, _), run in states["200"]["all_results"].items():
        if dataset == "cifar100":
            run["train_losses"][3] = run["train_losses"][9] = float("inf")
    save_packed(tss / "000011.pickle.pbz2", states)
    found = nats_files.read_folder(tss, quiet)
    notes = [note for note in found.notes if "infinite" in note]
    assert len(notes) == 1 and notes[0].startswith("cifar100/200: ")
    assert "; 2 infinite values of the source stand as NaN" in notes[0]
    losses = found.columns["cifar100/200/train_loss"][1, 0]
    assert np.flatnonzero(np.isnan(losses)).tolist() == [3, 9]


def test_an_architecture_that_unpacks_to_too_much(tss):
    """A small file of zeros: refused at 256 MiB, before it is looked at as a pickle."""
    (tss / "000011.pickle.pbz2").write_bytes(bz2.compress(bytes(1 << 26)) * 5)
    with pytest.raises(ValueError, match=r"000011\.pickle\.pbz2: unpacks to more than 256 MiB"):
        nats_files.read_folder(tss, quiet)
