"""Two files of one benchmark side by side: two accelerators, two versions.

    fedjax-sim bench compare -- a.json b.json

Rows are matched by what they measure: workload, engine, devices; kernel, shape, form. Precision, lanes and
cores name a row only where one of the files has the same row with several of them; elsewhere a line says
where they differ. If a file has a row twice, the second is ``#2``. ``b is faster`` is the quotient of the
medians, above 1 where b is; it is marked where the two ranges overlap. All benchmarks' files can be compared
but those of ``bench host`` and ``bench accuracy``, which have no rows with times.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.bench import _measure

NAMES = (
    "workload", "model", "experiment", "kernel", "shape", "form", "program", "engine", "chain", "feed",
    "what", "population", "cohort", "clients", "rounds", "devices", "set_gigabytes", "limit_gigabytes",
)  # fmt: skip
"""Keys of a row that say what is measured; all else is a result, or says how."""
SETTINGS = ("precision", "lanes", "cores")
"""Keys that a machine or a version may choose; each names rows where it tells some of a file apart."""
_UNITS = {
    "seconds_per_round": ("ms", 1e3),
    "seconds": ("ms", 1e3),
    "examples_per_second": ("examples/s", 1.0),
}
"""What is compared, the first that a row has: its unit, and what it is multiplied with."""


class Row(NamedTuple):
    """One measurement.

    Attributes:
      names: what is measured, by the keys of ``NAMES`` that it has.
      settings: likewise of ``SETTINGS``.
      measure: which of ``seconds_per_round``, ``seconds`` and ``examples_per_second`` it gives.
      spread: minimum, median and maximum.
    """

    names: dict[str, Any]
    settings: dict[str, Any]
    measure: str
    spread: Mapping[str, float]


Names = tuple[Any, ...]


def read(path: Path) -> tuple[list[str], list[Row], int]:
    """A line per machine, the rows that have times, and how many have none.

    Raises:
      ValueError: no file of a benchmark, or of one without rows or times; says what it lacks.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) and "rows" in part and "hardware" in part for part in parts):
        raise ValueError(
            f"{path} is no file of a benchmark: it needs 'hardware' and 'rows', as --out writes them."
        )
    machines, found, without = [], [], 0
    for part in parts:
        if not isinstance(part["rows"], list) or not all(isinstance(row, Mapping) for row in part["rows"]):
            raise ValueError(
                f"{path} cannot be compared: 'rows' must be a list of rows with times, got "
                f"{str(part['rows'])[:40]}. A file of 'bench host' has totals alone: read them side by side."
            )
        hardware = part["hardware"]
        devices = ", ".join(dict.fromkeys(map(str, hardware["devices"])))
        machines.append(
            f"{hardware['processor']}, {hardware['cores']} core(s), {devices}, jax {hardware['jax']}"
        )
        for row in part["rows"]:
            measure = next((name for name in _UNITS if _is_spread(row.get(name))), None)
            if measure is None:
                without += 1
                continue
            # 'bench kernels' states the clients of all its rows once, beside them.
            stated = {"clients": part.get("clients"), **row}
            names, settings = (
                {key: _rounded(stated[key]) for key in keys if isinstance(stated.get(key), str | int | float)}
                for keys in (NAMES, SETTINGS)
            )
            if not names:
                raise ValueError(
                    f"{path} has a row that nothing names: {row}. It needs one of {', '.join(NAMES)}."
                )
            found.append(Row(names, settings, measure, row[measure]))
    if not found:
        raise ValueError(
            f"{path} has no row with times, {without} without: one of {', '.join(_UNITS)} must have min, "
            "median and max. 'bench peers -- --check-only' times nothing: run it without that."
        )
    return machines, found, without


def _is_spread(value: Any) -> bool:
    return isinstance(value, Mapping) and {"min", "median", "max"} <= set(value)


def _rounded(value: Any) -> Any:
    """A set of 10 GB ends with its last client, at 10.0001 GB."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def matched(a: Sequence[Row], b: Sequence[Row]) -> tuple[dict[Names, tuple[Row, Row]], tuple[str, ...]]:
    """Rows that both files have, by their names; and the settings that are part of the names."""
    settings: tuple[str, ...] = ()
    for key in SETTINGS:
        more = (*settings, key)
        if any(_different(rows, more) > _different(rows, settings) for rows in (a, b)):
            settings = more
    named_a, named_b = _numbered(a, settings), _numbered(b, settings)
    return {names: (row, named_b[names]) for names, row in named_a.items() if names in named_b}, settings


def _different(rows: Sequence[Row], settings: Sequence[str]) -> int:
    return len({_names(row, settings) for row in rows})


def _names(row: Row, settings: Sequence[str]) -> Names:
    chosen = {key: value for key, value in row.settings.items() if key in settings}
    return row.measure, *row.names.items(), *chosen.items()


def _numbered(rows: Sequence[Row], settings: Sequence[str]) -> dict[Names, Row]:
    """Rows by their names and, from the second of a name on, their number."""
    seen: Counter[Names] = Counter()
    found = {}
    for row in rows:
        names = _names(row, settings)
        seen[names] += 1
        found[(*names, ("number", f"#{seen[names]}")) if seen[names] > 1 else names] = row
    return found


def _label(names: Names) -> str:
    """Such as ``emnist sharded 2 devices``."""
    _, *items = names
    return " ".join(v if isinstance(v, str) else f"{v:,} {key.replace('_', ' ')}" for key, v in items)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows that both files have."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    args = parser.parse_args(arguments)
    (machines_a, rows_a, without_a), (machines_b, rows_b, without_b) = read(args.a), read(args.b)
    both, settings = matched(rows_a, rows_b)
    if not both:
        first_a, first_b = (_label(_names(rows[0], settings)) for rows in (rows_a, rows_b))
        raise ValueError(
            f"{args.a} and {args.b} have no row in common: are they of the same benchmark? The first row is "
            f"{first_a!r} in the one, {first_b!r} in the other."
        )
    for letter, path, machines in (("a", args.a, machines_a), ("b", args.b, machines_b)):
        print(f"{letter}  {path}: {'; '.join(machines)}")
    print()
    table, differing = [], {}
    for names, (a, b) in both.items():
        label, (unit, scale) = _label(names), _UNITS[a.measure]
        # The larger time is the slower, and the smaller rate.
        over, under = (a.spread, b.spread) if unit == "ms" else (b.spread, a.spread)
        apart = over["min"] > under["max"] or under["min"] > over["max"]
        faster = f"{over['median'] / under['median']:.2f}{'' if apart else ' ~'}"
        table.append((label, unit, scale * a.spread["median"], scale * b.spread["median"], faster))
        for key in SETTINGS:
            values = a.settings.get(key), b.settings.get(key)
            if values[0] != values[1]:
                differing.setdefault((key, *values), []).append(label)
    _measure.print_table(("row", "unit", "a", "b", "b is faster"), table)
    print("\n~ the ranges of the repetitions overlap")
    for (key, of_a, of_b), labels in differing.items():
        where = "all rows" if len(labels) == len(both) else ", ".join(labels)
        print(f"{key}: {of_a} in a, {of_b} in b: {where}")
    if without_a + without_b:
        print(f"{without_a + without_b} rows without times are left out")
    alone = len(rows_a) + len(rows_b) - 2 * len(both)
    if alone:
        print(f"{alone} rows stand in one file alone")
