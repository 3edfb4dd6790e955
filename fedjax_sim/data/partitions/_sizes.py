"""Partitions that do not look at labels: even, of skewed sizes, and mixtures of even with another."""

from __future__ import annotations

import functools
import math

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._columns import column_of
from fedjax_sim.data.partitions._laws import SizeLaw, size_weights, systematic_counts
from fedjax_sim.data.partitions._partition import (
    Columns,
    Partition,
    Partitioner,
    check_enough,
    count_examples,
    dealt_evenly,
    described,
    numbered,
    repair,
    with_minimum,
)


def iid(clients: int = 50) -> Partitioner:
    """The examples dealt out evenly at random; sizes differ by at most one.

    Args:
      clients: how many.

    Raises:
      ValueError: ``clients`` is below 1.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> fs.partitions.iid(4)({"x": np.zeros(10)}, seed=0).sizes
      array([3, 3, 2, 2])
    """
    checks.positive_int("clients", clients)

    def assign(generator: np.random.Generator, columns: Columns) -> Partition:
        return numbered(dealt_evenly(generator, count_examples(columns), clients), clients)

    return Partitioner(assign, described("iid", clients=clients))


def quantity(
    clients: int = 50, law: SizeLaw = "log_normal", shape: float = 1.0, min_examples: int = 1
) -> Partitioner:
    """Clients of skewed sizes, whose examples are otherwise alike.

    Every client has ``min_examples``; what is left is divided in proportion to draws from the law.

    Args:
      clients: how many.
      law: ``"power_law"`` (Pareto), ``"log_normal"`` or ``"dirichlet"`` (symmetric).
      shape: the exponent of the power law, the standard deviation of the logarithm, or the concentration. A small
        exponent or concentration, or a large deviation, skews.
      min_examples: what every client holds at least; 0 or more.

    Raises:
      ValueError: an unknown law, a number out of range; when it deals, too few examples for ``min_examples``.

    Source: Li et al. 2022 (arXiv 2102.02079), section 3.3, quantity skew (Dirichlet); Li et al. 2020 (arXiv 1812.06127),
    appendix C (log-normal).

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> sizes = fs.partitions.quantity(5, "power_law", shape=1.0)({"x": np.zeros(1000)}, seed=0).sizes
      >>> sizes.sum(), sizes.max() > 3 * sizes.min()
      (np.int64(1000), np.True_)
    """
    checks.positive_int("clients", clients)
    checks.one_of("law", law, ("power_law", "log_normal", "dirichlet"))
    checks.positive("shape", shape)
    checks.not_negative_int("min_examples", min_examples)

    def assign(generator: np.random.Generator, columns: Columns, least: int = min_examples) -> Partition:
        examples = count_examples(columns)
        check_enough(examples, clients, least)
        weights = size_weights(generator, clients, law, shape)
        sizes = least + systematic_counts(weights, examples - clients * least, generator)
        return numbered(generator.permutation(np.repeat(np.arange(clients), sizes)), clients)

    says = described("quantity", clients=clients, law=law, shape=shape, min_examples=min_examples)
    return with_minimum(assign, says, clients, min_examples)


def mixture(skewed: Partitioner, iid_fraction: float) -> Partitioner:
    """A share of the examples dealt evenly at random, the rest by another partition, to the same clients.

    With ``skewed = shards(clients, 1)``, ``iid_fraction = 0.1`` is the "10 % similarity" of SCAFFOLD. The other partition is
    given the rest alone, which must suffice for its shards or sizes. Its ``min_examples`` is one of both shares together: a client
    below it is given random examples of the then largest client. Where values of a column are clients, as in ``natural``, each
    keeps an example of its own at least, so that the even share may be smaller.

    Args:
      skewed: deals the rest.
      iid_fraction: in (0, 1), of all examples, rounded.

    Raises:
      ValueError: ``iid_fraction`` is not in (0, 1), or there are too few examples for ``min_examples``; as the other
        partition.

    Source: Karimireddy et al. 2020 (arXiv 1910.06378), section 7.1.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat(np.arange(10), 100)}
      >>> partition = fs.partitions.mixture(fs.partitions.shards(10, 1), iid_fraction=0.5)(columns, seed=0)
      >>> len(np.unique(partition.deal(columns).client(0)["y"]))
      10
    """
    if not 0 < iid_fraction < 1:
        raise ValueError(f"iid_fraction is {iid_fraction}, expected a number in (0, 1), ends excluded.")

    deal = skewed.assign if skewed.freely is None else skewed.freely

    def assign(generator: np.random.Generator, columns: Columns, least: int = skewed.least) -> Partition:
        examples = count_examples(columns)
        rows, own = _one_of_each_last(generator.permutation(examples), columns, skewed.by)
        count = min(round(iid_fraction * examples), examples - own)
        alike, rest = np.sort(rows[:count]), np.sort(rows[count:])
        other = deal(generator, {name: np.asarray(x)[rest] for name, x in columns.items()})
        owner = np.empty(examples, np.int64)
        owner[rest] = other.owner
        owner[alike] = dealt_evenly(generator, count, other.num_clients)
        check_enough(int(np.count_nonzero(owner >= 0)), other.num_clients, least)
        moved = repair(owner, other.num_clients, least, generator)
        return other._replace(owner=owner, repaired=other.repaired + moved)

    # What a partition without a minimum of its own needs, such as shards, must be in the rest.
    needs = skewed.needs if skewed.freely is not None else math.ceil(skewed.needs / (1 - iid_fraction)) + 1
    return Partitioner(
        assign,
        f"{described('mixture', iid_fraction=iid_fraction)}, rest: {skewed.says}",
        needs,
        skewed.least,
        None if skewed.freely is None else functools.partial(assign, least=0),
        skewed.by,
    )


def _one_of_each_last(rows: np.ndarray, columns: Columns, by: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """The rows with one of each combination of values of the columns ``by`` at the end, and how many these are."""
    if not by:
        return rows, 1
    codes = [np.unique(column_of(columns, name, "by")[rows], return_inverse=True)[1] for name in by]
    _, first = np.unique(np.stack(codes), axis=1, return_index=True)
    return np.concatenate([np.delete(rows, first), rows[first]]), len(first)
