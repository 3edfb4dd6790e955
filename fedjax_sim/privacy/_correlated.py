"""What noise that is correlated between rounds asks of a sampler, and how far one client moves a tree of sums."""

from __future__ import annotations

import collections

from fedjax_sim.privacy._ledger import Entry

_CHANCE = ("poisson", "truncated_poisson", "without_replacement", "cyclic_poisson")


def check_bands(entry: Entry) -> None:
    """Two contributions of a client must not meet within the bands.

    Raises:
      ValueError: they may.
    """
    bands, sampling = int(entry.details.get("bands", 1)), entry.sampling
    if bands <= sampling.separation:
        return
    if sampling.law in ("cyclic", "cyclic_poisson"):
        what = "rounds of a pass" if sampling.law == "cyclic" else "groups"
        fix = f"Use at most {sampling.separation} bands, or more {what}."
    else:
        fix = (
            f"Use fs.cohorts.cyclic_poisson(rate, bands={bands}), or fs.cohorts.cyclic(size) with {bands} cohorts or more in a "
            "pass."
        )
    raise ValueError(
        f"banded_noise has {bands} bands, so that {bands} rounds or more must lie between two times that a client takes part, "
        f"but with {sampling.law!r} cohorts it can be {sampling.separation}. {fix}"
    )


def check_tree(entry: Entry) -> None:
    """Chance in who takes part does not lower the price of a tree, and without it every round would have to count.

    Raises:
      ValueError: cohorts are drawn by chance.
    """
    if entry.sampling.law in _CHANCE:
        raise ValueError(
            f"tree_noise has no price with {entry.sampling.law!r} cohorts: sampling does not amplify it, and a client could take "
            "part in every round. Use fs.cohorts.cyclic(size) or fs.cohorts.shuffled(size), and restart_every the rounds "
            "of a pass."
        )


def sensitivities(entry: Entry) -> collections.Counter[int]:
    """Squared L2 sensitivity of each tree that one client can be in, in squared bounds, and how many trees have it.

    A client adds at most one bound to a node for each time that it takes part in the node's rounds. On one level of the tree
    no round is in two nodes. Let it take part ``m`` times in the tree and at most ``w`` times in one node of the level: the
    squared norm over the level's nodes is at most ``m w``. For ``m = 1`` this gives the number of levels,
    ``ceil(log2(T + 1))`` after ``T`` rounds; for a client that is always there it is exact.

    Who takes part ``k`` times is in ``k`` trees at most: the costliest are charged. A tree that began before the entry counts
    from its beginning, because its nodes still hold what was added then.
    """
    sampling, last = entry.sampling, entry.first + entry.rounds
    length = entry.details.get("restart_every") or last
    begin, trees = entry.first // length * length, collections.Counter()
    for start in range(begin, last, length):
        rounds = min(length, last - start)
        times = sampling.participations(start, rounds)
        trees[sum(times * min(times, sampling.most(2**level)) for level in range(rounds.bit_length()))] += 1
    left, charged = sampling.participations(begin, last - begin), collections.Counter()
    for squared in sorted(trees, reverse=True):
        charged[squared] = min(trees[squared], left)
        left -= charged[squared]
    return +charged
