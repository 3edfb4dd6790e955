"""Two files of a benchmark side by side: which rows are the same, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedjax_sim.bench import _compare

NO_TIMES = ("host", "accuracy")
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def part(*rows: dict, cores: int = 1, processor: str = "one", **more) -> dict:
    hardware = {"processor": processor, "cores": cores, "devices": ["cpu"], "jax": "0"}
    return {"hardware": hardware, "rows": rows, **more}


def row(median: float, measure: str = "seconds_per_round", **more) -> dict:
    return {measure: {"min": 0.9 * median, "median": median, "max": 1.1 * median}, **more}


@pytest.fixture
def compare(tmp_path, capsys):
    """What is printed of two files: the table's cells by label, and the lines below it."""

    def call(a, b) -> tuple[dict[str, list[str]], str]:
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, content in zip(paths, (a, b), strict=True):
            path.write_text(json.dumps(content))
        _compare.main([str(path) for path in paths])
        _, table, below = capsys.readouterr().out.split("\n\n")
        lines = [[cell for cell in line.split("  ") if cell] for line in table.splitlines()[2:]]
        return {label.strip(): [cell.strip() for cell in cells] for label, *cells in lines}, below

    return call


def test_two_files_side_by_side(compare):
    a = part(row(4, model="cnn", devices=2), row(2, model="mlp"), row(1, model="rnn"))
    b = part(row(2.2, model="mlp"), row(2, model="cnn", devices=2, used=True), processor="two")
    table, below = compare(a, b)
    assert table == {
        "cnn 2 devices": ["ms", "4,000", "2,000", "2.00"],
        "mlp": ["ms", "2,000", "2,200", "0.91 ~"],
    }
    assert "1 rows stand in one file alone" in below and "without times" not in below


def test_machines_are_named_above_the_table(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([part(row(1, model="cnn")), part(cores=2, processor="two")]))
    _compare.main([str(tmp_path / "a.json")] * 2)
    shown = capsys.readouterr().out
    assert shown.count("a.json: one, 1 core(s), cpu, jax 0; two, 2 core(s), cpu, jax 0\n") == 2


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RESULTS.glob("*.json")) if path.name.split("-")[0] not in NO_TIMES],
    ids=lambda p: p.stem,
)
def test_each_row_of_a_result_has_a_name_of_its_own(path, capsys):
    content = json.loads(path.read_text())
    parts = content if isinstance(content, list) else [content]
    _compare.main([str(path), str(path)])
    shown = capsys.readouterr().out
    assert shown.count("1.00 ~\n") == sum("not_measured" not in row for part in parts for row in part["rows"])
    assert "#" not in shown and " in a, " not in shown and "alone" not in shown


def test_cores_of_the_host_do_not_name_a_row(compare):
    table, below = compare(
        part(row(2, workload="emnist", cores=1), cores=1), part(row(1, workload="emnist", cores=16), cores=16)
    )
    assert table == {"emnist": ["ms", "2,000", "1,000", "2.00"]}
    assert "cores: 1 in a, 16 in b: all rows" in below


def test_cores_name_a_row_that_a_file_has_on_several_of_them(compare):
    both = [part(row(cores, workload="emnist", cores=cores), cores=cores) for cores in (1, 2)]
    table, below = compare(both, part(row(4, workload="emnist", cores=2), cores=2))
    assert table == {"emnist 2 cores": ["ms", "2,000", "4,000", "0.50"]}
    assert "1 rows stand in one file alone" in below and " in a, " not in below


def test_lanes_that_a_machine_chose_do_not_name_a_row(compare):
    a = part(*(row(1, "seconds", experiment=name, lanes=50, rounds=5) for name in ("femnist", "cifar10")))
    b = part(
        row(1, "seconds", experiment="femnist", lanes=50, rounds=5),
        row(1, "seconds", experiment="cifar10", lanes=64, rounds=5),
    )
    table, below = compare(a, b)
    assert list(table) == ["femnist 5 rounds", "cifar10 5 rounds"]
    assert "lanes: 50 in a, 64 in b: cifar10 5 rounds\n" in below


