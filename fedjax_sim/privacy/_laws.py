"""From the ledger's entries to the events that an accountant composes. ``dp_accounting`` is imported where it is used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from fedjax_sim.privacy import _renyi
from fedjax_sim.privacy._correlated import check_bands, check_tree, sensitivities
from fedjax_sim.privacy._ledger import Entry, Sampling, Unit

Accountant = Literal["pld", "rdp"]
Neighbour = Literal["add_or_remove_one", "replace_one", "replace_special"]


class Event(NamedTuple):
    """What an accountant composes.

    Attributes:
      event: a ``dp_accounting.DpEvent``.
      count: how many times.
    """

    event: Any
    count: int


NEIGHBOURS: dict[str, tuple[Neighbour, ...]] = {
    "poisson": ("add_or_remove_one", "replace_one", "replace_special"),
    "truncated_poisson": ("replace_special",),
    "without_replacement": ("replace_one",),
    "all": ("add_or_remove_one", "replace_one", "replace_special"),
    "fixed": ("replace_special", "add_or_remove_one", "replace_one"),
    # Without a client another one would come in its place: its data are taken away, the client is not.
    "shuffled": ("replace_special", "replace_one"),
    "weighted": ("replace_special", "replace_one"),
    "availability": ("replace_special", "replace_one"),
    # Cohorts of a fixed size, or cut, of clients that remember: see Sampling.without_amplification.
    "unamplified": ("replace_special", "replace_one"),
    "cyclic": ("replace_special", "replace_one"),
    # A client's group is decided by its own index: who else is there does not move it.
    "cyclic_poisson": ("add_or_remove_one", "replace_one", "replace_special"),
}
"""Neighbour relations under which a sampler's price is known; the first is the one to take."""
OF_EXAMPLES: dict[str, tuple[Neighbour, ...]] = {
    # Numbers of examples are public (steps, weights and batches depend on them): an example that is not there leaves a
    # blank in its place.
    "poisson": ("replace_special", "replace_one"),
    "truncated_poisson": ("replace_special",),
    "passes": ("replace_special", "replace_one"),
}
"""The same for the batches of a client."""
AMPLIFIED = ("poisson", "truncated_poisson", "without_replacement", "cyclic_poisson")
"""Laws by which chance decides who takes part, so that a release costs less."""
RELATIONS: dict[str, tuple[Neighbour, ...]] = {
    # Without a client its share of the noise would be missing, too: its data are taken away, the client is not.
    "discrete_gaussian": ("replace_special", "replace_one"),
    "skellam": ("replace_special", "replace_one"),
    # What a client pays is counted from what it sends: its data are taken away, the client is not.
    "filtered_gaussian": ("replace_special",),
    # A message is there to be seen, whatever it says.
    "local_gaussian": ("replace_one", "replace_special"),
    "local_laplace": ("replace_one", "replace_special"),
}
"""Laws of noise whose price is known under relations of their own, whatever the sampler."""


def relation_of(
    sampling: Sampling, wanted: Neighbour | None, laws: Iterable[str] = (), unit: Unit = "client"
) -> Neighbour:
    """The neighbour relation to account for.

    Raises:
      ValueError: the law has no bound, or none under the relation that is wanted.
    """
    if unit == "example":
        return _relation_of_examples(sampling, wanted)
    if sampling.law not in NEIGHBOURS:
        raise ValueError(
            f"cohorts drawn by {sampling.law!r} have no epsilon: no accountant here knows the law. Use "
            "fs.cohorts.poisson(rate) or fs.cohorts.uniform(size)."
        )
    own = [RELATIONS[law] for law in laws if law in RELATIONS]
    known = NEIGHBOURS[sampling.law]
    if own:
        known = tuple[Neighbour, ...](r for r in own[0] if all(r in others for others in own))
    if wanted is None:
        return known[0]
    if wanted not in known:
        raise ValueError(
            f"neighbour is {wanted!r}, but for cohorts drawn by {sampling.law!r}"
            f"{f' and noise of the law {next(law for law in laws if law in RELATIONS)!r}' if own else ''} the price is known "
            f"for {' and '.join(map(repr, known))}."
        )
    return wanted


def _relation_of_examples(sampling: Sampling, wanted: Neighbour | None) -> Neighbour:
    known = OF_EXAMPLES[sampling.law]
    if wanted is not None and wanted not in known:
        raise ValueError(
            f"neighbour is {wanted!r}, but for one example of batches drawn by {sampling.law!r} the price is known for "
            f"{' and '.join(map(repr, known))}: numbers of examples are public."
        )
    return wanted or known[0]


