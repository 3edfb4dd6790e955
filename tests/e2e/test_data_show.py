"""``fedjax-sim data show``: who holds what, as tables and as a picture."""

from __future__ import annotations

import json
import os
import re
from unittest import mock

import numpy as np
import pytest
from e2e.command_line import invoke

import fedjax_sim as fs
from fedjax_sim import experiment, plots

TREE = "partition={name='hierarchical',edges={name='shards',clients=3},clients={name='iid',clients=4},seed=1}"


pytestmark = pytest.mark.usefixtures("own_folder")


def show(*arguments: str) -> str:
    with mock.patch.dict(os.environ, COLUMNS="80"):  # what a terminal has at least
        result = invoke("data", "show", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def rows(printed: str, what: str) -> list[list[str]]:
    """The cells of the table whose first column is called so."""
    table = printed[re.search(rf"^ *{what} .*examples.*$", printed, re.M).end() :]  # pyright: ignore[reportOptionalMemberAccess]
    found = []
    for line in table.splitlines()[2:]:
        if not line.strip():
            break
        found.append(line.split())
    return found


def test_a_row_for_each_client():
    found = rows(show("digits", "--clients", "12", "--alpha", "0.1"), "client")
    counts = fs.data.digits(clients=12, alpha=0.1).train
    assert [row[0] for row in found] == [str(client) for client in range(12)]
    for client, (_, examples, divergence, *labels) in enumerate(found):
        there = np.bincount(counts.client(client)["y"], minlength=10)
        assert [0 if count == "·" else int(count) for count in labels] == there.tolist()
        assert int(examples) == there.sum() and 0 <= float(divergence) <= 1


def test_as_many_clients_as_are_wanted():
    printed = show("digits", "--clients", "30", "--clients-shown", "3")
    assert len(rows(printed, "client")) == 3 and "and 27 more: --clients-shown" in printed
    assert len(rows(show("digits", "--clients", "30"), "client")) == 20
    assert "more: --clients-shown" not in show("digits", "--clients", "30", "--clients-shown", "30")
    assert not re.search("^ *client ", show("digits", "--clients", "30", "--clients-shown", "0"), re.M)


def test_classes_that_do_not_fit_are_listed():
    printed = show("glyphs", "--clients", "30", "--clients-shown", "2")
    assert re.search(r"^ *0 +\d+ +0\.\d\d +(\d+: \d+, ){4}\d+ more *$", printed, re.M), printed
    assert "…" not in printed


def test_a_set_without_labels(tmp_path):
    np.savez("toy.npz", x=np.zeros((5, 2)), client=[3, 3, 8, 3, 8])
    assert rows(show("npz:toy.npz"), "client") == [["3", "3"], ["8", "2"]]


def test_edges_have_a_table_and_a_column():
    printed = show("digits", "--set", TREE)
    assert re.search(r"edges +3 *$", printed, re.M) and "4 to 4, median 4" in printed
    edges, clients = rows(printed, "edge"), rows(printed, "client")
    assert [row[:2] for row in edges] == [["0", "4"], ["1", "4"], ["2", "4"]]
    assert [row[:2] for row in clients] == [[str(c), str(c // 4)] for c in range(12)]
    for edge, row in enumerate(edges):
        assert int(row[2]) == sum(int(client[2]) for client in clients[4 * edge : 4 * edge + 4])
    about = json.loads(show("digits", "--set", TREE, "--json"))
    assert about["edges"] == 3 and about["clients per edge"] == {"smallest": 4, "median": 4.0, "largest": 4}


@pytest.mark.parametrize("clients", [4, 40])
def test_edges_are_in_the_picture(tmp_path, clients):
    data = experiment.load(changes=[TREE.replace("clients=4", f"clients={clients}")]).federated
    held = experiment.about_clients(data)
    run = plots.RunData(tmp_path, "toy", {}, {}, {}, held, ())
    figure = plots.partition(run)
    sizes = figure.axes[0]
    assert [text.get_text() for text in sizes.texts] == ["edge 0", "1", "2"]
    lines = [[line.get_xdata()[0] for line in axes.lines] for axes in figure.axes[:3]]
    assert lines == [[clients - 0.5, 2 * clients - 0.5]] * 3
    mixed = np.random.default_rng(0).permutation(3 * clients)
    other = plots.RunData(
        tmp_path, "toy", {}, {}, {}, {k: v[mixed] for k, v in held.items() if len(v) == len(mixed)}, ()
    )
    again = plots.partition(other)
    assert [[line.get_xdata()[0] for line in axes.lines] for axes in again.axes[:3]] == lines
    show("digits", "--set", TREE, "--out", "edges.png")
    assert (tmp_path / "edges.png").read_bytes().startswith(b"\x89PNG")


def test_edges_that_do_not_fit_are_refused(tmp_path):
    run = plots.RunData(
        tmp_path, "toy", {}, {}, {}, {"labels": np.eye(3, dtype=int), "edges": np.zeros(2, int)}, ()
    )
    with pytest.raises(ValueError, match=r"edges of .* has the shape \[2\], expected \[3\]"):
        plots.partition(run)


def test_data_show(tmp_path):
    result = invoke("data", "show", "digits", "--clients", "12", "--alpha", "0.1", "--out", "mine.png")
    assert result.exit_code == 0, result.stderr
    assert "divergence" in result.stdout and (tmp_path / "mine.png").stat().st_size > 1000
    result = invoke("data", "show", "glyphs", "--clients", "100000", "--classes", "10", "--out", "glyphs.png")
    assert "200 of 100,000 clients, drawn at random" in result.stdout, result.stderr
    assert "divergence in the sample" in result.stdout and (tmp_path / "glyphs.png").stat().st_size > 1000
    content = json.loads(
        invoke("data", "show", "digits", "--set", "partition={name='shards',clients=7}", "--json").stdout
    )
    assert content["clients"] == 7
    assert (
        content["per client"].keys() == {"smallest", "median", "largest"} and content["test examples"] == 363
    )
    assert content["columns"]["x"] == {"dtype": "uint8", "shape": [8, 8, 1]}
    (tmp_path / "mine.toml").write_text('[data]\nname = "digits"\nclients = 9\n')
    assert json.loads(invoke("data", "show", "mine.toml", "--clients", "6", "--json").stdout)["clients"] == 6
    assert "data.nonsense is no setting" in invoke("data", "show", "mine.toml", "--nonsense", "3").stderr
    assert invoke("data", "show", "digits", "--clients").exit_code == 2
    assert "Did you mean 'alpha'" in invoke("data", "show", "digits", "--alpa", "1").stderr
    assert "Did you mean 'mnist_by_writer'" in invoke("data", "show", "mnist_by_writter:folder").stderr
    assert "npz needs its path: the file. Write npz:PATH." in invoke("data", "show", "npz").stderr


def test_data_show_says_what_is_odd_and_never_none(tmp_path):
    np.savez(
        "odd.npz", x=[[0.0], [np.nan]] * 600, y=[-1, 1] * 600, client=[0] * 1200, client_name=["ann", "bo"]
    )
    shown = " ".join(invoke("data", "show", "npz:odd.npz").stdout.split())
    assert "None" not in shown and "classes not known" in shown and "training examples 1,200" in shown
    assert "1 of 2 clients has no training examples" in shown and "labels=[-1, 1]" in shown
    assert "holds NaN or infinity in 600 of 1,200 training examples" in shown
    shown = invoke("data", "show", "npz:odd.npz", "--labels", "[-1, 1]").stdout
    assert "divergence" in shown and "total variation distance" in shown and "labels=" not in shown
    assert "note" not in invoke("data", "show", "digits", "--clients", "5", "--alpha", "9").stdout
