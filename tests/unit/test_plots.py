"""Pictures of run folders: what they read, what they show, what they refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from unit.run_folders import CONFIG, clients, rows, write_run

from fedjax_sim import plots
from fedjax_sim.data._label_counts import divergences
from fedjax_sim.plots import _labels, _save, _style

ROOT = Path(__file__).resolve().parents[2]


def texts(figure: Figure) -> list[str]:
    """All words of a figure's legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def with_rate(rate: float, **more) -> dict:
    return CONFIG | {"algorithm": {"name": "fedavg", "client": {"learning_rate": rate}, **more}}


# Reading.


def test_a_whole_folder_is_read(tmp_path):
    run = plots.read_run(write_run(tmp_path / "a"))
    assert (run.name, run.rounds, run.notes) == ("trial", 6, ())
    assert [replica.seed for replica in run.replicas] == [0, 1]
    assert (
        run.metrics[:4] == ("loss", "bytes_up", "bytes_down", "simulated_seconds")
        and "eval/accuracy" in run.metrics
    )
    assert run.settings == ({},)
    np.testing.assert_array_equal(run.replicas[0].rounds, np.arange(6) + 1)
    assert plots.read_run(run) is run


def test_metrics_alone_are_enough(tmp_path):
    folder = write_run(
        tmp_path / "a", config={}, arrays={}, summary={}, environment={}, metrics=[{"round": 0, "loss": None}]
    )
    run = plots.read_run(str(folder))
    assert (run.name, run.config, run.clients, run.replicas[0].seed) == ("a", {}, {}, None)
    assert np.isnan(run.replicas[0].values("loss")).all()
    assert [path.name for path in plots.save_all(folder)] == ["learning_curves.png"]


@pytest.mark.parametrize("tail", [b'{"round": 6, "lo', b"\xe2\x98", b"\0\0\0"])
def test_a_last_line_that_was_cut_off_is_a_note(tmp_path, tail):
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    run = plots.read_run(folder)
    assert run.rounds == 6 and run.notes == ("the last line of metrics.jsonl was cut off and is left out",)