def accountant_for(
    sampling: Sampling, wanted: Accountant | None, laws: Iterable[str] = (), relation: Neighbour | None = None
) -> Accountant:
    """The accountant that knows the law; the tighter one where both do.

    Raises:
      ValueError: the wanted one does not.
    """
    only: dict[str, Accountant] = {"truncated_poisson": "pld", "without_replacement": "rdp"}
    laws = set(laws)
    # In the price of local noise, and of clients that stop by themselves, sampling has no say.
    able = only.get(sampling.law) if not laws or laws - _LOCAL - _FILTERED else None
    laplace = "laplace" in laws and (relation == "replace_one" or sampling.law in only)
    local_laplace = "local_laplace" in laws and relation == "replace_one"
    if laws & (_CURVED | _FILTERED) or laplace or local_laplace or _jointly(sampling, laws):
        able = "rdp"
    if able is not None and wanted not in (None, able):
        noise = f" with noise of the law {' and '.join(sorted(laws))}" if laws - {"gaussian"} else ""
        raise ValueError(
            f"accountant is {wanted!r}, but {sampling.law!r} sampling{noise} is known to {able!r} alone."
        )
    return wanted or able or "pld"


def sampled_gaussian(
    z: float, sampling: Sampling, relation: Neighbour, accountant: Accountant, first: int, rounds: int
) -> Event:
    """Gaussian noise in every round, of standard deviation ``z`` bounds."""
    import dp_accounting as dp

    scale = _scale(z, relation, accountant)
    gaussian = dp.GaussianDpEvent(scale)
    if sampling.law in ("poisson", "cyclic_poisson"):
        rate = float(_known(sampling.rate))
        event = dp.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian
        return Event(event, sampling.participations(first, rounds))
    if sampling.law == "truncated_poisson":
        population, size = _known(sampling.population), _known(sampling.size)
        event = dp.TruncatedSubsampledGaussianDpEvent(population, float(_known(sampling.rate)), size, scale)
        return Event(event, rounds)
    if sampling.law == "without_replacement":
        population, size = _known(sampling.population), _known(sampling.size)
        return Event(dp.SampledWithoutReplacementDpEvent(population, size, gaussian), rounds)
    return Event(gaussian, sampling.participations(first, rounds))


def _scale(z: float, relation: Neighbour, accountant: Accountant) -> float:
    """The RDP accountant takes a replacement for a change of one bound, where it is one of two; the PLD accountant knows."""
    return float(z) / 2 if relation == "replace_one" and accountant == "rdp" else float(z)


_CURVED = {"discrete_gaussian", "skellam"}
_LOCAL = {"local_gaussian", "local_laplace"}
_FILTERED = {"filtered_gaussian"}


def _jointly(sampling: Sampling, laws: set[str]) -> bool:
    """Whether noises of several laws share a chance to take part, so that they have to be added up before it."""
    return len(laws & _renyi.CURVES.keys()) > 1 and _renyi.rate_of(sampling) is not None


