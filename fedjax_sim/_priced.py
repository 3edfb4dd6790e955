"""The part of a simulation that knows what its rounds cost in privacy."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim._src.types import Algorithm
from fedjax_sim.data.client_source import Clients
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.engines._problem import Problem, groups, keeps_client_state, update_spec
from fedjax_sim.engines._state import SimState
from fedjax_sim.privacy import Budget, BudgetSpentError, Guarantee, Ledger, ledger_of, price
from fedjax_sim.privacy._accounting import COARSE, FINE
from fedjax_sim.privacy._budget import affordable
from fedjax_sim.privacy._examples import ExampleLedgers, example_ledgers
from fedjax_sim.privacy._laws import Accountant, Neighbour
from fedjax_sim.privacy._ledger import Unit


class Priced:
    """A simulation's prices: everything that they depend on is read off the simulation itself."""

    algorithm: Algorithm
    cohort: Cohort
    data: Clients
    _problem: Problem
    _template: SimState
    _group: np.ndarray

    @property
    def hidden_units(self) -> tuple[Unit, ...]:
        """What the algorithm's noise hides: each ``"client"``, by every chain; each ``"example"``, by every client rule."""
        stages = self.algorithm.stages
        chains = [any(fact.noise is not None for fact in stage.aggregate.facts) for stage in stages]
        rules = [rule.noise is not None for stage in stages for rule in groups(stage)]
        found: dict[Unit, bool] = {"client": all(chains), "example": all(rules)}
        return tuple(unit for unit, hidden in found.items() if hidden)

    @property
    def _clients_remember(self) -> bool:
        """Whether what a client sends depends on which rounds it took part in before."""
        works = self._problem.works(self.algorithm)
        return keeps_client_state(self._template) or any(work.continue_epochs for work in works)

    def ledger(self, rounds: int, first: int = 0, *, unit: Unit = "client", client: Any = None) -> Ledger:
        """What ``rounds`` rounds release, from the ``first`` on: read off the algorithm and the cohort sampler.

        Args:
          rounds: how many.
          first: index of the first one.
          unit: about a whole ``"client"``, by the chains; or about one ``"example"``, by the clients' rules and batches.
          client: position or text id of the client whose example it is; of ``unit="example"`` alone, and required there.

        Where clients keep state, or go on with a pass over their examples from round to round, cohorts of a fixed size and
        Poisson cohorts that may be cut are priced without amplification.

        Raises:
          ValueError: a stage releases its sum, or a rule its steps, without noise; an example of no client.
        """
        checks.one_of("unit", unit, ("client", "example"))
        if unit == "client":
            if client is not None:
                raise ValueError(
                    "the ledger about whole clients is the same for all: leave client out, or use unit='example'."
                )
            found = ledger_of(
                self.algorithm,
                self.cohort,
                self.data.num_clients,
                rounds,
                first,
                message=functools.partial(update_spec, self._problem),
            )
            return found.without_amplification() if self._clients_remember else found
        if client is None:
            raise ValueError(
                "every client has a ledger of its own about its examples: name one with client=..."
            )
        found = self._of_examples(rounds, first)
        return found.ledgers[int(found.of_client[self.data.positions([client])[0]])]

    def privacy(
        self,
        rounds: int,
        delta: float,
        *,
        unit: Unit = "client",
        accountant: Accountant | None = None,
        neighbour: Neighbour | None = None,
    ) -> Guarantee:
        """What ``rounds`` rounds cost, from the first on: epsilon at ``delta``, between neighbours that differ in one unit.

        A run can hide whole clients, by the noise of its chains, and single examples, by that of the clients' steps; each
        has its own price. Among examples it is the price of the client that pays most.

        Args:
          rounds: how many.
          delta: in (0, 1), well below one over the number of units.
          unit: whose data: a whole ``"client"``'s, against all who see the models; or one ``"example"`` of a client,
            against the server, too.
          accountant: as for ``fs.privacy.price``.
          neighbour: as for ``fs.privacy.price``.

        Raises:
          ValueError: as for ``fs.privacy.price``; also where a stage, or a rule, adds no noise.

        Example:
          >>> import fedjax_sim as fs, optax
          >>> from fedjax_sim import aggregation as agg
          >>> data = fs.data.load("digits", clients=100, alpha=1.0, seed=0)
          >>> task = fs.tasks.classification(fs.models.linear(classes=10))
          >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(1.0))
          >>> sim = fs.Simulation(
          ...     fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=private), data.train, cohort=fs.cohorts.uniform(10))
          >>> price = sim.privacy(rounds=10, delta=1e-3)
          >>> round(price.epsilon, 1), price.neighbour
          (12.9, 'replace_one')
        """
        return self._price(rounds, delta, unit, accountant, neighbour)

    def _price(
        self,
        rounds: int,
        delta: float,
        unit: Unit,
        accountant: Accountant | None,
        neighbour: Neighbour | None,
        interval: float = FINE,
    ) -> Guarantee:
        checks.one_of("unit", unit, ("client", "example"))
        options: dict[str, Any] = {"accountant": accountant, "neighbour": neighbour, "interval": interval}
        if unit == "client":
            return price(self.ledger(rounds), delta, **options)
        ledgers = [ledger for ledger in self._of_examples(rounds).ledgers if ledger.entries]
        if not ledgers:
            raise ValueError(
                "no client takes a step, so nothing is released about an example, and nothing has a price."
            )
        found = (price(ledger, delta, **options) for ledger in ledgers)
        return max(found, key=lambda guarantee: guarantee.epsilon)

    def client_epsilons(
        self,
        rounds: int,
        delta: float,
        *,
        accountant: Accountant | None = None,
        neighbour: Neighbour | None = None,
    ) -> np.ndarray:
        """What ``rounds`` rounds cost each client, ``f64[clients]``: less for those that ``clip_by_client_norm`` clips shorter.

        Arguments and errors as for ``privacy``; ValueError also where noise other than Gaussian stands behind that clip.
        """
        ledger = self.ledger(rounds)
        shares = np.ones(self.data.num_clients, np.float64)
        facts = [fact for stage in self.algorithm.stages for fact in stage.aggregate.facts]
        norms = [fact.client_norms for fact in facts if fact.client_norms is not None]
        if norms:
            laws = {entry.law for entry in ledger.entries}
            if len(norms) > 1 or laws != {"gaussian"} or any(f.count_noise_std is not None for f in facts):
                raise ValueError(
                    "prices of single clients are known behind one clip_by_client_norm and gaussian_noise alone."
                )
            shares = np.asarray(norms[0], np.float64) / float(np.max(norms[0]))
        found = {}
        for share in np.unique(shares):
            entries = [dataclasses.replace(e, multiplier=e.multiplier / float(share)) for e in ledger.entries]
            found[share] = price(
                Ledger(tuple(entries)), delta, accountant=accountant, neighbour=neighbour
            ).epsilon
        return np.array([found[share] for share in shares])

    def example_epsilons(
        self,
        rounds: int,
        delta: float,
        *,
        accountant: Accountant | None = None,
        neighbour: Neighbour | None = None,
    ) -> np.ndarray:
        """What ``rounds`` rounds cost one example of each client, ``f64[clients]``; 0 for a client that takes no step.

        Clients with the same law of batches share a price. A Poisson law is cut where a client has more examples than a batch
        has room for, and then every number of examples has a price of its own, a second each: a batch as large as the
        largest client is cut nowhere.

        Arguments and errors as for ``privacy``.
        """
        found = self._of_examples(rounds)
        prices = [
            price(ledger, delta, accountant=accountant, neighbour=neighbour).epsilon
            if ledger.entries
            else 0.0
            for ledger in found.ledgers
        ]
        return np.asarray(prices)[found.of_client]

    def affordable_rounds(self, budget: Budget, rounds: int) -> int:
        """How many of ``rounds`` rounds, from the first on, a budget pays for.

        Raises:
          ValueError: as for ``privacy``.

        Example:
          >>> import fedjax_sim as fs, optax
          >>> from fedjax_sim import aggregation as agg
          >>> data = fs.data.load("digits", clients=100, alpha=1.0, seed=0)
          >>> task = fs.tasks.classification(fs.models.linear(classes=10))
          >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(4.0))
          >>> sim = fs.Simulation(
          ...     fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=private), data.train, cohort=fs.cohorts.uniform(10))
          >>> sim.affordable_rounds(fs.privacy.Budget(epsilon=4.0, delta=1e-3), rounds=1000)
          100
        """
        if not isinstance(budget, Budget):
            raise TypeError(
                f"budget is {type(budget).__name__}, expected a Budget: use fs.privacy.Budget(epsilon=4.0, delta=1e-6)."
            )
        checks.positive_int("rounds", rounds)

        def price_of(count: int, interval: float = FINE) -> Guarantee:
            return self._price(
                count, budget.delta, budget.unit, budget.accountant, budget.neighbour, interval
            )

        rough = functools.partial(price_of, interval=COARSE)
        return affordable(price_of, budget, rounds, rough)

    def _of_examples(self, rounds: int, first: int = 0) -> ExampleLedgers:
        works = self._problem.works(self.algorithm)
        return example_ledgers(
            self.algorithm, works, self.cohort, self.data.sizes, self._group, rounds, first
        )

    def _paid(self, budget: Budget | None, done: int, rounds: int | None, which: str = "") -> int | None:
        """Of all rounds, those that are ``done`` and ``rounds`` more, as many as the budget pays for; ``None`` without one.

        Raises:
          BudgetSpentError: no more than are done; says ``which`` run it is about.
        """
        if budget is None or rounds is None:
            return None
        paid = self.affordable_rounds(budget, done + rounds)
        if paid <= done:
            whose = f"epsilon {budget.epsilon:g} at delta {budget.delta:g} for one {budget.unit}"
            spent = (
                f"pays for {paid} rounds, and {done} are done" if done else "does not pay for the first round"
            )
            raise BudgetSpentError(
                f"the budget{which and f' of {which}'}, {whose}, {spent}: raise it, or start with more noise, smaller cohorts or fewer steps "
                "(fs.privacy.calibrate finds the noise that a number of rounds needs).",
                paid,
            )
        return paid

    def _ends(
        self, budget: Budget, rounds: int, members: Sequence[tuple[str, Algorithm | None]]
    ) -> tuple[int, ...]:
        """Of ``rounds`` rounds as many as the budget pays for, for each member of a sweep: its name and its algorithm.

        Raises:
          BudgetSpentError: not one, for one of them.
        """
        known: dict[int, int | None] = {}
        for name, algorithm in members:
            if id(algorithm) not in known:
                own = self if algorithm is None else self._with_algorithm(algorithm)
                known[id(algorithm)] = own._paid(budget, 0, rounds, name)
        return tuple(known[id(algorithm)] or 0 for _, algorithm in members)

    def _with_algorithm(self, algorithm: Algorithm) -> Priced:
        """The same with another algorithm, to ask for its prices."""
        own = copy.copy(self)
        own.algorithm = algorithm
        own._problem = dataclasses.replace(self._problem, build=lambda hyper: algorithm)
        return own
