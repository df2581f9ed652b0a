"""Estimators on learning curves of tables, against sums and ranks made by hand."""

import json

import numpy as np
import pytest
from official_results import nats_folder
from scipy import stats
from tiny_runs import cli

from nasfast import spaces, tables
from nasfast.from_table import curves_of, estimator_correlations
from nasfast.report.plots import to_png
from nasfast.report.table_plots import table_plot
from nasfast.tables import CurveTable
from nasfast.tables.curve_table import write_curve_table
from nasfast.tables.importers import import_table

ROWS, EPOCHS = 40, 12
SEEDS = (777, 888)
HEADER = {
    "space": "nb201", "release": "made up", "sources": [], "missing": [], "checks": [],
    "importer": "test",
}  # fmt: skip


def columns():
    """Curves of 40 architectures; run 888 is of every second one alone."""
    rng = np.random.default_rng(5)
    quality = rng.random(ROWS)
    shape = (ROWS, len(SEEDS), EPOCHS)
    way = np.linspace(1.0, 0.1, EPOCHS)
    loss = 2.5 * way + (1.0 - quality)[:, None, None] * 0.3 + rng.normal(0, 0.2, shape)
    accuracy = 0.5 + 0.3 * quality[:, None, None] * (1.1 - way) + rng.normal(0, 0.03, shape)
    found = {
        "train_loss": np.abs(loss), "valid_loss": np.abs(loss) + 0.2, "valid_accuracy": accuracy,
        "test_accuracy": accuracy[:, :, -1] + rng.normal(0, 0.02, shape[:2]),
    }  # fmt: skip
    seeds = np.tile(np.array(SEEDS, dtype=np.int32), (ROWS, 1))
    seeds[1::2, 1] = -1
    result = {"index": np.arange(ROWS) * 3, "cifar10/12/seeds": seeds}
    for name, values in found.items():
        values = values.astype(np.float32)
        values[seeds < 0] = np.nan
        result[f"cifar10/12/{name}"] = values
    result["cifar10/200/seeds"] = np.full((ROWS, 1), 777, dtype=np.int32)
    final = 0.9 + 0.1 * quality[:, None]
    result["cifar10/200/test_accuracy"] = final.astype(np.float32)
    result["cifar10/200/test_loss"] = (1.0 - quality[:, None]).astype(np.float32)
    return result


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "made_up.table"
    write_curve_table(path, HEADER, columns())
    return CurveTable.open(path)


def by_hand(name, loss, valid_loss, accuracy, t):
    """Estimates of runs after t epochs, ``[rows, seeds]``; sums written out."""
    if name == "sotl":
        return -sum(loss[:, :, e] for e in range(t))
    if name.startswith("sotl_e"):
        return -sum(loss[:, :, e] for e in range(max(0, t - int(name[6:])), t))
    if name == "ema":
        return -sum(0.9 ** (t - 1 - e) * loss[:, :, e] for e in range(t))
    if name == "sovl":
        return -sum(valid_loss[:, :, e] for e in range(t))
    return {
        "train_loss": -loss, "valid_loss": -valid_loss, "valid_accuracy": accuracy,
    }[name][:, :, t - 1]  # fmt: skip