def test_what_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder, expected a run folder"):
        plots.read_run(tmp_path / "nowhere")
    write_run(tmp_path / "first")
    with pytest.raises(
        FileNotFoundError, match=r"has no metrics.jsonl. It holds run folders, name one: first"
    ):
        plots.read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"round": 0}\n{"rou\n{"round": 1}\n', r"line 2 of .*metrics.jsonl is '\{\"rou'"),
        (
            "metrics.jsonl",
            '{"round": 0}\n{"loss": 0}\n',
            "line 2 of .* expected a JSON object with an integer 'round'",
        ),
        ("config.toml", "name =", "config.toml is no TOML"),
        ("summary.json", "{", "summary.json is no JSON"),
        ("environment.json", "[]", "environment.json holds list, expected a JSON object"),
        ("clients.npz", "text", "clients.npz is no file of plain NumPy arrays"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "a")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        plots.read_run(folder)


def test_pickled_arrays_are_refused(tmp_path):
    folder = write_run(tmp_path / "a", arrays={"ids": np.array([object()], dtype=object)})
    with pytest.raises(ValueError, match=r"clients\.npz is no file of plain NumPy arrays"):
        plots.read_run(folder)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda run: plots.learning_curves(run, "eval/acuracy"), r"no metric 'eval/acuracy' .* there are loss, .* Did you mean 'eval/accuracy'\?"),
        (lambda run: plots.learning_curves(run, []), "no metric is given"),
        (lambda run: plots.learning_curves(run, x="hours"), "x is 'hours', expected one of 'rounds', 'bytes', 'time'"),
        (lambda run: plots.learning_curves([]), "no run folder is given"),
        (lambda run: plots.client_results(run, "recall"), "no array of clients 'eval/recall'"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(tmp_path, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(write_run(tmp_path / "a"))


def test_a_run_without_a_row_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no complete round yet"):
        plots.save_all(write_run(tmp_path / "a", metrics=[]))


def test_missing_time_is_named(tmp_path):
    folder = write_run(tmp_path / "a", metrics=[{"round": 0, "loss": 1.0}])
    with pytest.raises(ValueError, match="rows have no simulated_seconds; plot over 'rounds'"):
        plots.learning_curves(folder, x="time")


# Learning curves.


def test_the_line_is_the_mean_and_the_band_one_deviation(tmp_path):
    figure = plots.learning_curves(write_run(tmp_path / "a"), ["loss", "eval/accuracy"])
    left, right = figure.axes
    x, mean = left.lines[-1].get_data()
    np.testing.assert_array_equal(x, np.arange(1, 7))
    np.testing.assert_allclose(mean, 1 / np.arange(1, 7) + 0.5)
    (band,) = left.collections
    edges = band.get_paths()[0].vertices
    deviation = np.std([0, 1], ddof=1)
    np.testing.assert_allclose(
        [edges[:, 1].min(), edges[:, 1].max()], [1 / 6 + 0.5 - deviation, 1.5 + deviation]
    )
    np.testing.assert_array_equal(right.lines[-1].get_xdata(), [2, 4, 6])
    assert texts(figure) == ["mean over 2 seeds", "mean ± 1 standard deviation", "one seed"]
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss (training)", "accuracy (eval)")


def test_a_single_seed_has_no_band(tmp_path):
    figure = plots.learning_curves(write_run(tmp_path / "a", metrics=rows(seeds=[3])))
    assert len(figure.axes[0].collections) == 0 and len(figure.axes[0].lines) == 1 and texts(figure) == []


@pytest.mark.parametrize(("x", "last"), [("rounds", 6), ("bytes", 9.0), ("time", 3.0)])
def test_the_other_axes(tmp_path, x, last):
    figure = plots.learning_curves(write_run(tmp_path / "a"), "eval/accuracy", x=x)
    assert figure.axes[0].lines[-1].get_xdata()[-1] == pytest.approx(last)


def test_a_mean_is_missing_where_one_seed_is_not_finite(tmp_path):
    metrics = rows()
    metrics[3]["loss"] = None
    sweep = [row | {"sweep": {"lr": lr}} for row in metrics for lr in (1, 2)]
    for found in (metrics, sweep):
        folder = write_run(tmp_path / str(len(found)), metrics=found)
        axes = plots.learning_curves(folder).axes[0]
        mean = axes.lines[2].get_ydata()  # after the two seeds
        assert np.isnan(mean[1]) and np.isfinite(np.delete(mean, 1)).all()


def test_one_difference_is_the_legend(tmp_path):
    runs = [write_run(tmp_path / str(rate), config=with_rate(rate)) for rate in (0.1, 0.5)]
    assert texts(plots.learning_curves(runs))[:2] == [
        "algorithm.client.learning_rate = 0.1",
        "algorithm.client.learning_rate = 0.5",
    ]
    assert texts(plots.learning_curves(runs))[2] == "mean ± 1 standard deviation over 2 seeds"


def test_panels_keep_the_order_of_the_runs_and_show_the_first_behind(tmp_path):
    """Also where their one difference is a number, by which a legend would sort them."""
    runs = [
        write_run(tmp_path / str(rate), config=with_rate(rate), metrics=rows(rounds=rounds))
        for rate, rounds in ((0.5, 6), (0.1, 4), (0.3, 8))
    ]
    figure = plots.run_panels(runs, "loss")
    assert [axes.get_title("left").rpartition(" ")[2] for axes in figure.axes] == ["0.5", "0.1", "0.3"]
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 2]
    for axes, rounds in zip(figure.axes, (6, 4, 8), strict=True):
        np.testing.assert_array_equal(axes.lines[-1].get_xdata(), np.arange(1, rounds + 1))
        assert axes.get_xlim() == (0, rounds)
        assert axes.texts[0].get_text() == f"{1 / rounds + 0.5:.3f}"
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), np.arange(1, 7))
    assert texts(figure)[1:] == [
        "algorithm.client.learning_rate = 0.5",
        "mean ± 1 standard deviation over 2 seeds",
    ]


