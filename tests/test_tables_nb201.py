"""NAS-Bench-201 as its authors publish it, compared with their own package."""

import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest
import torch
from official_results import (
    changed,
    nb201_dict,
    nb201_infos,
    same_as_official,
    same_costs,
    save_nb201,
)

from nasfast.tables import CurveTable, nb201_files
from nasfast.tables.importers import import_table
from nasfast.tables.official_releases import cell_texts


def quiet(done, total):
    pass


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    return save_nb201(tmp_path_factory.mktemp("nb201"))


@pytest.fixture(scope="module")
def found(one_file):
    return nb201_files.read_file(one_file, quiet)


@pytest.fixture(scope="module")
def official():
    """The authors' API on the same dictionary (torch.load of today refuses what they save)."""
    api = pytest.importorskip("nas_201_api")
    return api.NASBench201API(nb201_dict(), verbose=False)


def test_every_query_as_the_official_package(found, official):
    """Includes runs from before times were kept, which have sets evaluated at the end alone."""

    def epochs(total):
        return [None, 0, 1, total // 3, 2 * total // 3, total - 1]

    assert same_as_official(official, found.columns, ("12", "200"), epochs) > 1000
    same_costs(official, found.columns, "200")


def test_mean_of_the_last_three_epochs(one_file, official, tmp_path):
    import_table(one_file, tmp_path / "t.table", partial=True)
    table = CurveTable.open(tmp_path / "t.table")
    ours = table.last_epochs_mean("cifar100", 12, "valid_accuracy")
    for row, index in enumerate(table.indices.tolist()):
        wanted = [
            official.get_more_info(index, "cifar100", epoch, hp="12", is_random=False)
            for epoch in (9, 10, 11)
        ]
        mean = np.mean([info["valid-accuracy"] for info in wanted]) / 100.0
        assert ours[row] == pytest.approx(mean, rel=1e-6)


def test_both_formats_of_torch_save_are_the_same(found, tmp_path):
    other = nb201_files.read_file(save_nb201(tmp_path, zipped=True), quiet)
    assert list(other.columns) == list(found.columns)
    for name in found.columns:
        np.testing.assert_array_equal(other.columns[name], found.columns[name])


def test_archive_of_single_architectures_is_the_same(found, tmp_path):
    """With weights, which are passed over; FULL is not read where there is SIMPLE too."""
    folder = tmp_path / "NAS-Bench-201-v1_1-archive"
    folder.mkdir()
    for index, states in nb201_infos().items():
        for state in states.values():
            for result in state["all_results"].values():
                result["net_state_dict"] = torch.nn.BatchNorm2d(3).state_dict()
        zipped = index == 1
        path = folder / f"{index:06d}-FULL.pth"
        torch.save(states, path, _use_new_zipfile_serialization=zipped)
    (folder / "000001-SIMPLE.pth").write_bytes((folder / "000001-FULL.pth").read_bytes())
    (folder / "000001-FULL.pth").write_bytes(b"not read")
    other = nb201_files.read_archive(folder, quiet)
    assert other.sources[0].name == "NAS-Bench-201-v1_1-archive/ (2 files)"
    assert list(other.columns) == list(found.columns)
    for name in found.columns:
        np.testing.assert_array_equal(other.columns[name], found.columns[name])
    (folder / "000001-SIMPLE.pth").rename(folder / "000002-FULL.pth")
    (folder / "000001-FULL.pth").unlink()
    with pytest.raises(ValueError, match="wanted results of architecture 2, got 1"):
        nb201_files.read_archive(folder, quiet)


def test_report_says_what_is_missing_and_what_is_known(found):
    assert found.space == "nb201"
    assert found.release == "NAS-Bench-201 v1.1"
    assert found.missing == ["15,623 of 15,625 architectures"]
    checks = {check.name: check for check in found.checks}
    seeds = checks["numbers of runs by epochs, of"]
    assert (seeds.wanted, seeds.got, seeds.good) == (
        "111, 777 for 12; 777, 888, 999 for 200", "111, 777 for 12; 777, 888 for 200", True,
    )  # fmt: skip
    assert "cifar10/200: architectures by number of runs: 1: 1, 2: 1" in found.notes


def test_import_in_a_file_that_opens_at_once(one_file, tmp_path):
    out, calls = tmp_path / "nb201.table", []
    with pytest.raises(
        ValueError, match=r"not the whole.*15,623 of 15,625 architectures\. Nothing"
    ):
        import_table(one_file, out)
    assert list(tmp_path.iterdir()) == []
    import_table(one_file, out, partial=True, on_progress=lambda *call: calls.append(call))
    assert len(calls) == 4  # two architectures, two schedules
    assert all(total == one_file.stat().st_size for _, total in calls)
    start = time.perf_counter()
    table = CurveTable.open(out)
    assert time.perf_counter() - start < 0.2
    assert table.indices.tolist() == [1, 6111]
    assert table.seeds("cifar10", 200) == (777, 888)
    assert table.columns.header["missing"] == ["15,623 of 15,625 architectures"]
    assert table.curve("cifar10", 200, "train_loss").shape == (2, 200)


def test_import_stopped_midway_leaves_what_was_there(one_file, tmp_path):
    out = tmp_path / "nb201.table"
    import_table(one_file, out, partial=True)
    before = out.read_bytes()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_table(one_file, out, partial=True, on_progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["nb201.table"]
    assert out.read_bytes() == before


class Runs:
    """What a hostile file would have called."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_of_a_file_is_run(tmp_path):
    harm = tmp_path / "harm"
    path = save_nb201(tmp_path, nb201_dict() | {"basestr": Runs(harm)})
    nb201_files.read_file(path, quiet)  # passed over: nothing needs it
    assert not harm.exists()
    torch.load(path, weights_only=False)
    assert harm.is_dir()  # so the file would do it
    harm.rmdir()
    value = nb201_dict()
    run_of(value)["train_losses"][3] = Runs(harm)
    with pytest.raises(ValueError, match="train_losses of _Ignored, wanted numbers"):
        nb201_files.read_file(save_nb201(tmp_path, value), quiet)
    assert not harm.exists()


def run_of(value, schedule="full", dataset="cifar10", seed=777):
    return value["arch2infos"][1][schedule]["all_results"][dataset, seed]


def state_of(value, schedule="full"):
    return value["arch2infos"][1][schedule]


def swap(value):
    texts = value["meta_archs"]
    texts[5], texts[6] = texts[6], texts[5]


BAD = {
    "another release's list": (
        lambda value: value["meta_archs"].pop(), "the 15,625 architectures of .*, got 15,624"),
    "another order": (swap, "not in the official order .* at index 5"),
    "string of another architecture": (
        lambda value: state_of(value).update(arch_str="|none~0|"), "a table of another release"),
    "no arch2infos": (lambda value: value.pop("arch2infos"), "lacks arch2infos"),
    "less without evaluated": (
        lambda value: value["evaluated_indexes"].pop(), "evaluated_indexes: lists 1 "),
    "index of another": (
        lambda value: value["arch2infos"].update({2: value["arch2infos"].pop(1)}),
        r"arch2infos\[2\]: has results of another architecture"),
    "index out of range": (
        lambda value: state_of(value).update(arch_index=15625), "wanted one of the 15,625"),
    "schedules mixed up": (
        lambda value: value["arch2infos"][1].update(less=state_of(value), full=state_of(value)),
        "schedule 'less': wanted 12 epochs, got 200"),
    "a schedule of another release": (
        lambda value: [run.update(epochs=90) for run in state_of(value)["all_results"].values()],
        "wanted schedules of 12, 200 epochs .* got 90"),
    "runs of two lengths": (lambda value: run_of(value).update(epochs=12), "mixed schedules"),
    "column missing": (lambda value: run_of(value).pop("eval_acc1es"), "lacks eval_acc1es"),
    "train losses missing": (lambda value: run_of(value).pop("train_losses"), "wanted a run of"),
    "loss is text": (
        lambda value: run_of(value)["train_losses"].update({3: "1.0"}), "train_losses of str"),
    "losses are a list": (
        lambda value: run_of(value).update(train_losses=[1.0] * 200), "train_losses of type list"),
    "accuracy beyond 100": (
        lambda value: run_of(value)["train_acc1es"].update({3: 101.0}), "percent, got .* to 101"),
    "evaluated on something else": (
        lambda value: run_of(value).update(eval_names=["x-test2"]), "evaluated on .*x-test2"),
    "evaluated on what the data set has not": (
        lambda value: run_of(value).update(eval_names=["x-test"]), "evaluated on x-test, wanted"),
    "run of another seed": (
        lambda value: run_of(value).update(seed="888"), "mixed seeds: run cifar10/777 .*10/888"),
    "run of another data set": (
        lambda value: run_of(value).update(name="cifar100"), "mixed seeds: run cifar10/777"),
    "seeds that it has not": (
        lambda value: state_of(value)["dataset_seed"]["cifar10"].append(999), "mixed seeds: it"),
    "epochs of text": (lambda value: run_of(value).update(epochs="200"), "a run of '200' epochs"),
    "no runs": (lambda value: state_of(value).update(all_results={}), "has no runs"),
    "params of text": (lambda value: run_of(value).update(params="1"), "params of str"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_what_is_wrong(case, tmp_path):
    change, message = BAD[case]
    path = save_nb201(tmp_path, changed(nb201_dict(), change))
    with pytest.raises(ValueError, match=message) as caught:
        nb201_files.read_file(path, quiet)
    assert str(path) in str(caught.value)


def test_too_many_seeds_are_mixed_seeds(tmp_path):
    value = nb201_dict()
    state = state_of(value)
    for seed in range(9):
        state["all_results"]["cifar10", seed] = dict(run_of(value), seed=seed)
        state["dataset_seed"]["cifar10"].append(seed)
    with pytest.raises(ValueError, match="mixed seeds: 0, 1, 2"):
        nb201_files.read_file(save_nb201(tmp_path, value), quiet)


def test_seeds_of_another_release_are_reported(tmp_path):
    value = nb201_dict()
    state = state_of(value)
    state["all_results"]["cifar10", 5] = dict(run_of(value), seed="0005")
    state["dataset_seed"]["cifar10"].append(5)
    found = nb201_files.read_file(save_nb201(tmp_path, value), quiet)
    (check,) = (check for check in found.checks if check.name.startswith("numbers"))
    assert not check.good
    assert check.got.endswith("(others: 5 of cifar10/200)")


def test_values_that_are_not_finite_are_unknown(tmp_path):
    value = nb201_dict()
    run_of(value)["train_losses"].update({3: float("nan"), 199: float("inf")})
    found = nb201_files.read_file(save_nb201(tmp_path, value), quiet)
    curve = found.columns["cifar10/200/train_loss"][0, 0]
    assert np.flatnonzero(np.isnan(curve)).tolist() == [3, 199]
    (note,) = (note for note in found.notes if note.startswith("cifar10/200"))
    assert "1 curves lack some of their values" in note


@pytest.mark.parametrize("zipped", [False, True])
def test_cut_off_or_damaged(zipped, tmp_path):
    path = save_nb201(tmp_path, zipped=zipped)
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 3000, 100, 14):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut off or damaged|damaged|wanted|lacks"):
            nb201_files.read_file(path, quiet)


def test_what_is_no_such_file_is_told_apart(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    assert nb201_files.why_not_file(path) is None
    with pytest.raises(ValueError, match="lacks meta_archs, arch2infos, evaluated_indexes"):
        nb201_files.read_file(path, quiet)
    path.write_bytes(pickle.dumps({}))
    assert nb201_files.why_not_file(path) == "no file of torch.save"
    assert nb201_files.why_not_archive(tmp_path) == "a folder without NNNNNN-FULL.pth"


def test_official_order_of_strings():
    assert cell_texts()[6111] == (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|"
        "nor_conv_1x1~2|"
    )


def test_memory_does_not_grow_with_what_is_passed_over(tmp_path):
    """Forty times as many texts to refer back to cost a few bytes each, not an object each."""
    value = nb201_dict()
    path = save_nb201(tmp_path, value)
    peaks = []
    for copies in (1, 40):
        value["arch2infos"] = {index: nb201_infos()[1] for index in range(copies)}
        for index, states in value["arch2infos"].items():
            for state in states.values():
                state.update(arch_index=index, arch_str=value["meta_archs"][index])
        value["evaluated_indexes"] = set(value["arch2infos"])
        save_nb201(tmp_path, value)
        tracemalloc.start()
        columns = nb201_files.read_file(path, quiet).columns
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = path.stat().st_size
    kept = sum(columns[name].nbytes for name in columns)
    assert peaks[1] - peaks[0] < 2 * kept + size // 8, (peaks, kept, size)


@pytest.mark.parametrize(
    ("name", "release", "words"),
    [
        ("NAS-Bench-201-v1_0-e61699.pth", "v1.0", "release taken from the file's name: NAS-B"),
        ("NAS-Bench-201-v1_1-096897.pth", "v1.1", "release taken from the file's name: NAS-B"),
        (
            "mine.pth",
            "v1.1",
            "the file's name does not say which release it is; taken as NAS-Bench-",
        ),
    ],
)
def test_where_the_release_is_from(tmp_path, name, release, words):
    path = save_nb201(tmp_path).rename(tmp_path / name)
    found = nb201_files.read_file(path, lambda done, total: None)
    assert found.release == f"NAS-Bench-201 {release}"
    assert found.notes[-1].startswith(words) and found.notes[-1].endswith(found.release)
