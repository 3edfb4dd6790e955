"""``list``, ``data show`` and ``new``: what there is to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from fedjax_sim import experiment
from fedjax_sim.cli import _screen
from fedjax_sim.cli._about_data import rows
from fedjax_sim.cli._holdings import holdings
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS, Json, Set


def list_(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(experiment.kinds())}.", show_default=False)],
    json: Json = False,
) -> None:
    """List what a configuration may name, with its settings and its source."""
    if kind not in experiment.kinds():
        _screen.fail(
            f"error: {kind!r} is no kind, expected one of {', '.join(experiment.kinds())}.", BAD_USAGE
        )
    entries = [experiment.find(kind, name, kind) for name in experiment.names(kind)]
    if json:
        _screen.print_json(
            {
                entry.name: {
                    "summary": entry.summary,
                    "source": entry.source,
                    "settings": {
                        name: {"type": parameter.says, "default": parameter.default, "about": parameter.about}
                        for name, parameter in entry.parameters.items()
                    },
                }
                for entry in entries
            }
        )
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "settings", "what it is"):
        table.add_column(column, style="cyan" if column == "name" else None)
    for entry in entries:
        settings = [
            name if p.required else f"{name} = {p.shown_default}" for name, p in entry.parameters.items()
        ]
        source = f"\n{entry.source}" if entry.source and entry.source not in entry.summary else ""
        table.add_row(entry.name, "\n".join(settings), (entry.summary + source).replace("``", "`"))
    _screen.show(table, False)


data = typer.Typer(help="Look at federated data.", no_args_is_help=True)


@data.callback()
def _data() -> None:
    pass


@data.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def show(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="digits, npz:FILE, parquet:PATH, leaf:PATH ..., or a TOML file.")
    ] = "digits",
    changes: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture of who holds which labels, of sizes and divergences.")
    ] = None,
    clients_shown: Annotated[
        int, typer.Option(min=0, help="Clients, and edges, that have a row in the tables of who holds what.")
    ] = 20,
    json: Json = False,
) -> None:
    """Show a data set and how it is divided: `data show digits --clients 100 --alpha 0.1`.

    Options that are not listed are settings of the data set. Of clients that are made when they are wanted, the labels
    shown are those of a random sample of 200.
    """
    try:
        found = _with_data(source, context.args, changes or [])
        sample = experiment.sampled_clients(found.federated)
        clients = experiment.about_clients(sample)
        about = experiment.describe_data(found.federated, sample)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    if json:
        _screen.print_json(about)
    else:
        table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
        table.add_column(style="cyan")
        table.add_column()
        for name, text in rows(about):
            table.add_row(name, text)
        _screen.show(table, False)
        for held in holdings(clients, clients_shown):
            _screen.show(held, False)
    if out is not None:
        from fedjax_sim import plots  # slow to import, and the table does not need it

        run = plots.RunData(Path(), found.federated.name, {}, {}, {}, clients, ())
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if "labels" in clients:
                drawn = plots.partition(run, population=found.federated.train.num_clients)
            else:
                drawn = plots.client_sizes(run)
            drawn.savefig(out)
        except ERRORS as error:
            _screen.fail(f"error: {error}", BAD_USAGE)
        typer.echo(out)


def _with_data(source: str, options: list[str], changes: list[str]) -> experiment.Experiment:
    """``--clients 100`` stands for the setting data.clients."""
    if len(options) % 2 or any(not option.startswith("--") for option in options[::2]):
        raise experiment.ConfigError(
            f"{' '.join(options)!r} is no list of settings, expected --name value pairs."
        )
    given = [
        f"data.{option.removeprefix('--').replace('-', '_')}={value}"
        for option, value in zip(options[::2], options[1::2], strict=True)
    ]
    if source.endswith(".toml"):
        return experiment.load(source, [*given, *changes])
    name, _, path = source.partition(":")
    module = ":" in source and name not in experiment.names("datasets")
    settings = [f'data.name="{source if module else name}"']
    if not module and not path:
        _check_has_path(name, [*given, *changes])
    if path and not module:
        entry = experiment.find("datasets", name, "data.name")
        settings.append(f'data.{next(iter(entry.parameters))}="{path}"')
    return experiment.load(changes=[*settings, *given, *changes])


def _check_has_path(name: str, changes: list[str]) -> None:
    """Raises ConfigError for a source that reads a path which nobody gave."""
    if name not in experiment.names("datasets"):
        return
    parameters = experiment.find("datasets", name, "data.name").parameters
    needs = next((p for p in parameters.values() if p.required), None)
    if needs is not None and not any(change.startswith(f"data.{needs.name}=") for change in changes):
        about = f": {needs.about.rstrip('.')}" if needs.about else ""
        raise experiment.ConfigError(
            f"{name} needs its {needs.name}{about}. Write {name}:{needs.name.upper()}."
        )


def new(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("experiment.toml"),
) -> None:
    """Write a commented configuration to begin with; it describes what plain `run` does."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        _screen.fail(f"error: {path} exists already and is not overwritten; name another file.", BAD_USAGE)
    except OSError as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    typer.echo(f"{path}\nrun it: fedjax-sim run {path}")


STARTER = """\
# An experiment of fedjax_sim. Everything here is the default: delete what you do not change.
#   fedjax-sim run experiment.toml
#   fedjax-sim run experiment.toml --set algorithm.client.learning_rate=0.05 --seeds 0:5
# `fedjax-sim list algorithms` (models, datasets, transforms, cohorts, ...) says what else there is.

# extends = "base.toml"          # build on another file, and keep here only what differs
rounds = 100
seeds = [0]                      # one replica each; several train at once, in one program

[data]
name = "digits"                  # 1,797 handwritten digits, no download; npz, parquet, leaf, images, your own
clients = 50
alpha = 0.3                      # Dirichlet: small gives each label to few clients

# [partition]                    # divides any set anew
# name = "shards"
# clients = 100

# [unseen]                       # clients that never train, evaluated apart
# fraction = 0.1
# seed = 0

[task]
name = "classification"
# augment = [{ name = "shift", pixels = 2 }]
# preprocess = [{ name = "normalise", mean = 0.5, std = 0.5 }]

[model]
name = "mlp"                     # or "my_package.my_module:my_model"
hidden = [200, 200]

# [precision]                    # for accelerators; parameters and sums stay float32
# compute = "bfloat16"
# products = "highest"           # of float32 matrices: on an H100 the default is TF32

[algorithm]
name = "fedavg"
client = { name = "sgd", learning_rate = 0.1 }
# server = { name = "fedadam", learning_rate = 0.01 }
# aggregate = [                  # layers around the sum over clients, first to last
#   { name = "clip_by_global_norm", clip_norm = 1.0 },
#   { name = "mean", over = "expected_cohort" },
#   { name = "gaussian_noise", noise_multiplier = 0.8 },
# ]

[cohort]
name = "uniform"
size = 10

[local]
epochs = 1
batch_size = 20

[engine]
name = "lanes"                   # or: name = "sharded", devices = 2
lanes = "auto"

[evaluation]
every = 10                       # rounds
personalised = false             # at the end, every client's own model before and after local training

[checkpoints]
every = 50                       # rounds; the end is always saved
keep = 2

# [sweep]                        # every combination, each with every seed
# algorithm.client.learning_rate = [0.01, 0.1]
"""
