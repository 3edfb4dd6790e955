"""The ledger: what was released about the clients' data, and who could take part in it. All of it is data, for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Algorithm, ClientRule, Message, Noise, PyTree, Transform, Trust
from fedjax_sim.aggregation._chain import layers_of, specs_of
from fedjax_sim.data.cohorts import Cohort

Unit = Literal["client", "example"]
_LARGE, _SMALLEST = 0.01, 1e-14


def too_small(delta: float) -> str:
    """What is to be said of a delta that an accountant in double precision cannot tell from 0; empty of others."""
    if delta >= _SMALLEST:
        return ""
    return (
        f"delta {delta:.2g} is below {_SMALLEST:g}, what the accountant 'pld' can tell from 0: its epsilon is infinite, "
        "whatever the noise"
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Who takes part in a release, as far as it matters for privacy: clients in a round, or a client's examples in a step.

    Attributes:
      law: of the cohort sampler; of batches ``"poisson"``, ``"truncated_poisson"``, or ``"passes"`` over the examples.
      population: number of clients, or of examples; ``None`` for one that is not known, and so large that no cohort is cut.
      rate: probability that one takes part, where the law has one.
      size: the largest cohort or batch.
      simulated: not of the run, but of a deployment that it stands for.
      separation: the fewest rounds from one in which a client takes part to the next such one.
    """

    law: str
    population: int | None = None
    rate: float | None = None
    size: int | None = None
    simulated: bool = False
    separation: int = 1

    @classmethod
    def of(cls, cohort: Cohort, population: int | None) -> Sampling:
        """Reads a sampler, which for a Poisson law needs no population.

        Raises:
          ValueError: a law that needs the population, and none.
        """
        if not isinstance(cohort, Cohort):
            raise TypeError(
                f"cohort is {type(cohort).__name__}, expected a Cohort: use one of fs.cohorts, such as "
                "fs.cohorts.poisson(rate=0.01)."
            )
        if population is None:
            if cohort.sampling == "truncated_poisson":
                return cls("poisson", rate=cohort.rate)
            if cohort.sampling in ("without_replacement", "shuffled", "cyclic"):
                raise ValueError(
                    f"the price under {cohort.sampling} sampling depends on the number of clients: give population=..."
                )
            return cls(cohort.sampling, rate=cohort.rate, separation=_separation(cohort, None))
        checks.positive_int("population", population)
        size, law = cohort.cap(population), cohort.sampling
        if law == "truncated_poisson" and size >= population:
            law = "poisson"
        return cls(law, population, cohort.rate, size, separation=_separation(cohort, population))

    def without_amplification(self) -> Sampling:
        """As it is where clients remember: a price then has no use for the chance that one does not take part.

        Where a cohort's size is fixed, or cut, who else took part before depends on whether one client did, and what
        clients with a memory send depends on that. Rounds are then not the independent draws that amplification composes.
        Poisson cohorts that are never cut are: what the others drew may be known.
        """
        fixed = self.law in ("without_replacement", "truncated_poisson")
        return dataclasses.replace(self, law="unamplified") if fixed else self

    def participations(self, first: int, rounds: int) -> int:
        """The most rounds, of so many from the ``first`` on, that one client can take part in."""
        if self.law == "shuffled":
            assert self.population is not None and self.size is not None
            rounds_of_pass = -(-self.population // self.size)
            return (first + rounds - 1) // rounds_of_pass - first // rounds_of_pass + 1
        return -(-rounds // self.separation)

    def most(self, rounds: int) -> int:
        """As ``participations``, wherever the rounds begin."""
        if self.law == "shuffled":
            assert self.population is not None and self.size is not None
            return self.participations(-(-self.population // self.size) - 1, rounds)
        return self.participations(0, rounds)


def _separation(cohort: Cohort, population: int | None) -> int:
    return 1 if cohort.separation is None else cohort.separation(population)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Releases of one kind in some rounds that follow on one another: one in each about a client, many about an example.

    Attributes:
      law: of the noise, a key of ``LAWS``.
      multiplier: as ``Noise.multiplier``, a number.
      first: index of the first round.
      rounds: how many.
      sampling: who took part.
      details: as ``Noise.details``.
      trust: as ``Noise.trust``.
      unit: whose data they are about, a whole ``"client"``'s or one ``"example"``.
      releases: about an example, the most that it can have come into; 0 about a client, where sampler and rounds say it.
      run: which of several runs it belongs to; rounds of different runs have cohorts of their own.
    """

    law: str
    multiplier: float
    first: int
    rounds: int
    sampling: Sampling
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trust: Trust = "central"
    unit: Unit = "client"
    releases: int = 0
    run: int = 0


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Everything that a run released, or will have released. Those of two runs add up: ``pretraining + fine_tuning``.

    Attributes:
      entries: in the order of their rounds.
    """

    entries: tuple[Entry, ...]

    def without_amplification(self) -> Ledger:
        """The ledger of clients that remember earlier rounds; see ``Sampling.without_amplification``."""
        entries = (dataclasses.replace(e, sampling=e.sampling.without_amplification()) for e in self.entries)
        return Ledger(tuple(entries))

    def __add__(self, other: Ledger) -> Ledger:
        runs = 1 + max((entry.run for entry in self.entries), default=-1)
        return Ledger(self.entries + tuple(dataclasses.replace(e, run=e.run + runs) for e in other.entries))

    def remark(self, delta: float) -> str:
        """What is to be said of a delta that is too large to promise much, or too small to be told from 0; empty of others."""
        if remark := too_small(delta):
            return remark
        entries = [entry for entry in self.entries if entry.sampling.population is not None]
        population = max((entry.sampling.population or 0 for entry in entries), default=0)
        unit = next((entry.unit for entry in self.entries), "client")
        if population and delta * population >= 1:
            return (
                f"delta {delta:.2g} is too large for {population:,} {unit}s: publishing all data of one of them, drawn at "
                f"random, would pass; take well below {1 / population:.2g}"
            )
        if delta > _LARGE:
            few = f"; so few {unit}s can hardly be hidden" if population else ""
            return f"delta {delta:.2g} is large: with that probability the guarantee may fail altogether{few}"
        return ""

    def as_json(self) -> list[dict[str, Any]]:
        """In JSON's types."""
        return [dataclasses.asdict(entry) for entry in self.entries]

    @classmethod
    def from_json(cls, content: Iterable[Mapping[str, Any]]) -> Ledger:
        """From what ``as_json`` gives.

        Raises:
          ValueError: content of another form.
        """
        try:
            entries = [{**entry, "sampling": Sampling(**entry["sampling"])} for entry in content]
            return cls(tuple(Entry(**entry) for entry in entries))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is no ledger, which Ledger.as_json writes: {error}.") from None


def ledger_of(
    source: Algorithm | Transform | Noise | float,
    cohort: Cohort,
    population: int | None,
    rounds: int,
    first: int = 0,
    message: PyTree | Callable[[int], PyTree] = None,
) -> Ledger:
    """What ``rounds`` rounds release, read off the chain that adds the noise and the sampler that draws the cohorts.

    Clients are taken to have no memory of earlier rounds; for others see ``Ledger.without_amplification``.

    Args:
      source: an algorithm, a chain of ``fs.aggregation``, or a noise multiplier of Gaussian noise on the sum.
      cohort: the sampler.
      population: number of clients; a Poisson law alone does without it.
      rounds: how many.
      first: index of the first one.
      message: what one client sends before any layer, or its ``ShapeDtypeStruct``; a function of the stage where stages differ.
        Needed where the price depends on the message's size, as that of discrete noise does.

    Raises:
      ValueError: a stage whose sum is released without noise.
    """
    checks.positive_int("rounds", rounds)
    sampling = Sampling.of(cohort, population)
    entries = []
    for number, noises in enumerate(_stages(source, message)):
        if all(count for _, _, count in noises):
            which = f"stage {number} of the algorithm" if number else "the chain"
            raise ValueError(
                f"{which} adds no noise to what it releases, so there is no epsilon: use for example "
                "agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over='expected_cohort'), agg.gaussian_noise(0.8))."
                f"{_of_examples(source)}"
            )
        for noise, deployment, _ in noises:
            own = sampling if deployment is None else _simulated(*deployment)
            entries += _entries(noise, own, first, rounds)
    if len({entry.sampling.simulated for entry in entries}) > 1:
        raise ValueError(
            "some noise of the chain is that of a simulated cohort and some is that of the run itself (the noise on the count "
            "of an adaptive clip is): together they have no price. Simulate all of it, or nothing."
        )
    return Ledger(tuple(entries))


def _of_examples(source: Any) -> str:
    """What there is instead."""
    rules = [stage.client for stage in source.stages] if isinstance(source, Algorithm) else []
    if any(isinstance(rule, ClientRule) and rule.noise is not None for rule in rules):
        return " The clients add noise in their steps, which protects single examples: unit='example'."
    return ""


class _Released(NamedTuple):
    """Noise of a layer, the deployment that it is scaled for, and whether it is on a count that is released with the sum."""

    noise: Noise
    deployment: tuple[Cohort, int] | None = None
    count: bool = False


def _simulated(cohort: Cohort, population: int) -> Sampling:
    return dataclasses.replace(Sampling.of(cohort, population), simulated=True)


def _stages(source: Any, message: Any) -> list[list[_Released]]:
    """What each stage releases."""
    of = message if callable(message) else lambda stage: message
    if isinstance(source, Algorithm):
        return [_noises(stage.aggregate, of, number) for number, stage in enumerate(source.stages)]
    if isinstance(source, Transform):
        return [_noises(source, of, 0)]
    if isinstance(source, Noise):
        return [[_Released(source)]]
    checks.positive("noise_multiplier", source)
    return [[_Released(Noise("gaussian", source))]]


def _noises(transform: Transform, message: Callable[[int], Any], stage: int) -> list[_Released]:
    facts = [layer.facts[0] for layer in layers_of(transform)]
    sizes: list[int | None] = [None] * len(facts)
    if any(fact.noise is not None and "dimension" in fact.noise.details for fact in facts):
        sent = message(stage)
        if sent is not None:
            specs = specs_of(transform, sent if isinstance(sent, Message) else Message(tree.spec(sent)))
            sizes = [tree.size(spec.value) for spec in specs[:-1]]
    found = []
    for fact, size in zip(facts, sizes, strict=True):
        if fact.noise is not None:
            found.append(_Released(_sized(fact.noise, size), fact.deployment))
        if fact.count_noise_std is not None and float(fact.count_noise_std) > 0:
            # A bit is sent as plus or minus one half, so that one client moves the count by a half (Andrew et al. 2021,
            # theorem 1).
            noise = Noise("gaussian", 2 * float(fact.count_noise_std))
            found.append(_Released(noise, fact.deployment, count=True))
    return found


def _sized(noise: Noise, dimension: int | None) -> Noise:
    if "dimension" not in noise.details or dimension is None:
        return noise
    return noise._replace(details={**noise.details, "dimension": dimension})


def _entries(noise: Noise, sampling: Sampling, first: int, rounds: int) -> list[Entry]:
    """One entry for each stretch of rounds with one multiplier."""
    details = dict(noise.details)
    if not callable(noise.multiplier):
        checks.positive("noise multiplier", noise.multiplier)
        return [Entry(noise.law, float(noise.multiplier), first, rounds, sampling, details, noise.trust)]
    schedule: Callable[[int], Any] = noise.multiplier
    entries: list[Entry] = []
    for round_ in range(first, first + rounds):
        value = float(schedule(round_))
        checks.positive(f"noise multiplier of round {round_}", value)
        last = entries[-1] if entries else None
        if last is not None and last.multiplier == value:
            entries[-1] = dataclasses.replace(last, rounds=last.rounds + 1)
        else:
            entries.append(Entry(noise.law, value, round_, 1, sampling, details, noise.trust))
    return entries
