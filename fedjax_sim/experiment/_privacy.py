"""The table ``[privacy]``: what a run may spend, and what its summary says of what it spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from fedjax_sim.experiment._said_in_toml import said_in_toml
from fedjax_sim.privacy import Budget
from fedjax_sim.privacy._laws import Accountant, Neighbour
from fedjax_sim.privacy._ledger import Unit
from fedjax_sim.simulate import Simulation


@dataclasses.dataclass(frozen=True)
class Privacy:
    """How a run's privacy is priced, and what it may cost. Of a run without noise nothing is said.

    Attributes:
      delta: of the guarantee; by default the number of clients, or of training examples, to the power of -1.1.
      epsilon: the run ends after the last round that it pays for; no limit if not given.
      unit: whose data ``epsilon`` is for; the summary prices both where both have noise.
      accountant: by default the tighter one that knows how cohorts, or batches, are drawn.
      neighbour: by default the relation under which they have the lowest price.
    """

    delta: float | None = None
    epsilon: float | None = None
    unit: Unit = "client"
    accountant: Accountant | None = None
    neighbour: Neighbour | None = None

    def delta_for(self, unit: Unit, simulation: Simulation) -> float:
        if self.delta is not None:
            return self.delta
        data = simulation.data
        return max(data.num_clients if unit == "client" else data.num_examples, 2) ** -1.1

    def budget(self, simulation: Simulation) -> Budget | None:
        """What it may spend.

        Raises:
          ValueError: a number outside its range.
        """
        delta = self.delta_for(self.unit, simulation)
        made = Budget(
            1.0 if self.epsilon is None else self.epsilon, delta, self.accountant, self.neighbour, self.unit
        )
        return None if self.epsilon is None else made

    def rounds(self, simulations: Iterable[Simulation], rounds: int) -> int:
        """Of ``rounds`` rounds the most that every one of these may run."""
        paid = rounds
        for simulation in simulations:
            budget = self.budget(simulation)
            if budget is not None and paid:
                paid = simulation.affordable_rounds(budget, paid)
        return paid

    def statements(self, simulation: Simulation, rounds: int) -> list[dict[str, Any]]:
        """For each unit that noise hides, what ``rounds`` rounds cost it and what they released, in JSON's types."""
        return [self._statement(simulation, rounds, unit) for unit in simulation.hidden_units]

    def _statement(self, simulation: Simulation, rounds: int, unit: Unit) -> dict[str, Any]:
        try:
            found = simulation.privacy(
                rounds,
                self.delta_for(unit, simulation),
                unit=unit,
                # What was chosen for the budget's unit need not fit the other one.
                accountant=self.accountant if unit == self.unit else None,
                neighbour=self.neighbour if unit == self.unit else None,
            )
        except (ValueError, ModuleNotFoundError) as error:
            return {"unit": unit, "no_price": said_in_toml(str(error))}
        return {
            **dataclasses.asdict(found),
            "sampling": list(found.sampling),
            "ledger": found.ledger.as_json(),
        }