def test_panels_of_single_seeds_have_no_band(tmp_path):
    runs = [write_run(tmp_path / name, metrics=rows(seeds=[0])) for name in "abcde"]
    figure = plots.run_panels(runs)
    assert len(figure.axes) == 5 and not any(axes.collections for axes in figure.axes)
    with pytest.raises(ValueError, match="no metric 'eval/recall'"):
        plots.run_panels(runs, "eval/recall")


def labels(tmp_path, *configs) -> list[str]:
    return _labels.run_labels(
        [plots.read_run(write_run(tmp_path / f"run{i}", config=config)) for i, config in enumerate(configs)]
    )


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([CONFIG], ["trial"]),
        ([CONFIG, CONFIG], ["run0", "run1"]),
        ([CONFIG, CONFIG | {"name": "other"}], ["trial", "other"]),
        ([{}, {}], ["run0", "run1"]),
        ([with_rate(0.1), with_rate(0.1) | {"data": {"name": "digits", "alpha": 1}}], ["data.alpha = 0.3", "data.alpha = 1"]),
        ([with_rate(0.1), with_rate(0.5) | {"data": {"name": "d", "alpha": 0.3}}], ["name = digits, learning_rate = 0.1", "name = d, learning_rate = 0.5"]),
        ([with_rate(0.1), with_rate(0.5, mu=0.01)], ["algorithm.client.learning_rate = 0.1", "algorithm.client.learning_rate = 0.5"]),
        ([with_rate(0.1, mu=1), with_rate(0.1)], ["run0", "run1"]),
    ],
)  # fmt: skip
def test_runs_are_called_by_what_differs(tmp_path, configs, expected):
    assert labels(tmp_path, *configs) == expected


def test_a_swept_run_has_a_line_for_every_setting_in_order(tmp_path):
    metrics = [row for lr in (0.3, 0.01, 0.1) for row in rows(sweep={"algorithm.client.learning_rate": lr})]
    arrays = clients(replicas=6)
    arrays["eval/accuracy"] = np.repeat([[0.3], [0.3], [0.01], [0.01], [0.1], [0.1]], 8, axis=1)
    folder = write_run(tmp_path / "a", metrics=metrics, arrays=arrays)
    figure = plots.learning_curves(folder)
    assert texts(figure)[:3] == [f"algorithm.client.learning_rate = {lr}" for lr in (0.01, 0.1, 0.3)]
    assert len(figure.axes[0].collections) == 3
    # The arrays' rows belong to the replicas in the order of the rows.
    shares = plots.client_results(folder)
    assert [line.get_xdata()[-1] for line in shares.axes[0].lines] == [0.01, 0.1, 0.3]


def test_results_of_another_run_are_refused(tmp_path):
    folder = write_run(tmp_path / "a", arrays=clients(replicas=3))
    with pytest.raises(ValueError, match="has 3 rows, expected one for each of the 2 replicas"):
        plots.client_results(folder)


def test_many_lines_stay_different():
    styles = _style.line_styles(20)
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 20


@pytest.mark.parametrize("name", ["_hidden", "costs $5 or $x^", "a" * 200, "ümläut"])
def test_any_name_is_shown_as_it_is(tmp_path, name):
    runs = [write_run(tmp_path / str(i), config=CONFIG | {"name": name + str(i)}) for i in range(2)]
    first = texts(plots.learning_curves(runs))[0].strip()
    assert first == name + "0" or (first.endswith("...") and name.startswith(first[:-3]))


# Clients.


@pytest.mark.parametrize("number", [1, 5, 41, 1000])
@pytest.mark.parametrize("classes", [1, 10])
def test_partitions_of_every_size(tmp_path, number, classes):
    generator = np.random.default_rng(0)
    table = generator.integers(0, 9, (number, classes))
    table[0] = 0
    figure = plots.partition(write_run(tmp_path / "a", arrays={"ids": np.arange(number), "labels": table}))
    sizes, distances, axes = figure.axes[:3]
    assert axes.get_xlabel() and axes.get_ylabel() == "class"
    assert heights(sizes).sum() == table.sum()
    shown = (
        table if number <= 40 or not table.any() else table[table.any(axis=1)]
    )  # a map leaves the empty out
    assert sorted(heights(distances)) == pytest.approx(sorted(divergences(shown)))


