"""``privacy``: what rounds of noise cost, or the noise that an epsilon needs, before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_sim.cli import _screen
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS, Json, Set, load, prepare_jax
from fedjax_sim.data import cohorts
from fedjax_sim.experiment import Experiment
from fedjax_sim.privacy import Guarantee, calibrate, ledger_of, price
from fedjax_sim.privacy._laws import Accountant, Neighbour

_ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "rdp")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one accountant says: the noise multiplier and the guarantee, or why there is none."""

    accountant: Accountant
    noise: float | None = None
    guarantee: Guarantee | None = None
    reason: str = ""


def privacy(
    config: Annotated[
        Path | None,
        typer.Argument(help="TOML file, or a run folder, that says everything.", show_default=False),
    ] = None,
    changes: Set = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training, or steps of DP-SGD.", min=1)] = None,
    delta: Annotated[
        float | None, typer.Option(help="In (0, 1), well below one over the population.")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Noise multiplier: standard deviation on the sum over the clip norm."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Instead of --noise: find the least noise with this price.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Everyone takes part with this probability (Poisson); 1 for everyone always."),
    ] = None,
    cohort: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", help="Instead of --rate: so many, without replacement. Needs --population."
        ),
    ] = None,
    population: Annotated[int | None, typer.Option(help="How many there are.", min=1)] = None,
    cap: Annotated[
        int | None, typer.Option(help="Largest cohort of --rate; more are cut. Needs --population.", min=1)
    ] = None,
    neighbour: Annotated[
        str | None,
        typer.Option(
            help="add_or_remove_one, replace_one or replace_special; the first that is known if not given."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """What a run will cost in privacy, by both accountants, before it is trained.

    Of an experiment, from its file or folder: --rounds and --delta may differ from what it says. Without one, clients in rounds,
    or examples in the steps of DP-SGD (the arithmetic is the same): give --noise for its epsilon, or --epsilon for the
    noise that it needs.
    """
    if config is not None:
        others = {
            "--noise": noise, "--epsilon": epsilon, "--rate": rate, "--cohort": cohort, "--population": population,
            "--cap": cap, "--neighbour": neighbour,
        }  # fmt: skip
        given = [name for name, value in others.items() if value is not None]
        _of_experiment(config, changes or [], rounds, delta, given, json)
        return
    try:
        if rounds is None or delta is None or changes:
            raise ValueError(
                "give --rounds and --delta, or a TOML file or run folder that says everything (and --set, to change it)."
            )
        if noise is not None and not noise > 0:
            raise ValueError(
                f"--noise is {noise:g}, expected a number above 0: without noise there is no epsilon."
            )
        sampler = _sampler(rate, cohort, population, cap)
        if (noise is None) == (epsilon is None):
            raise ValueError(
                "give one of --noise, for its epsilon, and --epsilon, for the noise that it needs."
            )
        relation: Any = neighbour
        known = [
            _answer(name, sampler, noise, epsilon, rounds, delta, population, relation)
            for name in _ACCOUNTANTS
        ]
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    if not any(answer.guarantee for answer in known):
        _screen.fail(f"error: {known[0].reason}", BAD_USAGE)
    if json:
        _screen.print_json([_plain(answer) for answer in known])
        return
    for answer in known:
        typer.echo(_line(answer))
    holds = "the smaller epsilon holds" if epsilon is None else "the smaller noise is enough"
    typer.echo(f"{rounds:,} rounds at delta {delta:g}; {holds}. It covers the models alone.")
    remarks = [answer.guarantee.ledger.remark(delta) for answer in known if answer.guarantee]
    if remarks[0]:
        typer.echo(remarks[0])


def _of_experiment(
    config: Path, changes: list[str], rounds: int | None, delta: float | None, others: list[str], json: bool
) -> None:
    """The price of an experiment as its run would have it in its summary; nothing is trained."""
    options = {"rounds": rounds, "privacy.delta": delta}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    found = load(config, [*changes, *given])
    prepare_jax(found.devices)
    prices = []
    try:
        if others:
            raise ValueError(f"{config} says who takes part and what noise there is: leave {others[0]} out.")
        for program in found.programs():
            for cell in _cells(program):
                prices += _prices(program, cell)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    if json:
        _screen.print_json(prices)
        return
    _screen.show(_screen.prices(prices), False)
    typer.echo(f"{found.rounds:,} rounds were asked for. It covers the models alone.")


def _cells(program: Experiment) -> list[dict[str, Any]]:
    """The swept settings of a program, each once."""
    found: list[dict[str, Any]] = []
    for replica in program.replicas():
        if replica.get("sweep", {}) not in found:
            found.append(replica.get("sweep", {}))
    return found


def _prices(program: Experiment, cell: dict[str, Any]) -> list[dict[str, Any]]:
    simulation = program.simulation(cell)
    paid = program.privacy.rounds([simulation], program.rounds)
    # Where a budget ends the run, what is spent by then; where it pays for nothing, what was asked for.
    statements = program.privacy.statements(simulation, paid or program.rounds)
    if not statements:
        raise ValueError(
            "nothing in it adds noise, so there is no epsilon: set algorithm.aggregate to a clip, a mean over "
            '"expected_cohort" and a noise.'
        )
    label = {"sweep": cell} if cell else {}
    stops = {} if program.privacy.epsilon is None else {"rounds_paid": paid}
    return [{**label, **statement, **stops} for statement in statements]


def _sampler(rate: float | None, size: int | None, population: int | None, cap: int | None) -> cohorts.Cohort:
    if (rate is None) == (size is None):
        raise ValueError(
            "give one of --rate (everyone by chance) and --cohort (so many, without replacement)."
        )
    if size is not None:
        if population is None:
            raise ValueError("--cohort needs --population: without replacement, the price depends on both.")
        if cap is not None:
            raise ValueError("--cap cuts the cohorts of --rate; those of --cohort have one size.")
        sampler = cohorts.uniform(size)
        sampler.cap(population)  # refuses more than there are
        return sampler
    if cap is not None and population is None:
        raise ValueError("--cap needs --population: how often a cohort is cut depends on both.")
    assert rate is not None
    return cohorts.poisson(rate, cap=population if cap is None else cap)


def _answer(
    name: Accountant,
    sampler: cohorts.Cohort,
    noise: float | None,
    epsilon: float | None,
    rounds: int,
    delta: float,
    population: int | None,
    neighbour: Neighbour | None,
) -> Answer:
    """An accountant that does not know the sampler is no error where the other one does."""
    try:
        if noise is None:
            assert epsilon is not None
            noise = calibrate(
                epsilon, sampler, rounds=rounds, delta=delta, population=population, accountant=name, neighbour=neighbour
            )  # fmt: skip
        ledger = ledger_of(noise, sampler, population, rounds)
        return Answer(name, noise, price(ledger, delta, accountant=name, neighbour=neighbour))
    except ValueError as error:
        return Answer(name, reason=str(error))


def _line(answer: Answer) -> str:
    found, name = answer.guarantee, answer.accountant.upper()
    if found is None:
        return f"{name}  no price: {answer.reason}"
    sampling = f"{' and '.join(found.sampling)} sampling{', which amplifies' if found.amplified else ''}"
    return f"{name}  epsilon {found.epsilon:<8.5g} noise {answer.noise:<8.5g} {found.neighbour}, {sampling}"


def _plain(answer: Answer) -> dict[str, Any]:
    if answer.guarantee is None:
        return {"accountant": answer.accountant, "no_price": answer.reason}
    found = dataclasses.asdict(answer.guarantee)
    return {**found, "noise_multiplier": answer.noise, "ledger": answer.guarantee.ledger.as_json()}
