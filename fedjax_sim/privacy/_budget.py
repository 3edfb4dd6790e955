"""A budget, and how many rounds it pays for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from fedjax_sim._src import checks
from fedjax_sim.privacy._accounting import Guarantee
from fedjax_sim.privacy._gaussian import check_delta
from fedjax_sim.privacy._laws import Accountant, Neighbour
from fedjax_sim.privacy._ledger import Unit


class BudgetSpentError(ValueError):
    """A budget does not pay for a single further round.

    Attributes:
      paid: rounds that it pays for, all of which ran already.
    """

    def __init__(self, message: str, paid: int):
        super().__init__(message)
        self.paid = paid


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run may spend in privacy.

    Attributes:
      epsilon: above 0.
      delta: in (0, 1), well below one over the number of clients.
      accountant: as for ``fs.privacy.price``.
      neighbour: as for ``fs.privacy.price``.
      unit: whose data it is for, a ``"client"``'s or an ``"example"``'s.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.privacy.Budget(epsilon=2.0, delta=1e-6).unit
      'client'
    """

    epsilon: float
    delta: float
    accountant: Accountant | None = None
    neighbour: Neighbour | None = None
    unit: Unit = "client"

    def __post_init__(self):
        checks.positive("epsilon", self.epsilon)
        check_delta(self.delta)
        checks.one_of("accountant", self.accountant, (None, "pld", "rdp"))
        checks.one_of(
            "neighbour", self.neighbour, (None, "add_or_remove_one", "replace_one", "replace_special")
        )
        checks.one_of("unit", self.unit, ("client", "example"))


def affordable(
    price_of: Callable[[int], Guarantee],
    budget: Budget,
    rounds: int,
    rough: Callable[[int], Guarantee] | None = None,
) -> int:
    """The most of ``rounds`` rounds that a budget pays for, 0 where it pays for none.

    Without ``rough``, where all are affordable one price is found, else about twice as many as ``rounds`` has bits. With
    ``rough``, prices that are close and quick to find, two or three of ``price_of`` are enough.
    """

    def most(price: Callable[[int], Guarantee], guess: int | None = None) -> int:
        return _most(lambda count: price(count).epsilon <= budget.epsilon, rounds, guess)

    return most(price_of) if rough is None else most(price_of, most(rough))


def _most(pays: Callable[[int], bool], rounds: int, guess: int | None) -> int:
    """The largest count up to ``rounds`` that ``pays``, as all smaller ones do; the search begins at ``guess``."""
    low, high = 0, rounds + 1  # low pays, high does not
    if guess is None:
        if pays(rounds):
            return rounds
        # From below: the price of many rounds at little noise is the slow one to find.
        guess, high = 1, rounds
    # Away from the guess in steps that double, until the count lies between two of them.
    step, here = 1, max(guess, 1)
    while low < here < high:
        if pays(here):
            low, here = here, here + step
        else:
            high, here = here, here - step
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low