def heights(axes):
    """Of the bars, or of the steps, of a panel."""
    return np.array(
        [p.get_height() for p in axes.patches if hasattr(p, "get_height")]
        or axes.patches[0].get_data().values
    )


def test_a_picture_of_a_sample_says_so(tmp_path):
    run = write_run(tmp_path / "a", arrays={"ids": np.arange(3), "labels": np.eye(3, dtype=int)})
    for population, title in (
        (1_000_000, "A sample: 3 of 1,000,000 clients, 3 training"),
        (3, "3 clients, 3 training"),
        (None, "3 clients"),
    ):
        figure = plots.partition(run, population=population)
        assert figure.axes[0].get_title("left").startswith(title)
        assert ("the sample's labels" in figure.axes[1].get_title("left")) == (population == 1_000_000)


def test_very_many_clients_share_columns_of_the_map(tmp_path):
    """Each column is the mean of its neighbours, so the classes' shares stay what they are."""
    table = np.random.default_rng(0).integers(0, 9, (5001, 3)) + 1
    figure = plots.partition(write_run(tmp_path / "a", arrays={"ids": np.arange(5001), "labels": table}))
    (image,) = figure.axes[2].images
    shown = np.asarray(image.get_array())
    assert shown.shape == (3, 1200)
    np.testing.assert_allclose(shown.sum(axis=0), 1)
    np.testing.assert_allclose(
        shown.mean(axis=1), (table / table.sum(axis=1, keepdims=True)).mean(axis=0), rtol=0.01
    )


def test_the_map_shows_every_share_in_its_place(tmp_path):
    table = np.zeros((50, 3), int)
    table[np.arange(50), np.arange(50) % 3] = 4
    table[7] = 0  # a client without examples is left out, and the title says so
    figure = plots.partition(write_run(tmp_path / "a", arrays={"ids": np.arange(50), "labels": table}))
    (image,) = figure.axes[2].images
    expected = np.repeat([0, 1, 2], [17, 16, 16])
    shown = np.asarray(image.get_array())
    np.testing.assert_array_equal(shown.argmax(axis=0), expected)
    assert figure.axes[0].get_title("left").startswith("50 clients (1 without examples are left out)")


def test_bubbles_have_the_area_of_the_count(tmp_path):
    figure = plots.partition(
        write_run(tmp_path / "a", arrays={"ids": np.arange(2), "labels": np.array([[4, 0], [1, 2]])})
    )
    (bubbles,) = figure.axes[2].collections
    np.testing.assert_allclose(bubbles.get_sizes() / bubbles.get_sizes().max(), [1, 0.25, 0.5])


def test_a_huge_client_leaves_the_others_bubbles_that_can_be_seen(tmp_path):
    """As of the 30 clients of synthetic(1, 1), one of which has more than half of all examples."""
    table = np.diag([5, 6, 7, 8] * 5)
    table[3, 3] = 331
    figure = plots.partition(write_run(tmp_path / "a", arrays={"ids": np.arange(20), "labels": table}))
    (bubbles,) = figure.axes[2].collections
    sizes = bubbles.get_sizes() / bubbles.get_sizes().max()
    assert sizes.max() == sizes[3] and np.delete(sizes, 3).min() > 0.1
    np.testing.assert_allclose(np.delete(sizes, 3) * 32, np.delete(np.diag(table), 3))
    assert list(bubbles.get_linewidths()) == [1.2 * (place == 3) for place in range(20)]
    assert "is 32 or more, up to 331 where it has a rim" in figure.axes[2].get_title("left")