def _curved(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """By Renyi curves. A client that is replaced takes one contribution out and puts another in."""
    return [Event(*pair) for pair in _renyi.events(entries, 2.0 if relation == "replace_one" else 1.0)]


def _laplaces(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    if accountant == "rdp":
        return _curved(entries, relation, accountant)
    import dp_accounting as dp

    events = []
    for entry in entries:
        event, sampling = dp.LaplaceDpEvent(float(entry.multiplier)), entry.sampling
        if sampling.law == "poisson" and _known(sampling.rate) < 1:
            events.append(Event(dp.PoissonSampledDpEvent(float(_known(sampling.rate)), event), entry.rounds))
        else:
            events.append(Event(event, sampling.participations(entry.first, entry.rounds)))
    return events


def _locals(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """Each message is a release of its own, by a client that everybody sees take part."""
    import dp_accounting as dp

    events = []
    for entry in entries:
        gaussian, z = entry.law == "local_gaussian", float(entry.multiplier)
        # Of Gaussian noise the PLD accountant knows by itself that a replacement moves a message by two bounds.
        moves = 2.0 if relation == "replace_one" and not (gaussian and accountant == "pld") else 1.0
        event = dp.GaussianDpEvent(z / moves) if gaussian else dp.LaplaceDpEvent(z / moves)
        events.append(Event(event, entry.sampling.participations(entry.first, entry.rounds)))
    return events


def _gaussians(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """Noises in the same round are one: one client moves all of them together, whoever was drawn.

    So they are folded before the sampling: ``1 / z^2 = sum of 1 / z_i^2``. Noise that is banded over rounds costs the same
    where no two contributions of a client meet within its bands: they are then orthogonal, each of norm 1.
    """
    for entry in entries:
        check_bands(entry)
    events = []
    for sampling in dict.fromkeys(entry.sampling for entry in entries):
        mine = [entry for entry in entries if entry.sampling == sampling]
        edges = sorted({edge for entry in mine for edge in (entry.first, entry.first + entry.rounds)})
        for start, stop in itertools.pairwise(edges):
            there = [e.multiplier for e in mine if e.first <= start and stop <= e.first + e.rounds]
            if there:
                z = math.fsum(multiplier**-2 for multiplier in there) ** -0.5
                events.append(sampled_gaussian(z, sampling, relation, accountant, start, stop - start))
    return events


def _trees(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """All nodes of a tree together are one Gaussian release, whose sensitivity is that of the whole tree."""
    import dp_accounting as dp

    events = []
    for entry in entries:
        check_tree(entry)
        for sensitivity, trees in sensitivities(entry).items():
            z = float(entry.multiplier) / math.sqrt(sensitivity)
            events.append(Event(dp.GaussianDpEvent(_scale(z, relation, accountant)), trees))
    return events


def _steps(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """Noises of different steps, each with a batch of its own: they compose, also in the same round."""
    events = []
    for entry in entries:
        event, _ = sampled_gaussian(entry.multiplier, entry.sampling, relation, accountant, 0, 1)
        events.append(Event(event, entry.releases))
    return events


def _filtered(entries: list[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """No client pays more than its budget, in however many rounds and whoever is drawn (Feldman and Zrnic 2021, theorem 3.1)."""
    import dp_accounting as dp

    # Clients remember what they spent on one layer of one run alone.
    return [Event(dp.ZCDpEvent(float(entry.details["client_budget"])), 1) for entry in entries]


LAWS: dict[str, Callable[[list[Entry], Neighbour, Accountant], list[Event]]] = {
    "gaussian": _gaussians,
    "banded_gaussian": _gaussians,
    "tree_gaussian": _trees,
    "filtered_gaussian": _filtered,
    "laplace": _laplaces,
    "discrete_gaussian": _curved,
    "skellam": _curved,
    "local_gaussian": _locals,
    "local_laplace": _locals,
}
"""Law of noise to what turns its entries into events."""
LAWS_OF_STEPS: dict[str, Callable[[list[Entry], Neighbour, Accountant], list[Event]]] = {"gaussian": _steps}
"""The same for noise in the clients' steps."""


def _laws_for(entry: Entry) -> dict[str, Callable[[list[Entry], Neighbour, Accountant], list[Event]]]:
    return LAWS if entry.unit == "client" else LAWS_OF_STEPS


def amplified(entry: Entry) -> bool:
    """Whether chance in who takes part lowered the price of an entry."""
    return entry.sampling.law in AMPLIFIED and entry.law not in _LOCAL | _FILTERED


def events_of(entries: Iterable[Entry], relation: Neighbour, accountant: Accountant) -> list[Event]:
    """What an accountant has to compose, of the entries of one run.

    Raises:
      ValueError: a law of noise without a price.
    """
    entries, events = list(entries), []
    for entry in entries:
        laws = _laws_for(entry)
        if entry.law not in laws:
            raise ValueError(
                f"noise has the law {entry.law!r}, whose price is not known for one {entry.unit}; known are {', '.join(laws)}."
            )
    # Of several laws that share a chance to take part, the curves are added up before it.
    for sampling in dict.fromkeys(entry.sampling for entry in entries):
        shared = [e for e in entries if e.sampling == sampling and e.law in _renyi.CURVES]
        if _jointly(sampling, {entry.law for entry in shared}):
            events += _curved(shared, relation, accountant)
            entries = [entry for entry in entries if entry not in shared]
    # Laws with one pricing go there together: noises of the same round are not independent releases.
    for pricing in dict.fromkeys(_laws_for(entry)[entry.law] for entry in entries):
        mine = [entry for entry in entries if _laws_for(entry)[entry.law] is pricing]
        events += pricing(mine, relation, accountant)
    return events


def _known(value):
    assert value is not None  # Sampling.of has seen to it
    return value
