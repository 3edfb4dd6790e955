"""Runs all presets of this folder and compares them: a table, a figure, and the numbers behind both.

    python examples/emnist/run_all.py

Run folders go to runs/emnist; those that are complete are left alone, those that stopped go on. The comparison is
written to examples/emnist/results. With --small everything is tiny, to try it out: two rounds on the embedded digits,
and no picture but the comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim import experiment, plots

HERE = Path(__file__).resolve().parent
COMMAND = "python examples/emnist/run_all.py"
PRESETS = (
    "original", "rounds_50", "rounds_100", "deeper_cnn", "adam", "fedadam", "clients_20", "batch_64", "flipped",
    "bright_ink", "augmented", "fedprox", "fedavgm", "best",
)  # fmt: skip
SMALL = ("rounds=2", "seeds=[0]", "data.source=digits", "plots=false")
TABLE, FIGURE, SUMMARIES = "table.md", "comparison.png", "summaries.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs all presets of this folder and compares them.")
    parser.add_argument("--out", type=Path, help="of the run folders; runs/emnist if not given")
    parser.add_argument("--results", type=Path, help="of table and figure; results/ beside this file")
    parser.add_argument(
        "--small", action="store_true", help="two rounds on the digits; results go below --out"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PRESETS, default=PRESETS, metavar="PRESET", help="some of them"
    )
    given = parser.parse_args()
    out = given.out or Path("runs/emnist-small" if given.small else "runs/emnist")
    results = given.results or (out / "results" if given.small else HERE / "results")
    changes = SMALL if given.small else ()

    for name in PRESETS:
        if name in given.only:
            train(name, out / name, changes)
    finished = [name for name in PRESETS if is_complete(out / name)]
    compare({name: out / name for name in finished}, results)
    print(f"{results / TABLE}\n{results / FIGURE}")


def train(name: str, folder: Path, changes: Sequence[str] = ()) -> None:
    """Runs a preset in its folder, from where it stopped."""
    preset = experiment.load(HERE / f"{name}.toml", changes)

    def tell(progress) -> None:
        print(
            f"{name}: {progress.done} of {progress.rounds} rounds, loss {progress.chunk['loss'][-1]:.4f}",
            flush=True,
        )

    if not (folder / "config.toml").exists():
        experiment.run(preset, folder, callbacks=[tell])
        return
    if experiment.load(folder).settings != preset.settings:
        raise SystemExit(
            f"{folder} holds a run with other settings than {name}.toml has now: remove it, or give --out."
        )
    if is_complete(folder):
        print(f"{name}: complete already")
    else:
        experiment.resume(folder, callbacks=lambda _: [tell])


def is_complete(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "completed"


def compare(folders: Mapping[str, Path], results: Path) -> None:
    """Writes the table, the figure and the numbers behind them."""
    results.mkdir(parents=True, exist_ok=True)
    summaries = {name: summary(name, folder) for name, folder in folders.items()}
    (results / SUMMARIES).write_text(json.dumps(summaries, indent=1) + "\n")
    (results / TABLE).write_text(table(summaries))
    plots.run_panels(list(folders.values()), "eval/accuracy").savefig(
        results / FIGURE, metadata={"Software": None}
    )


def summary(name: str, folder: Path) -> dict[str, Any]:
    """What the table needs of one run; nothing about where it ran."""
    run = plots.read_run(folder)
    of_seed = {}
    for replica, about in zip(run.replicas, run.summary["replicas"], strict=True):
        traffic = replica.values("bytes_up").sum() + replica.values("bytes_down").sum()
        of_seed[str(replica.seed)] = {
            "first_loss": replica.rows[0]["loss"],
            "last_loss": replica.rows[-1]["loss"],
            "accuracy": about["last"]["eval/accuracy"],
            "best_accuracy": about["best"]["eval/accuracy"]["value"],
            "best_after": about["best"]["eval/accuracy"]["rounds"],
            "worst_decile": about["last"]["eval/accuracy/worst_decile"],
            "megabytes": traffic / 1e6,
        }
    data = {key: run.summary["data"][key] for key in ("name", "clients", "train_examples", "test_examples")}
    return {
        "change": change(name),
        "data": data,
        "rounds": run.rounds,
        "parameters": run.summary["parameters"],
        "losses": [
            round(statistics.mean(r.rows[i]["loss"] for r in run.replicas), 4) for i in range(run.rounds)
        ],
        "seeds": of_seed,
    }


def change(name: str) -> list[str]:
    """The lines of a preset in which it differs from the original."""
    text = (HERE / f"{name}.toml").read_text()
    if "extends" not in tomllib.loads(text):
        return []
    lines = [line.partition("  #")[0].rstrip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "extends"))]


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown: mean over seeds, and one sample standard deviation where there are several."""
    data = next(iter(summaries.values()))["data"]
    seeds = max(len(about["seeds"]) for about in summaries.values())
    lines = [
        f"Made by `{COMMAND}` on {data['name']}: {data['clients']} clients with {data['train_examples']:,} examples,",
        f"tested on {data['test_examples']:,}. Means over up to {seeds} seeds, ± one standard deviation. Accuracies in %;",
        "worst: the worst tenth of the test clients. Loss: in training, first and last round. MB: sent by and to all",
        "clients of a run.",
        "",
        "| preset | change | rounds | seeds | accuracy | best | worst | first loss | last loss | MB | parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, about in summaries.items():
        of_seed = list(about["seeds"].values())
        cells = [
            name,
            "<br>".join(f"`{line}`" for line in about["change"]) or "none",
            about["rounds"],
            len(of_seed),
            spread([100 * one["accuracy"] for one in of_seed], 2),
            spread([100 * one["best_accuracy"] for one in of_seed], 2),
            spread([100 * one["worst_decile"] for one in of_seed], 1),
            spread([one["first_loss"] for one in of_seed], 4),
            spread([one["last_loss"] for one in of_seed], 4),
            f"{statistics.mean(one['megabytes'] for one in of_seed):,.0f}",
            f"{about['parameters']:,}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± deviation``."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