@pytest.mark.parametrize("low", [1, 2, 5, 45])
def test_bars_on_a_logarithmic_axis_are_equally_wide_and_hold_all(tmp_path, low):
    sizes = np.arange(low, 150 * low)
    run = write_run(tmp_path / "a", arrays={"ids": np.arange(len(sizes)), "train_examples": sizes})
    axes = plots.client_sizes(run).axes[0]
    ratios = [(bar.get_x() + bar.get_width()) / bar.get_x() for bar in axes.patches]
    np.testing.assert_allclose(ratios, ratios[0])
    assert sum(bar.get_height() for bar in axes.patches) == len(sizes)
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert all(re.fullmatch(r"\d{1,3}(,\d{3})*", tick) for tick in ticks), ticks


@pytest.mark.parametrize("sizes", [[0, 0], [5], [3, 3, 3], [1, 10, 1000, 0], list(range(500))])
def test_sizes_of_every_kind(tmp_path, sizes):
    arrays = {"ids": np.arange(len(sizes)), "train_examples": np.array(sizes)}
    figure = plots.client_sizes(write_run(tmp_path / "a", arrays=arrays))
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches)
    wide = max(sizes) > 100  # a logarithmic axis has no place for empty clients, the title counts them
    assert drawn == (np.count_nonzero(sizes) if wide else len(sizes))


def test_the_histogram_counts_clients_not_seeds(tmp_path):
    arrays = clients()
    figure = plots.client_results(write_run(tmp_path / "a", arrays=arrays))
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == pytest.approx(
        7
    )  # one has no test examples
    assert len(figure.axes) == 2
    arrays["eval_ids"] = np.array(["other"] * 8)
    assert len(plots.client_results(write_run(tmp_path / "b", arrays=arrays)).axes) == 1, (
        "other people: no sizes beside"
    )


def test_participation_with_and_without_a_raster(tmp_path):
    arrays = clients()
    figure = plots.participation(write_run(tmp_path / "a", arrays=arrays))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown.sum(axis=1), arrays["participation"][0])
    np.testing.assert_array_equal(shown.sum(axis=0), 2)
    ticks = dict(
        zip(
            figure.axes[0].get_yticks(),
            (text.get_text() for text in figure.axes[0].get_yticklabels()),
            strict=True,
        )
    )
    assert ticks[0] == "c0" and ticks[2] == "c2", "clients go by their own names"
    many = {"ids": np.arange(1000), "participation": np.random.default_rng(0).poisson(3, (2, 1000))}
    figure = plots.participation(write_run(tmp_path / "b", arrays=many))
    assert len(figure.axes) == 1 and "never did" in figure.axes[0].get_title(loc="left")


# Saving.


def test_save_all_writes_what_the_data_gives(tmp_path):
    folder = write_run(tmp_path / "a")
    written = plots.save_all(folder)
    assert {path.name for path in written} == {
        "learning_curves.png", "worst_clients_eval.png", "against_traffic.png", "against_time.png",
        "clients_eval_accuracy.png", "client_sizes.png", "partition.png", "participation.png",
    }  # fmt: skip
    assert set(written) == set((folder / "plots").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    first = written[0].read_bytes()
    assert plots.save_all(folder)[0].read_bytes() == first, "the same picture is the same file"


def test_the_callers_settings_stay_and_do_not_show(tmp_path):
    folder = write_run(tmp_path / "a")
    plain = _save.encode(plots.learning_curves(folder), "png")
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        assert _save.encode(plots.learning_curves(folder), "png") == plain
        assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported(tmp_path):
    folder = write_run(tmp_path / "a")
    code = f"""
import sys
from fedjax_sim import plots
plots.save_all({str(folder)!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, timeout=300)


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    """On a full disk the pictures of before stay, and no half of a new one."""
    run = write_run(tmp_path / "a")
    plots.save_all(run)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a" / "plots").iterdir()}

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        plots.save_all(run)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "plots").iterdir()} == before


def test_how_long_a_run_went_on_is_no_name_for_it(tmp_path):
    """A run that had more rounds than a sweep beside it goes by its folder."""
    configs = [{**CONFIG, "rounds": 20}, {**CONFIG, "rounds": 5}]
    runs = [
        plots.read_run(write_run(tmp_path / name, config=c))
        for name, c in zip(("a", "rates"), configs, strict=True)
    ]
    assert _labels.run_labels(runs) == ["a", "rates"]
