"""``privacy``: what rounds of noise cost, or the noise that an epsilon needs, before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_sim.cli import _screen
from fedjax_sim.cli._priced_file import file_price
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS, Json, Set, load, prepare_jax
from fedjax_sim.data import cohorts
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
        typer.Argument(help="TOML file, or a run folder: price what it describes.", show_default=False),
    ] = None,
    changes: Set = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Rounds of training, or steps of DP-SGD; those of CONFIG if not given.", min=1),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="In (0, 1), well below one over the population; that of CONFIG if not given."),
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

    Clients in rounds, or examples in the steps of DP-SGD: the arithmetic is the same. Give --noise for its epsilon, or
    --epsilon for the noise that it needs. Or give CONFIG alone: noise and cohorts are then what `fedjax-sim run` will train with.
    """
    if config is not None:
        given = {
            "noise": noise,
            "epsilon": epsilon,
            "rate": rate,
            "cohort": cohort,
            "population": population,
            "cap": cap,
        }
        _of_file(config, changes, rounds, delta, [*given, "neighbour"], [*given.values(), neighbour], json)
        return
    if rounds is None or delta is None or changes:
        _screen.fail(
            "error: give --rounds and --delta, without --set; or a file whose run is to be priced.", BAD_USAGE
        )
    try:
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
    typer.echo(
        f"{rounds:,} rounds at delta {delta:g}; the smaller epsilon holds. It covers the models alone."
    )


def _of_file(
    config: Path,
    changes: list[str] | None,
    rounds: int | None,
    delta: float | None,
    names: list[str],
    values: list[Any],
    json: bool,
) -> None:
    """The price of what a file describes; ``names`` and ``values`` are options that it says itself."""
    for name, value in zip(names, values, strict=True):
        if value is not None:
            _screen.fail(
                f"error: --{name} is said by {config} itself: change the file, or give --set key=value.",
                BAD_USAGE,
            )
    made = list(changes or [])
    made += [] if rounds is None else [f"rounds={rounds}"]
    made += [] if delta is None else [f"privacy.delta={delta}"]
    found = load(config, made)
    prepare_jax(found.devices)
    try:
        priced = file_price(found)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    if json:
        _screen.print_json(priced.plain())
        return
    for line in priced.lines():
        typer.echo(line)


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
