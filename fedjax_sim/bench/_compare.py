"""Two files of one benchmark side by side: two accelerators, two versions.

    fedjax-sim bench compare -- a.json b.json

Rows are matched by everything that names them (model, engine, layout; kernel, shape, form). ``b is faster`` is the
quotient of the medians, a's over b's; it is marked where the two ranges do not overlap.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedjax_sim.bench import _measure

_TIMES = ("seconds_per_round", "seconds")


def read(path: Path) -> tuple[list[str], dict[frozenset, tuple[str, dict[str, float]]]]:
    """A line per machine, and by what names a row its label and its times.

    Raises:
      ValueError: no file of a benchmark; says what it lacks.
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
    found, machines = {}, []
    for part in parts:
        hardware = part["hardware"]
        devices = ", ".join(dict.fromkeys(map(str, hardware["devices"])))
        machines.append(
            f"{hardware['processor']}, {hardware['cores']} core(s), {devices}, jax {hardware['jax']}"
        )
        for row in part["rows"]:
            times = next((row[name] for name in _TIMES if name in row), None)
            if times is None:
                raise ValueError(f"{path} has a row without {' or '.join(_TIMES)}: {row}")
            names = {
                key: value for key, value in row.items() if isinstance(value, str | int) and key != "used"
            }
            label = " ".join(v if isinstance(v, str) else f"{v} {k}" for k, v in names.items())
            found[frozenset(names.items())] = label, times
    return machines, found


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
    (machines_a, rows_a), (machines_b, rows_b) = read(args.a), read(args.b)
    both = [names for names in rows_a if names in rows_b]
    if not both:
        raise ValueError(f"{args.a} and {args.b} have no row in common: are they of the same benchmark?")
    for letter, path, machines in (("a", args.a, machines_a), ("b", args.b, machines_b)):
        print(f"{letter}  {path}: {'; '.join(machines)}")
    print()
    table = []
    for names in both:
        (label, a), (_, b) = rows_a[names], rows_b[names]
        apart = a["min"] > b["max"] or b["min"] > a["max"]
        mark = "" if apart else " ~"
        table.append((label, 1e3 * a["median"], 1e3 * b["median"], f"{a['median'] / b['median']:.2f}{mark}"))
    _measure.print_table(("row", "a ms", "b ms", "b is faster"), table)
    print("\n~ the ranges of the repetitions overlap")
    alone = len(rows_a) + len(rows_b) - 2 * len(both)
    if alone:
        print(f"{alone} rows stand in one file alone")
