"""The sharded engine against the oracle, for every algorithm, and client state on the host against that on the devices.

Prints one line of JSON per algorithm and mesh.

With ``streams`` as its first argument: streamed runs of the sharded engine against resident ones; with ``noises``: the
noise of every mechanism. A program of its own,
because the number of devices is fixed when JAX starts. ``test_sharded.py`` runs it and asserts.
"""

import json
import sys
from collections.abc import Mapping
from unittest import mock

import jax
import numpy as np
from laws import members, noises
from laws.test_compiled_once import backend_compilations

from fedjax_sim import _feed, engines


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


def streamed(name: str, devices: int) -> dict:
    """Whether data that are too large for a device, by their size alone, train to the same bits as resident ones.

    Host arrays hold nonsense from the moment in which they may be written again.
    """
    runs, feeds = [], []
    for memory in (None, 1):  # bytes of a device: not known, and too few for anything
        with mock.patch.object(_feed, "device_bytes", return_value=memory):
            trial = members.new_trial(
                members.named(name), engines.sharded(engines.client_mesh(devices), lanes=2)
            )
        trial.script.cohorts = list(members.COHORTS.values())
        start, _ = trial.sim.run(trial.sim.init(seed=3), rounds=1)
        with backend_compilations() as events, members.written_over():
            runs.append(trial.sim.run(start, rounds=2 * len(members.COHORTS)))
        feeds.append(type(trial.sim._feed).__name__)
    (state, history), (other, others) = runs
    same = [np.array_equal(x, others.metrics[key], equal_nan=True) for key, x in history.metrics.items()]
    return {
        "name": name,
        "devices": devices,
        "feeds": feeds,
        "bits_equal": members.bits_equal(state, other),
        "metrics_equal": all(same) and history.metrics.keys() == others.metrics.keys(),
        "compilations": len(events),
    }


def where_it_lies(name: str, devices: int) -> dict:
    """Whether runs, a sweep and clients' own models are the same, bit for bit, with client state elsewhere."""
    member, data, found = members.named(name), members.make_data(members.SIZES * 4), []
    rows = {}
    for where in ("device", "host", "disk"):
        sim = members.fs.Simulation(
            member.build(),
            data,
            cohort=members.fs.cohorts.uniform(2),
            local=member.local,
            engine=engines.sharded(engines.client_mesh(devices), lanes=2),
            rounds_per_chunk=2,
            client_state=where,
        )
        half, _ = sim.run(sim.init(seed=3), 2)
        whole, history = sim.run(half, 3)
        swept = sim.sweep([4, 5], 3)
        own = sim.personalised(whole, data, block_size=3)
        found.append((half, whole, history.metrics, swept.states, own.after.per_client))
        rows[where] = max(len(leaf) for leaf in jax.tree.leaves(sim._lent(half, 2)[0].clients))
    expected, *others = (jax.tree.map(np.asarray, plain(one)) for one in found)
    same = all(members.bits_equal(other, expected) for other in others)
    return {
        "name": f"elsewhere: {name}",
        "devices": devices,
        "same": same,
        "rows": [rows["host"], rows["disk"]],
    }


def plain(found):
    """Keys and mappings as what they hold."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        [dict(part) if isinstance(part, Mapping) else part for part in found],
    )


def noisy(name: str, devices: int) -> dict:
    """Whether the noise of a run is that of the sequential engine, with the stated variance."""
    like = noises.noise_of_a_run(name, engines.sequential(), 2)
    sharded = engines.sharded(engines.client_mesh(devices), lanes=2)
    noises.check(name, noises.noise_of_a_run(name, sharded, 2), like)
    return {"name": name, "devices": devices}


def padded(state, rows: int):
    """The state with a client table of so many rows: equal shares for the devices."""
    grow = lambda x: jax.numpy.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
    return members.fs.SimState(
        state.server, jax.tree.map(grow, state.clients), state.aggregate, state.round, state.key
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["streams"]:
        for name in sys.argv[2:]:
            print(json.dumps(streamed(name, devices=2)), flush=True)
        sys.exit()
    if sys.argv[1:2] == ["noises"]:
        for name in noises.MECHANISMS:
            for devices in members.MESHES:
                print(json.dumps(noisy(name, devices)), flush=True)
        sys.exit()
    for devices in members.MESHES:
        for name in sys.argv[1:] or members.NAMES:
            print(json.dumps(measure(name, devices)), flush=True)
        for name in members.ELSEWHERE:
            print(json.dumps(where_it_lies(name, devices)), flush=True)
