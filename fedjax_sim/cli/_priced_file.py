"""``privacy FILE``: what the run that a file describes will cost, for each setting that it sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedjax_sim import experiment


@dataclasses.dataclass(frozen=True)
class FilePrice:
    """What the file's runs cost.

    Attributes:
      asked: rounds that the file asks for.
      rounds: those that its budget pays for, all of them without one.
      runs: for each combination of swept settings, ``{"": ...}`` where nothing is swept, the guarantees in JSON's types.
    """

    asked: int
    rounds: int
    runs: Mapping[str, list[dict[str, Any]]]

    def lines(self) -> list[str]:
        found = []
        for name, statements in self.runs.items():
            for said in statements:
                found.append(f"{name}: {_line(said)}" if name else _line(said))
        end = f"{self.rounds:,} rounds."
        if self.rounds < self.asked:
            end = f"{self.rounds:,} of {self.asked:,} rounds, which is what privacy.epsilon pays for."
        return [*found, f"{end} It covers the models alone, each of them by itself."]

    def plain(self) -> list[dict[str, Any]]:
        return [
            ({"run": name} if name else {}) | said
            for name, statements in self.runs.items()
            for said in statements
        ]


def file_price(found: experiment.Experiment) -> FilePrice:
    """Prices the runs of a file, as they will be; nothing is trained and nothing written.

    Raises:
      ConfigError: what cannot be built, or has no noise; a budget below the first round.
    """
    runs, fewest = {}, found.rounds
    for program in found.programs():
        own = program.name if len(found.programs()) > 1 else ""
        simulations = {}
        for label in program.replicas():
            cell = label.get("sweep", {})
            said = ", ".join(f"{key} = {value}" for key, value in cell.items())
            simulations.setdefault(" ".join(part for part in (own, said) if part), cell)
        made = {name: program.simulation(cell) for name, cell in simulations.items()}
        try:
            rounds = program.privacy.rounds(made.values(), program.rounds)
        except ValueError as error:
            raise experiment.ConfigError(f"privacy: {error}") from error
        if not rounds:
            raise experiment.ConfigError(
                f"privacy.epsilon is {program.privacy.epsilon}, which does not pay for the first round: raise it, or add more "
                "noise."
            )
        fewest = min(fewest, rounds)
        for name, simulation in made.items():
            runs[name] = program.privacy.statements(simulation, rounds)
            if not runs[name]:
                raise experiment.ConfigError(
                    "algorithm: neither the chain nor the clients' steps add noise, so there is nothing to price. Add a noise to "
                    "algorithm.aggregate, such as gaussian_noise."
                )
    return FilePrice(found.rounds, fewest, runs)


def _line(said: Mapping[str, Any]) -> str:
    if "no_price" in said:
        return f"no price for one {said['unit']}: {said['no_price']}"
    sampling = f"{' and '.join(said['sampling'])} sampling{', which amplifies' if said['amplified'] else ''}"
    simulated = "simulated, not of this run: " if said["simulated"] else ""
    return (
        f"{simulated}{said['accountant'].upper()}  epsilon {said['epsilon']:<8.5g} at delta {said['delta']:.3g} for one {said['unit']}, "
        f"{said['neighbour']}, {sampling}"
    )
