"""The sharded engine against the oracle, for every algorithm: prints one line of JSON per algorithm and mesh.

A program of its own, because the number of devices is fixed when JAX starts. ``test_sharded.py`` runs it and asserts.
"""

import json
import sys

import jax
from laws import members

from fedjax_sim import engines


def measure(name: str, devices: int) -> dict:
    """Largest errors over all cohorts after a round, and how many programs were compiled."""
    trial = members.new_trial(members.named(name), engines.sharded(engines.client_mesh(devices), lanes=2))
    start, errors = members.warm_state(name), []
    for cohort in members.COHORTS.values():
        expected, expected_metrics = members.oracle(name, cohort)
        state, metrics = members.one_round(trial, padded(start, trial.sim._slots()), cohort)
        errors.append(members.largest_error(members.comparable(state), members.comparable(expected)))
        errors.append(members.metrics_error(metrics, expected_metrics))
    return {"name": name, "devices": devices, "error": max(errors), "compilations": trial.sim.compilations}


def padded(state, rows: int):
    """The state with a client table of so many rows: equal shares for the devices."""
    grow = lambda x: jax.numpy.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
    return members.fs.SimState(
        state.server, jax.tree.map(grow, state.clients), state.aggregate, state.round, state.key
    )


if __name__ == "__main__":
    for devices in members.MESHES:
        for name in sys.argv[1:] or members.NAMES:
            print(json.dumps(measure(name, devices)), flush=True)