def test_precision_goes_before_lanes(compare):
    """Lanes that were chosen for each precision do not name a row beside it."""
    a = part(
        row(1, experiment="blazefl", precision="default", lanes=1),
        row(1, experiment="blazefl", precision="high", lanes=2),
    )
    b = part(
        row(1, experiment="blazefl", precision="default", lanes=3),
        row(1, experiment="blazefl", precision="high", lanes=3),
    )
    table, _ = compare(a, b)
    assert list(table) == ["blazefl default", "blazefl high"]


def test_layouts_and_observations_do_not_name_a_row(compare):
    a = part(row(1, workload="lstm", program="torch", layout="1 lane", observations=3))
    b = part(row(1, workload="lstm", program="torch", layout={"lanes": 2}, observations=200))
    table, _ = compare(a, b)
    assert list(table) == ["lstm torch"]


def test_clients_of_all_kernels_name_their_rows(compare):
    a, b = (part(row(1, "seconds", kernel="lstm"), clients=clients) for clients in (1, 4))
    assert list(compare(a, a)[0]) == ["lstm 1 clients"]
    with pytest.raises(ValueError, match="'lstm 1 clients' in the one, 'lstm 4 clients' in the other"):
        compare(a, b)


def test_rows_without_times_are_counted(compare):
    """Those of a peer that was not measured."""
    missing = {"workload": "lstm", "program": "torch", "not_measured": "disagrees"}
    table, below = compare(
        part(row(1, workload="lstm", program="jitted"), missing),
        part(missing, row(1, workload="lstm", program="jitted")),
    )
    assert list(table) == ["lstm jitted"]
    assert "2 rows without times are left out" in below and "alone" not in below


def test_of_rates_the_larger_is_the_faster(compare):
    names = {"model": "mlp", "feed": "streamed", "set_gigabytes": 10.0001, "limit_gigabytes": 1.0}
    a = part(row(100, "examples_per_second", **names))
    b = part(row(200, "examples_per_second", **names | {"set_gigabytes": 10.0002}))
    table, _ = compare(a, b)
    assert table == {
        "mlp streamed 10.0 set gigabytes 1.0 limit gigabytes": ["examples/s", "100", "200", "2.00"]
    }


def test_a_time_is_not_compared_with_a_rate(compare):
    with pytest.raises(ValueError, match="have no row in common"):
        compare(part(row(1, model="mlp")), part(row(1, "examples_per_second", model="mlp")))


def test_rows_of_one_name_are_numbered(compare):
    a, b = (part(*(row(x, what="cohort", cohort=10) for x in times)) for times in ((1, 2), (4, 4, 8)))
    table, below = compare(a, b)
    assert table == {
        "cohort 10 cohort": ["ms", "1,000", "4,000", "0.25"],
        "cohort 10 cohort #2": ["ms", "2,000", "4,000", "0.50"],
    }
    assert "1 rows stand in one file alone" in below


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (part() | {"rows": 10_000}, "got 10000. A file of 'bench host' has totals alone"),
        (part() | {"rows": [1]}, r"'rows' must be a list of rows with times, got \[1\]."),
        (part({"model": "cnn", "seconds": 1.0}), "no row with times, 1 without: one of seconds_per_round"),
        (part({"model": "cnn", "seconds": {"run": 1.0}}), "no row with times, 1 without"),
        ([], "no row with times, 0 without"),
        (part(row(1, color="red")), "a row that nothing names: .*'red'.* needs one of workload, model"),
    ],
    ids=["host", "numbers", "no spread", "totals", "empty", "no names"],
)  # fmt: skip
def test_what_cannot_be_compared_says_why(compare, content, message):
    with pytest.raises(ValueError, match=rf"b\.json .*{message}"):
        compare(part(row(1, model="cnn")), content)


def test_files_of_other_benchmarks_have_nothing_in_common(compare):
    with pytest.raises(ValueError, match=r"of the same benchmark\?.*'cnn' in the one, 'lstm' in the other"):
        compare(part(row(1, model="cnn")), part(row(1, kernel="lstm")))
