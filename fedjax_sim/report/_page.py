"""Writes the page: what was run, results, figures, configuration, environment, how to run it again."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedjax_sim.plots import figures
from fedjax_sim.plots._groups import Group, Runs, groups, read_runs
from fedjax_sim.plots._labels import differences, flatten, run_labels
from fedjax_sim.plots._read import RunData
from fedjax_sim.plots._save import encode
from fedjax_sim.plots._style import describe
from fedjax_sim.report._look import CSS
from fedjax_sim.report._results import best, last, table_metrics


def write_report(folders: Runs, path: str | Path) -> Path:
    """Writes one HTML page about one or several runs.

    The page holds its styles and pictures, has no script and loads nothing. All text from files is escaped. Several
    runs are compared; the data and who took part are then shown for the first.

    Args:
      folders: run folders.
      path: of the page, in a folder that exists; an older one is replaced in one move.

    Returns:
      The path.

    Raises:
      FileNotFoundError: not a run folder.
      ValueError: no run, a run without a row, or a broken file.

    Example:
      ``write_report(["runs/fedavg", "runs/scaffold"], "comparison.html")``
    """
    runs = read_runs(folders)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(_page(runs), encoding="utf-8")
    partial.replace(path)
    return path


def _page(runs: Sequence[RunData]) -> str:
    labels = run_labels(runs)
    title = runs[0].name if len(runs) == 1 else _listed(dict.fromkeys(run.name for run in runs))
    sections = [
        _section("What was run", _what(runs, labels)),
        _section("Results", _results(groups(runs))),
        _section("Figures", _figures(runs)),
        _section("Configuration", _configuration(runs, labels)),
        _section("Environment", _environment(runs, labels)),
        _section("Run it again", _again(runs)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be loaded or run, whatever the files said.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="kind">{"Federated run" if len(runs) == 1 else f"{len(runs)} federated runs"}</p>'
        f"<h1>{escape(title)}</h1>{_headline(runs)}</header>\n"
        + "".join(sections)
        + "</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _headline(runs: Sequence[RunData]) -> str:
    """The end of every run that did not complete, and what was odd about the files."""
    notes = []
    for run in runs:
        status, reason = run.summary.get("status"), run.summary.get("reason")
        if status not in (None, "completed"):
            notes.append(f"{run.name}: {status} after {run.rounds:,} rounds. {reason or ''}".strip())
        if status is None:
            notes.append(f"{run.name} has no summary: it still runs, or it stopped without one.")
        notes += [f"{run.name}: {note}." for note in run.notes]
    return "".join(f'<p class="warning">{escape(note)}</p>' for note in notes)


def _what(runs: Sequence[RunData], labels: Sequence[str]) -> str:
    facts = []
    for run in runs:
        fact: dict[str, str] = {}
        for name, text in _facts(run):  # a sweep over several settings says "sweep" several times
            fact[name] = f"{fact[name]}; {text}" if name in fact else text
        facts.append(fact)
    names = dict.fromkeys(name for fact in facts for name in fact)
    head = ["", *labels] if len(runs) > 1 else None
    rows = [[name, *(fact.get(name, "") for fact in facts)] for name in names]
    return _table(head, rows, kind="facts")


def _facts(run: RunData) -> Iterator[tuple[str, str]]:
    """What one says about a run in a line each; what the files do not say is left out."""
    config, data = run.config, _mapping(run.summary.get("data"))
    for part in ("data", "model", "algorithm", "cohort", "local"):
        settings = config.get(part)
        if isinstance(settings, Mapping):
            flat = flatten(settings)
            name = flat.pop("name", None)
            short = ", ".join(f"{key} {_text(value)}" for key, value in flat.items())
            yield part, f"{name} ({short})" if name and short else str(name or short)
        elif settings is not None:
            yield part, _text(settings)
    counts = [
        f"{data[key]:,} {word}"
        for key, word in (("clients", "clients"), ("train_examples", "training examples"), ("test_examples", "test examples"))
        if isinstance(data.get(key), int)
    ]  # fmt: skip
    if counts:
        yield "clients", ", ".join(counts)
    if isinstance(run.summary.get("parameters"), int):
        yield "parameters", f"{run.summary['parameters']:,}"
    seeds = list(dict.fromkeys(replica.seed for replica in run.replicas if replica.seed is not None))
    yield "rounds", f"{run.rounds:,}"
    if seeds:
        yield "seeds", ", ".join(map(str, seeds))
    for key in dict.fromkeys(key for setting in run.settings for key in setting):
        values = dict.fromkeys(_text(setting[key]) for setting in run.settings if key in setting)
        yield "sweep", f"{key}: {', '.join(values)}"
    costs = _mapping(run.summary.get("costs"))
    numbers = {key: value for key, value in costs.items() if isinstance(value, int | float)}
    cost = [
        form.format(numbers[key] / scale)
        for key, scale, form in (
            ("run_seconds", 1, "{:,.1f} s"), ("compile_seconds", 1, "{:,.1f} s to compile"),
            ("examples_per_second", 1, "{:,.0f} examples/s"), ("bytes_up", 1e6, "{:,.1f} MB up"),
            ("bytes_down", 1e6, "{:,.1f} MB down"),
        )
        if key in numbers
    ]  # fmt: skip
    if cost:
        yield "cost", ", ".join(cost)
    if costs.get("precision"):
        yield "precision", str(costs["precision"])


def _results(lines: Sequence[Group]) -> str:
    """One block of rows per metric, one row per run or setting, so that what is compared stands in a column."""
    metrics = table_metrics(lines)
    if not metrics:
        return "<p>No metric was recorded by all runs.</p>"
    body = ""
    for name in metrics:
        title = escape(describe(name))
        rows = [[group.label, *_cells(group, name)] for group in lines]
        if len(lines) == 1:
            body += f"<tbody>{_row(title, rows[0][1:])}</tbody>"
        else:
            body += f'<tbody><tr class="metric"><th scope="rowgroup" colspan="5">{title}</th></tr>'
            body += "".join(_row(escape(label), cells) for label, *cells in rows) + "</tbody>"
    seeds = max(len(group.replicas) for group in lines)
    spread = f"Mean ± sample standard deviation over {seeds} seeds. " if seeds > 1 else "One seed. "
    note = (
        f"{spread}Last: after the last round with the metric. Best: of each seed's evaluated rounds, chosen by looking "
        "at the evaluated data, so it is optimistic. Metrics are computed on the data as it is; no epsilon covers them."
    )
    head = (
        '<tr><th rowspan="2"></th><th colspan="2" scope="colgroup">all examples</th>'
        '<th colspan="2" scope="colgroup">worst tenth of clients</th></tr>'
        "<tr><th>last</th><th>best</th><th>last</th><th>best</th></tr>"
    )
    return f'<div class="scroll"><table class="results"><thead>{head}</thead>{body}</table></div>\n<p class="note">{note}</p>'


def _cells(group: Group, name: str) -> list[str]:
    """Last and best over all examples and over the worst tenth; empty where the run does not know."""
    worst = f"{name}/worst_decile"
    if "/" not in name:
        return [str(last(group, name)), "", "", ""]  # the best of noisy training rounds says nothing
    tenth = [str(last(group, worst)), str(best(group, worst))] if worst in group.run.metrics else ["", ""]
    return [str(last(group, name)), str(best(group, name)), *tenth]


def _row(title: str, cells: Sequence[str]) -> str:
    """A row of a table; the title is HTML, the cells are text."""
    return (
        f'<tr><th scope="row">{title}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    )


def _figures(runs: Sequence[RunData]) -> str:
    parts = []
    for number, (name, caption, figure) in enumerate(figures(list(runs)), start=1):
        inches = figure.get_size_inches()[0]
        source = base64.b64encode(encode(figure, "svg")).decode("ascii")
        of = (
            f" {runs[0].name}."
            if len(runs) > 1 and name in ("client_sizes", "partition", "participation")
            else ""
        )
        parts.append(
            f'<figure><img style="width:{inches / 9.6:.1%}" alt="{escape(caption)}" src="data:image/svg+xml;base64,{source}">'
            f"<figcaption><b>Figure {number}.</b> {escape(caption + of)}</figcaption></figure>"
        )
    return "\n".join(parts)


def _configuration(runs: Sequence[RunData], labels: Sequence[str]) -> str:
    parts = []
    if len(runs) > 1:
        flat = [flatten(run.config) for run in runs]
        keys = differences([run.config for run in runs])
        rows = [[key, *(_text(one[key]) if key in one else "–" for one in flat)] for key in keys]
        told = [run.name for run in runs]
        parts.append("<h3>What differs</h3>")
        parts.append(
            _table(["", *told], rows, "settings") if rows else "<p>Nothing: the configurations are equal.</p>"
        )
    for run, label in zip(runs, labels, strict=True):
        file = run.path / "config.toml"
        if file.is_file():
            heading = f"<h3>{escape(label)}</h3>" if len(runs) > 1 else ""
            parts.append(f"{heading}<pre>{escape(file.read_text(encoding='utf-8').strip())}</pre>")
    return "\n".join(parts)


def _environment(runs: Sequence[RunData], labels: Sequence[str]) -> str:
    flat = [flatten(run.environment) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    if not keys:
        return ""
    rows = [[key, *(_text(one[key]) if key in one else "–" for one in flat)] for key in keys]
    return _table(["", *labels] if len(runs) > 1 else None, rows, "settings")


def _again(runs: Sequence[RunData]) -> str:
    """The command that the environment recorded, else the one that runs the configuration."""
    commands = []
    for run in runs:
        recorded = run.environment.get("command")
        if isinstance(recorded, list) and recorded:
            commands.append(shlex.join(map(str, recorded)))
        elif isinstance(recorded, str) and recorded:
            commands.append(recorded)
        elif (run.path / "config.toml").is_file():
            commands.append(f"fedjax-sim run {shlex.quote(str(run.path / 'config.toml'))}")
    return f"<pre>{escape(chr(10).join(commands))}</pre>" if commands else ""


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], kind: str) -> str:
    top = ""
    if head:
        top = (
            "<thead><tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr></thead>"
        )
    body = ""
    for title, *cells in rows:
        if len(cells) > 1 and len(set(cells)) == 1:
            # What is the same for all runs is said once.
            body += f'<tr><th scope="row">{escape(title)}</th><td colspan="{len(cells)}">{escape(cells[0])}</td></tr>'
        else:
            body += _row(escape(title), cells)
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