def test_every_point_as_by_hand(table):
    """Values of SciPy over estimates that are written out, for each estimator and epoch."""
    raw = {name.rpartition("/")[2]: v for name, v in columns().items() if "/12/" in name}
    curves = [
        raw[name].astype(np.float64) for name in ("train_loss", "valid_loss", "valid_accuracy")
    ]
    truth = columns()["cifar10/200/test_accuracy"][:, 0].astype(np.float64)
    found = estimator_correlations(curves_of(table), windows=(1, 3), bootstrap=0, top=(1.0, 0.25))
    names = ["sotl", "sotl_e1", "sotl_e3", "ema", "train_loss"]
    names += ["sovl", "valid_loss", "valid_accuracy"]
    assert {p.estimator for p in found.points} == set(names)
    assert len(found.points) == 2 * len(names) * EPOCHS
    best = np.argsort(-truth)[: ROWS // 4]
    for point in found.points:
        estimates = by_hand(point.estimator, *curves, point.epoch)
        rows = np.arange(ROWS) if point.top == 1.0 else best
        mean = np.nanmean(estimates, axis=1)[rows]
        assert point.spearman.n == len(rows)
        wanted = stats.spearmanr(mean, truth[rows]).statistic
        assert point.spearman.value == pytest.approx(wanted, abs=1e-12)
        wanted = stats.kendalltau(mean, truth[rows]).statistic
        assert point.kendall.value == pytest.approx(wanted, abs=1e-12)
        for place, seed in enumerate(SEEDS):
            known = rows[np.isfinite(estimates[rows, place])]
            rho, tau = point.by_seed[seed]
            wanted = stats.spearmanr(estimates[known, place], truth[known]).statistic
            assert rho == pytest.approx(wanted, abs=1e-12)
            wanted = stats.kendalltau(estimates[known, place], truth[known]).statistic
            assert tau == pytest.approx(wanted, abs=1e-12)


def test_truth_is_the_longest_schedule_unless_told(table):
    assert curves_of(table).truth_name == "cifar10/200/test_accuracy, mean of the runs"
    own = curves_of(table, "cifar10", 12, "cifar10/12/test_accuracy")
    raw = columns()["cifar10/12/test_accuracy"].astype(np.float64)
    np.testing.assert_allclose(own.truth, np.nanmean(raw, axis=1))
    loss = curves_of(table, truth="cifar10/200/test_loss")
    np.testing.assert_allclose(loss.truth, -columns()["cifar10/200/test_loss"][:, 0])


def test_intervals_come_with_resamples(table):
    (point,) = estimator_correlations(
        curves_of(table), ["valid_accuracy"], epochs=[12], top=(1.0,), bootstrap=200
    ).points
    low, high = point.spearman.interval
    assert low < point.spearman.value < high
    assert (point.spearman.resampled, point.spearman.confidence) == ("architectures", 0.95)
    (again,) = estimator_correlations(
        curves_of(table), ["valid_accuracy"], epochs=[12], top=(1.0,), bootstrap=200
    ).points
    assert again == point


def test_too_few_rows_are_nan_and_say_so(table):
    found = estimator_correlations(curves_of(table), ["sotl"], epochs=[1], top=(0.01,), bootstrap=9)
    assert np.isnan(found.points[0].spearman.value)
    assert found.points[0].spearman.n == 1
    assert json.loads(json.dumps(found.plain()))["points"][0]["n"] == 1


def test_epochs_with_gaps_are_dropped(tmp_path):
    changed = columns()
    changed["cifar10/12/train_loss"][:4, :, 5] = np.nan
    write_curve_table(tmp_path / "t.table", HEADER, changed)
    curves = curves_of(CurveTable.open(tmp_path / "t.table"))
    before, after = (
        estimator_correlations(curves, ["sotl"], epochs=[t], top=(1.0,), bootstrap=0).points[0]
        for t in (5, 6)
    )
    assert (before.spearman.n, before.spearman.dropped) == (ROWS, 0)
    assert (after.spearman.n, after.spearman.dropped) == (ROWS - 4, 4)


def test_official_files_go_all_the_way(tmp_path):
    """From a folder of NATS-Bench: the better of the two architectures is seen at every epoch."""
    import_table(nats_folder(tmp_path, "tss"), tmp_path / "tss.table", partial=True)
    table = CurveTable.open(tmp_path / "tss.table")
    with pytest.raises(ValueError, match="dataset: wanted one of ImageNet16-120, cifar10, "):
        curves_of(table)
    curves = curves_of(table, "cifar10-valid", 200, "cifar10/200/test_accuracy")
    assert curves.seeds == (777, 888)
    assert curves.curves["valid_accuracy"].shape == (2, 2, 200)
    found = estimator_correlations(curves, bootstrap=0, top=(1.0,))
    assert len({point.epoch for point in found.points}) > 12
    last = {p.estimator: p.spearman.value for p in found.points if p.epoch == 200}
    assert last["valid_accuracy"] in (1.0, -1.0)
    test = np.diff(curves.truth)[0]
    valid = np.diff(np.nanmean(curves.curves["valid_accuracy"][:, :, -1], axis=1))[0]
    assert last["valid_accuracy"] == np.sign(test) * np.sign(valid)


def test_shipped_table_has_a_row_for_each_training():
    table = tables.load("digits-nb201", spaces.get("nb201"))
    curves = curves_of(table)
    assert (len(curves.truth), curves.unit, curves.epochs) == (8452, "networks", 16)
    (point,) = estimator_correlations(curves, ["sotl"], epochs=[16], top=(1.0,), bootstrap=0).points
    first = np.unique(table.network, return_index=True)[1]
    sums = table.train_loss[first].astype(np.float64).sum(axis=2).mean(axis=1)
    wanted = stats.spearmanr(-sums, table.test_accuracy[first].mean(axis=1)).statistic
    assert point.spearman.value == pytest.approx(wanted, abs=1e-6)
    assert estimator_correlations(
        curves, ["valid_accuracy"], epochs=[1, 16], top=(1.0,), bootstrap=0
    ).points[0].epoch == 16  # known at the end alone  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ["sotl_f"]}, "estimators: wanted some of sotl, ema, .* got 'sotl_f'"),
        ({"estimators": ["sotl_e0"]}, "got 'sotl_e0'"),
        ({"windows": (0,)}, "windows: wanted at least 1 epoch, got 0"),
        ({"epochs": [13]}, r"epochs: wanted some of 1\.\.12, got \[13\]"),
        ({"epochs": [0, 1]}, "epochs: wanted some of"),
        ({"epochs": []}, "epochs: wanted some of"),
        ({"top": (0.0,)}, "top: wanted shares above 0"),
        ({"top": ()}, "top: wanted shares above 0"),
    ],
)
def test_bad_arguments(table, options, message):
    with pytest.raises(ValueError, match=message):
        estimator_correlations(curves_of(table), **options)


