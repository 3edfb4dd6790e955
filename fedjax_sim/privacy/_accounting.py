"""The price of a run: an accountant composes what the ledger holds."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import scipy

from fedjax_sim._src import checks
from fedjax_sim._src.logs import silenced
from fedjax_sim._src.types import Algorithm, Noise, PyTree, Transform, Trust
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.privacy._gaussian import check_delta
from fedjax_sim.privacy._laws import Accountant, Neighbour, accountant_for, amplified, events_of, relation_of
from fedjax_sim.privacy._ledger import Ledger, Unit, ledger_of
from fedjax_sim.privacy._losses import pld_accountant
from fedjax_sim.privacy._renyi import rdp_accountant

FINE, COARSE = 1e-4, 1e-3
"""Discretisations of the privacy loss: for prices, and to come close to one in a tenth of the time."""
_STAGES = ((1e-2, 1e-3), (COARSE, 1e-6), (FINE, 1e-5))
"""Discretisations, each ten times as dear as the one before, and how close to a root in the logarithm each is to come. What a coarse
one says is a guess: of many rounds with little epsilon it says far too much."""
_LARGEST = math.log(1e6)
_MANY = 20


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """What holds of the released models: (epsilon, delta)-differential privacy, and between what.

    Attributes:
      epsilon: of all rounds together.
      delta: that it holds for.
      neighbour: what two data sets differ by: ``"add_or_remove_one"`` a client is there or is not; ``"replace_one"`` a
        client is another one; ``"replace_special"`` a client has its data or has none, and takes part in either case. The
        same of one example of a client, in whose place ``"replace_special"`` puts a blank.
      accountant: which composed it, ``"pld"`` or ``"rdp"``.
      rounds: of how many rounds.
      sampling: laws by which cohorts were drawn, of examples batches.
      amplified: whether chance in who takes part lowered the price.
      unit: whose data: a whole ``"client"``'s, or one ``"example"`` of the client whose examples cost most.
      simulated: the epsilon is that of a larger deployment which the run stands for; the run itself has less noise.
      trust: what the server may see without harm: ``"central"`` is trusted with the clients' messages, ``"distributed"`` with
        nothing but their sum, ``"local"`` with nothing at all, and then the price is of every message that a client sends.
      ledger: what it is the price of.
    """

    epsilon: float
    delta: float
    neighbour: Neighbour
    accountant: Accountant
    rounds: int
    sampling: tuple[str, ...]
    amplified: bool
    unit: Unit = "client"
    simulated: bool = False
    trust: Trust = "central"
    ledger: Ledger = dataclasses.field(default=Ledger(()), repr=False, compare=False)

    def __str__(self) -> str:
        laws = " and ".join(self.sampling)
        drawn = f"{laws} cohorts" if self.unit == "client" else f"batches by {laws}"
        public = "" if self.unit == "client" else " How many examples a client has is public."
        amplified = "amplified by sampling" if self.amplified else "no amplification by sampling"
        simulated = "simulated, not that of this run: " if self.simulated else ""
        trust = "" if self.trust == "central" else f", {self.trust} noise"
        what = "messages" if self.trust == "local" else "models"
        remark = self.ledger.remark(self.delta)
        return (
            f"{simulated}epsilon {self.epsilon:.4g} at delta {self.delta:.3g} for one {self.unit} ({self.neighbour}), "
            f"{self.rounds} rounds\n"
            f"{drawn}, {amplified}, {self.accountant.upper()} accountant{trust}\n"
            f"It covers the {what} alone: no metric on private data, no choice of settings by them. The seed must stay secret."
            f"{public}" + (f"\n{remark}" if remark else "")
        )


def price(
    ledger: Ledger,
    delta: float,
    *,
    accountant: Accountant | None = None,
    neighbour: Neighbour | None = None,
    interval: float = FINE,
) -> Guarantee:
    """The price of everything in a ledger.

    Args:
      ledger: what was, or would be, released.
      delta: in (0, 1), well below one over the population.
      accountant: ``"pld"`` (privacy loss distributions, the tighter one) or ``"rdp"`` (Renyi moments). By default PLD
        where it knows the sampler and there are at most 20 different releases.
      neighbour: the relation to account for; by default the one of the sampler.
      interval: discretisation of the privacy loss, for PLD.

    Raises:
      ValueError: a sampler without a bound, an accountant or a relation that does not know it, entries of different
        relations, a delta outside (0, 1).
    """
    import dp_accounting as dp

    check_delta(delta)
    checks.one_of("accountant", accountant, (None, "pld", "rdp"))
    checks.one_of("neighbour", neighbour, (None, "add_or_remove_one", "replace_one", "replace_special"))
    samplings = list(dict.fromkeys(entry.sampling for entry in ledger.entries))
    if not samplings:
        raise ValueError("the ledger is empty: nothing was released, and nothing has a price.")
    units: set[Unit] = {entry.unit for entry in ledger.entries}
    if len(units) > 1:
        raise ValueError(
            "the ledger holds releases about whole clients and about single examples, which have prices of their own: price "
            "them one by one."
        )
    (unit,) = units
    laws = {s: {e.law for e in ledger.entries if e.sampling == s} for s in samplings}
    relations: set[Neighbour] = {
        relation_of(sampling, neighbour, laws[sampling], unit) for sampling in samplings
    }
    if len(relations) > 1:
        raise ValueError(
            f"the ledger's cohorts are accounted for with different neighbour relations, {' and '.join(sorted(relations))}: "
            "name one that all of them know with neighbour=..."
        )
    (relation,) = relations
    able: set[Accountant] = {accountant_for(s, accountant, laws[s], relation) for s in samplings}
    if len(able) > 1:
        raise ValueError(
            "the ledger's cohorts are drawn without replacement and by a truncated Poisson law, and no accountant knows both."
        )
    chosen = accountant or _cheaper(ledger, able.pop())
    kind = {
        "add_or_remove_one": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": dp.NeighboringRelation.REPLACE_ONE,
        "replace_special": dp.NeighboringRelation.REPLACE_SPECIAL,
    }[relation]
    if chosen == "pld":
        book = pld_accountant()(kind, value_discretization_interval=interval)
    else:
        book = rdp_accountant()(neighboring_relation=kind)
    try:
        # An order whose moment does not converge is left out, which the accountant logs for each: what is left is a bound.
        with silenced("absl"):
            for run in dict.fromkeys(entry.run for entry in ledger.entries):
                mine = [entry for entry in ledger.entries if entry.run == run]
                for event, count in events_of(mine, relation, chosen):
                    book.compose(event, count)
    except dp.UnsupportedEventError as error:
        raise ValueError(
            f"the {chosen.upper()} accountant does not know these releases under {relation}: {error}"
        ) from None
    # The weakest of all that was released.
    order: tuple[Trust, ...] = ("central", "distributed", "local")
    trust: Trust = next(t for t in order if any(entry.trust == t for entry in ledger.entries))
    return Guarantee(
        epsilon=float(book.get_epsilon(float(delta))),
        delta=float(delta),
        neighbour=relation,
        accountant=chosen,
        rounds=_rounds(ledger),
        sampling=tuple(dict.fromkeys(sampling.law for sampling in samplings)),
        amplified=all(amplified(entry) for entry in ledger.entries),
        simulated=any(sampling.simulated for sampling in samplings),
        trust=trust,
        unit=unit,
        ledger=ledger,
    )


def _cheaper(ledger: Ledger, able: Accountant) -> Accountant:
    """Every different release costs PLD half a second, as a schedule has one for each round."""
    many = len({(entry.multiplier, entry.sampling) for entry in ledger.entries}) > _MANY
    truncated = any(entry.sampling.law == "truncated_poisson" for entry in ledger.entries)
    return "rdp" if many and not truncated else able


def _rounds(ledger: Ledger) -> int:
    return len({(e.run, round_) for e in ledger.entries for round_ in range(e.first, e.first + e.rounds)})


def zcdp_budget(epsilon: float, delta: float) -> float:
    """The zero-concentrated privacy rho whose price is ``epsilon`` at ``delta``: a client's budget in a filter.

    Raises:
      ValueError: an argument outside its range.

    Source: Bun and Steinke 2016, and the conversion of dp-accounting's RDP accountant.

    Example:
      >>> import fedjax_sim as fs
      >>> round(fs.privacy.zcdp_budget(epsilon=4.0, delta=1e-5), 3)
      0.373
    """
    import dp_accounting as dp

    checks.positive("epsilon", epsilon)
    check_delta(delta)

    def excess(log_rho: float) -> float:
        book = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
        got = float(book.compose(dp.ZCDpEvent(math.exp(log_rho))).get_epsilon(float(delta)))
        return math.log(max(got, 1e-12) / epsilon)

    low, high = -1.0, 1.0
    while excess(low) > 0:
        low -= 1.0
    while excess(high) < 0:
        high += 1.0

    return math.exp(scipy.optimize.root_scalar(excess, bracket=(low, high), xtol=1e-9).root - 1e-9)


def epsilon(
    source: Algorithm | Transform | Noise | float,
    cohort: Cohort,
    *,
    rounds: int,
    delta: float,
    population: int | None = None,
    accountant: Accountant | None = None,
    neighbour: Neighbour | None = None,
    message: PyTree = None,
) -> float:
    """Epsilon of ``rounds`` rounds, for one client; ``Simulation.privacy`` reads all but ``rounds`` and ``delta`` off a run.

    Here clients are taken to have no memory of earlier rounds, which cannot be seen from a chain. Those of SCAFFOLD, of error
    feedback, or with passes that go on have one: ``Simulation.privacy`` knows, and leaves amplification out where it must.

    Args:
      source: an algorithm, a chain of ``fs.aggregation``, or the noise multiplier: standard deviation of the noise on the
        sum over the clip norm.
      cohort: the sampler, whose law decides the price.
      rounds: how many.
      delta: in (0, 1), well below one over the population.
      population: number of clients. A Poisson law does without it, for a program with room for every cohort.
      accountant: as for ``price``.
      neighbour: as for ``price``.
      message: what one client sends before any layer, such as the model's parameters, or its ``ShapeDtypeStruct``: needed where
        the price depends on its size, as that of discrete noise does.

    Raises:
      ValueError: as ``price``; a chain without noise.

    Source: Abadi et al. 2016; Mironov 2017 (RDP); Koskela et al. 2020 and Doroshenko et al. 2022 (PLD), by dp-accounting.

    Example:
      >>> import fedjax_sim as fs
      >>> round(fs.privacy.epsilon(1.0, fs.cohorts.poisson(0.01), rounds=1000, delta=1e-5, accountant="rdp"), 4)
      2.1014
    """
    ledger = ledger_of(source, cohort, population, rounds, message=message)
    return price(ledger, delta, accountant=accountant, neighbour=neighbour).epsilon


def calibrate(
    epsilon: float,
    cohort: Cohort,
    *,
    rounds: int,
    delta: float,
    population: int | None = None,
    accountant: Accountant | None = None,
    neighbour: Neighbour | None = None,
    source: Callable[[float], Algorithm | Transform | Noise | float] = float,
    message: PyTree = None,
) -> float:
    """The smallest noise multiplier with which a run costs at most ``epsilon``.

    Args:
      epsilon: what may be spent, above 0.
      cohort: the sampler.
      rounds: how many.
      delta: in (0, 1).
      population: as for ``epsilon``.
      accountant: as for ``epsilon``.
      neighbour: as for ``epsilon``.
      source: noise multiplier to what releases it, for a chain whose price is more than that of its noise, such as one that
        clips adaptively.
      message: as for ``epsilon``.

    Returns:
      The multiplier, to a relative 1e-5 and never below what is needed.

    Raises:
      ValueError: as ``epsilon``; no multiplier up to 10^6 is enough.

    Example:
      >>> import fedjax_sim as fs
      >>> z = fs.privacy.calibrate(2.0, fs.cohorts.poisson(0.001), rounds=1500, delta=1e-6, accountant="rdp")
      >>> round(z, 3)
      0.714
    """
    checks.positive("epsilon", epsilon)

    def excess(log_z: float, interval: float) -> float:
        ledger = ledger_of(source(math.exp(log_z)), cohort, population, rounds, message=message)
        got = price(ledger, delta, accountant=accountant, neighbour=neighbour, interval=interval).epsilon
        # The logarithm of epsilon is close to a straight line in that of the noise; PLD may find none at all.
        return math.log(min(max(got, 1e-12), 1e12 * max(epsilon, 1.0)) / epsilon)

    guess, width = 0.0, 1.0
    # Coarser losses are dear, too, where RDP does without any.
    stages = _STAGES[-1:] if accountant == "rdp" else _STAGES
    for interval, tolerance in stages:
        value = functools.cache(functools.partial(excess, interval=interval))
        bracket = _bracket(value, guess, width)
        if bracket is not None:
            guess, width = _root(value, *bracket, tolerance), 4 * tolerance
        elif interval == FINE:
            raise ValueError(
                f"epsilon is {epsilon}, which no noise multiplier up to 10^6 reaches in {rounds} rounds at delta "
                f"{delta}: something in the chain costs more than that whatever the noise, or delta is too small."
            )
    return math.exp(guess)


def _bracket(value: Callable[[float], float], guess: float, width: float) -> tuple[float, float] | None:
    """Two points between which a falling function becomes 0 or less, that far around a guess at first; ``None`` where it stays above."""
    low, high, step = guess - width, guess + width, 2 * width
    while value(high) > 0:
        if high >= _LARGEST:
            return None
        low, high, step = high, min(high + step, _LARGEST), 2 * step
    while value(low) <= 0:
        low, high, step = low - step, low, 2 * step
    return low, high


def _root(value: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """A point between two at which the function is 0 or less, and so close above its root."""
    if high - low <= tolerance:
        return high

    found = scipy.optimize.root_scalar(value, bracket=(low, high), xtol=tolerance / 4).root
    while value(found) > 0:
        found += tolerance / 4
    return min(found, high)
