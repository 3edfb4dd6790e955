"""The report: one page, nothing beside it, nothing from files that a browser would run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from unit.run_folders import CONFIG, clients, rows, write_run

from fedjax_sim.plots._groups import groups, read_runs
from fedjax_sim.report import write_report
from fedjax_sim.report._results import Spread, best, last

EVIL = '<script>alert("x")</script>&\'"'


class Page(HTMLParser):
    """Tags, attributes and text of a page; unbalanced tags are an error."""

    VOID = ("meta", "img", "br")

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(folders, tmp_path) -> Page:
    return Page(write_report(folders, tmp_path / "report.html").read_text())


def test_one_run(tmp_path):
    found = page(write_run(tmp_path / "a"), tmp_path)
    for words in (
        "trial",
        "What was run",
        "1,234",
        "Results",
        "Figure 1.",
        'name = "fedavg"',
        "versions.jax",
        "0.10.2",
    ):
        assert words in found.text, words
    assert f"fedjax-sim run {tmp_path / 'a' / 'config.toml'}" in found.text
    assert found.tags.count("img") == 8
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_nothing_is_loaded_or_run(tmp_path):
    found = page(
        [write_run(tmp_path / "a"), write_run(tmp_path / "b", config=CONFIG | {"name": "b"})], tmp_path
    )
    assert not {"script", "link", "iframe", "object", "base", "a"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href"):
            assert value.startswith("data:image/svg+xml;base64,")
    assert "url(" not in found.text and "@import" not in found.text


def test_what_files_say_is_text(tmp_path):
    config = {"name": EVIL, "data": {"name": EVIL, "key": EVIL}, "algorithm": {"name": EVIL}}
    arrays = clients()
    arrays["ids"] = np.array([EVIL] * 8)
    metrics = [row | {f"eval/{EVIL}": 0.5, "sweep": {EVIL: EVIL}} for row in rows()]
    folders = [
        write_run(
            tmp_path / f"{index}<b>", config=config | {"rounds": index}, arrays=arrays, metrics=metrics,
            summary={"status": EVIL, "reason": EVIL}, environment={EVIL: EVIL, "command": ["run", EVIL]},
        )
        for index in range(2)
    ]  # fmt: skip
    for given in (folders[0], folders):
        found = page(given, tmp_path)
        assert not {"script", "b>"} & set(found.tags)
        assert EVIL in found.text


def test_results_are_over_seeds(tmp_path):
    metrics = rows(rounds=6)
    metrics[6]["eval/accuracy"], metrics[7]["eval/accuracy"] = (
        0.97,
        0.99,
    )  # the fourth round, the best of both seeds
    (group,) = groups(read_runs(write_run(tmp_path / "a", metrics=metrics)))
    np.testing.assert_allclose(last(group, "eval/accuracy").values, [5 / 6, 5 / 6])
    np.testing.assert_allclose(best(group, "eval/accuracy").values, [0.97, 0.99])
    np.testing.assert_allclose(best(group, "eval/loss").values, [2, 3])
    np.testing.assert_allclose(best(group, "loss").values, [1 / 6, 1 + 1 / 6])
    text = page(tmp_path / "a", tmp_path).text
    assert "0.980 ± 0.014" in text and "over 2 seeds" in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "0.500"), ([0.5, 0.5], "0.500 ± 0.000"), ([123.456], "123.5"), ([1234567.0], "1,234,567"),
        ([0.00001], "1.00e-05"), ([0.0], "0.000"), ([-2.5, -3.5], "-3.000 ± 0.707"), ([1.0, np.nan], "not finite"),
    ],
)  # fmt: skip
def test_numbers_are_short(values, text):
    assert str(Spread(np.array(values))) == text


def test_several_runs_say_what_differs(tmp_path):
    other = CONFIG | {"name": "other", "algorithm": {"name": "scaffold", "client": {"learning_rate": 0.1}}}
    found = page([write_run(tmp_path / "a"), write_run(tmp_path / "b", config=other)], tmp_path)
    for words in ("2 federated runs", "trial, other", "What differs", "algorithm.name = scaffold"):
        assert words in found.text, words


def test_a_run_that_did_not_complete_is_said_first(tmp_path):
    failed = write_run(tmp_path / "a", summary={"status": "failed", "reason": "the model is not finite"})
    with (failed / "metrics.jsonl").open("a") as file:
        file.write('{"rou')
    running = write_run(tmp_path / "b", summary={})
    text = page([failed, running], tmp_path).text
    for words in ("failed after 6 rounds. the model is not finite", "was cut off", "trial has no summary"):
        assert text.index(words) < text.index("What was run")


def test_metrics_alone_make_a_page(tmp_path):
    folder = write_run(
        tmp_path / "a", config={}, arrays={}, summary={}, environment={}, metrics=[{"round": 0, "loss": 0.5}]
    )
    found = page(folder, tmp_path)
    assert "0.500" in found.text and "Run it again" not in found.text


def test_an_older_page_is_replaced_only_by_a_whole_one(tmp_path):
    path = write_report(write_run(tmp_path / "a"), tmp_path / "report.html")
    before = path.read_text()
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "nowhere", path)
    assert path.read_text() == before
    assert re.search(r"^<!DOCTYPE html>", before)