def test_bad_choices_of_curves(table):
    with pytest.raises(ValueError, match="dataset: wanted one of cifar10, got 'cifar100'"):
        curves_of(table, "cifar100")
    with pytest.raises(ValueError, match="schedule: wanted one of 12 of cifar10, got 200"):
        curves_of(table, "cifar10", 200)
    with pytest.raises(
        ValueError, match=r"truth: wanted one of cifar10/12/test_accuracy, .*'test'"
    ):
        curves_of(table, truth="test")
    digits = tables.load("digits-nb201", spaces.get("nb201"))
    with pytest.raises(ValueError, match="has one of each, so name neither"):
        curves_of(digits, "digits")
    with pytest.raises(ValueError, match="truth: wanted 'test' or 'valid'"):
        curves_of(digits, truth="train")
    with pytest.raises(ValueError, match="valid_loss needs curves of valid_loss, but digits"):
        estimator_correlations(curves_of(digits), ["valid_loss"])


def test_table_without_losses_by_epoch(tmp_path):
    changed = columns()
    changed["cifar10/12/train_loss"] = changed["cifar10/12/train_loss"][:, :, -1].copy()
    write_curve_table(tmp_path / "t.table", HEADER, changed)
    with pytest.raises(
        ValueError, match=r"has no training losses by epoch, got cifar10/12/\w+, cifar10"
    ):
        curves_of(CurveTable.open(tmp_path / "t.table"))


def test_plot_has_a_line_for_each_estimator_and_panel(table):
    found = estimator_correlations(curves_of(table), windows=(3,), bootstrap=20, top=(1.0, 0.5))
    plot = table_plot(found)
    panels = plot.figure.axes
    assert [axes.get_title() for axes in panels] == ["all 40 architectures", "best 50 %, 20"]
    for axes, share in zip(panels, (1.0, 0.5), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        for name in ("sotl", "sotl_e3", "ema", "train_loss", "sovl", "valid_loss"):
            wanted = [
                p.spearman.value for p in found.points if (p.estimator, p.top) == (name, share)
            ]
            assert lines[name].get_xdata().tolist() == list(range(1, 13))
            assert lines[name].get_ydata().tolist() == wanted
    assert to_png(plot)[:4] == b"\x89PNG"
    assert "95 % bootstrap intervals over architectures" in plot.caption


def test_command(table, tmp_path):
    png = tmp_path / "curves.png"
    path = str(table.columns.path)
    options = ("--estimator", "sotl", "--epoch", "3", "--epoch", "12", "--bootstrap", "20")
    done = cli("table", "correlate", path, *options, "--png", str(png), "--json")
    assert done.exit_code == 0, done.output
    plain = json.loads(done.stdout)
    assert [(p["top"], p["epoch"]) for p in plain["points"]] == [
        (1.0, 3), (1.0, 12), (0.1, 3), (0.1, 12),
    ]  # fmt: skip
    assert plain["points"][0]["spearman"]["interval"][0] <= plain["points"][0]["spearman"]["value"]
    assert png.read_bytes()[:4] == b"\x89PNG"
    text = cli("table", "correlate", path, *options, "--top", "1.0").stdout
    assert "Spearman / Kendall tau-b over 40 architectures (all):" in text
    assert f"{plain['points'][1]['spearman']['value']:.3f} / " in text


def test_command_looks_at_the_plot_first(tmp_path, monkeypatch):
    monkeypatch.setattr("nasfast.cli.table_curves.curves_of", None)  # to read would be an error
    for png, words in {
        tmp_path: f"--png: wanted the name of a file, got the folder {tmp_path}",
        tmp_path / "none" / "a.png": "--png: there is no folder",
    }.items():
        done = cli("table", "correlate", "digits-nb201", "--png", png)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_command_refuses_what_has_no_curves(tmp_path):
    done = cli("table", "correlate", str(tmp_path / "none.table"))
    assert (done.exit_code, "neither a file nor a shipped table" in done.output) == (2, True)
    for name in ("test", "other"):
        np.savez(tmp_path / "values.npz", **{name: np.zeros(15625)})
        done = cli("table", "correlate", str(tmp_path / "values.npz"))
        assert done.exit_code == 2
        assert "wanted a table with learning curves, got one with values alone" in done.output


def test_estimators_that_no_epoch_has_are_refused():
    """Our own tables know the validation accuracy at the end alone."""
    curves = curves_of(tables.load("digits-nb201", spaces.get("nb201")))
    words = r"epochs: valid_accuracy is known from epoch 16 on in .*, got \[1, 15\]"
    for names in (["valid_accuracy"], ["sotl", "valid_accuracy"]):
        with pytest.raises(ValueError, match=words):
            estimator_correlations(curves, names, epochs=[15, 1], top=(1.0,), bootstrap=0)
    found = estimator_correlations(curves, epochs=[1], top=(1.0,), bootstrap=0)
    assert {point.estimator for point in found.points} == {"sotl", "sotl_e10", "ema", "train_loss"}


def test_show_says_what_to_use_for_other_tables(tmp_path):
    np.savez(tmp_path / "values.npz", test=np.zeros(15625))
    for name in ("digits-nb201", tmp_path / "values.npz"):
        done = cli("table", "show", name)
        assert done.exit_code == 2
        assert f"wanted a table that nasfast import table wrote; for one of trainings, 'nasfast " \
            f"table correlate {name}'" in done.stderr  # fmt: skip
