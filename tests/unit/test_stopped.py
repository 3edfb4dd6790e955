"""Runs and sweeps that end before the rounds that were asked for: where, with what, and how they say so."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from unit import small
from unit.test_budgets import DELTA, paying_for, private, simulation

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.checkpoint import CheckpointError
from fedjax_sim.privacy import Budget, BudgetSpentError

NOISES = (2.0, 3.0, 4.0)


def stop_after(rounds):
    return lambda progress: progress.done >= rounds


def comparable(state: fs.SimState):
    return jax.tree.map(np.asarray, (state.server, state.clients, state.aggregate, state.round))


# --- what a history says ---


def test_a_run_to_its_end_is_not_stopped():
    sim = simulation()
    _, history = sim.run(sim.init(0), rounds=4, callbacks=[stop_after(4)], budget=Budget(1e6, DELTA, "rdp"))
    assert (history.rounds, history.stopped) == (4, None)


def test_a_history_says_what_ended_it():
    sim = simulation()
    budget = paying_for(3, sim)
    _, history = sim.run(sim.init(0), rounds=10, budget=budget)
    assert (history.rounds, history.stopped) == (3, "budget")
    _, history = sim.run(sim.init(0), rounds=10, budget=budget, callbacks=[stop_after(2)])
    assert (history.rounds, history.stopped) == (2, "callback")
    # It had no more rounds to run: the callback ended nothing.
    _, history = sim.run(sim.init(0), rounds=10, budget=budget, callbacks=[stop_after(3)])
    assert (history.rounds, history.stopped) == (3, "budget")


@pytest.mark.parametrize("why", ["budget", "callback"])
def test_checkpoints_keep_what_ended_a_run(tmp_path, why):
    sim, store = simulation(), fs.Checkpoints(tmp_path, every=2)
    options = {"budget": paying_for(3, sim)} if why == "budget" else {"callbacks": [stop_after(2)]}
    sim.run(sim.init(0), rounds=10, checkpoints=store, **options)
    _, history = sim.run(sim.init(0), rounds=None, checkpoints=store)
    assert history.stopped == why
    # What goes on, without that budget or callback, is stopped no more.
    _, history = sim.run(sim.init(0), rounds=6, checkpoints=store)
    assert (history.rounds, history.stopped) == (6, None)
    _, history = sim.run(sim.init(0), rounds=None, checkpoints=store)
    assert history.stopped is None


# --- sweeps with a budget ---


def swept(sim, noises=NOISES, rounds=9, **options) -> fs.Histories:
    options = {"seeds": range(len(noises))} | options
    return sim.sweep(
        rounds=rounds, algorithm=lambda z: small.fedavg(private(z)), hyperparameters={"z": noises}, **options
    )


def with_everything(z) -> fs.Algorithm:
    """A server with a momentum, a chain with a state, clients with a state: none of it may move after the end."""
    chain = agg.chain(
        agg.adaptive_clip(0.5, count_noise_std=30.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(z)
    )
    return fs.algorithms.scaffold(small.task(), 0.1, aggregate=chain)


def test_every_replica_ends_where_a_run_of_its_own_does():
    sim = simulation()
    budget = paying_for(4, sim)  # with noise 3
    histories = swept(sim, evaluate_on=sim.data, every=3, budget=budget)
    lengths = [history.rounds for history in histories]
    assert lengths[1] == 4
    assert lengths[0] < 4 < lengths[2]
    assert {history.stopped for history in histories} == {"budget"}
    for seed, (z, history, state) in enumerate(zip(NOISES, histories, histories.states, strict=True)):
        own = simulation(z)
        expected, alone = own.run(own.init(seed), rounds=9, evaluate_on=sim.data, every=3, budget=budget)
        assert (history.rounds, int(state.round)) == (alone.rounds, int(expected.round))
        assert list(history.evaluations) == list(alone.evaluations)
        np.testing.assert_allclose(history["loss"], alone["loss"], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            *map(comparable, (state, expected)),
        )
    stacked = histories.stacked("loss")
    assert stacked.shape == (3, max(lengths))
    assert [int(np.isfinite(row).sum()) for row in stacked] == lengths


def test_no_state_of_a_replica_moves_after_its_end():
    """A longer companion in the program changes nothing: neither the server's, nor the chain's, nor the clients' state."""
    sim = small.simulation(with_everything(3.0), rounds_per_chunk=2)
    ends = {}

    def watch(progress):
        assert np.asarray(progress.snapshot().round).tolist() == [min(progress.done, e) for e in ends["at"]]

    budget = paying_for(3, sim)
    sweep = dict(rounds=6, algorithm=with_everything, hyperparameters={"z": (3.0, 30.0)})
    ends["at"] = (3, 6)
    together = sim.sweep([0, 0], budget=budget, callbacks=[watch], **sweep)
    alone = sim.sweep([0, 0], **sweep | {"rounds": 3})
    assert [history.rounds for history in together] == [3, 6]
    assert [history.stopped for history in together] == ["budget", None]
    jax.tree.map(np.testing.assert_array_equal, *map(comparable, (together.states[0], alone.states[0])))


def test_a_sweep_with_a_budget_goes_on_from_checkpoints(tmp_path):
    sim, store = simulation(), fs.Checkpoints(tmp_path / "a", every=2)
    options = {"budget": paying_for(4, sim)}
    whole = swept(sim, **options)
    first = swept(sim, checkpoints=store, callbacks=[stop_after(6)], **options)
    assert [history.stopped for history in first] == ["budget", "budget", "callback"]
    read = swept(sim, rounds=None, checkpoints=store)
    assert [h.rounds for h in read] == [h.rounds for h in first]
    assert [h.stopped for h in read] == [h.stopped for h in first]
    assert [int(state.round) for state in read.states] == [h.rounds for h in first]
    again = swept(sim, checkpoints=store, **options)
    for got, want in zip(again.states, whole.states, strict=True):
        jax.tree.map(np.testing.assert_array_equal, comparable(got), comparable(want))
    assert [h.stopped for h in again] == ["budget"] * 3
    np.testing.assert_array_equal(again.stacked("loss"), whole.stacked("loss"))
    with pytest.raises(
        CheckpointError, match=r"of replica 0, whose budget ended it then.*Go on with the budget of before"
    ):
        swept(sim, rounds=20, checkpoints=store)


def test_seeds_alone_share_an_end():
    sim = simulation()
    histories = sim.sweep([0, 1], rounds=9, budget=paying_for(3, sim))
    assert [(h.rounds, h.stopped) for h in histories] == [(3, "budget")] * 2


def test_a_replica_that_cannot_begin_is_named():
    with pytest.raises(
        BudgetSpentError, match=r"budget of replica 1 \(z = 0.01\).*does not pay for the first round"
    ):
        swept(simulation(), noises=(3.0, 0.01), budget=Budget(10.0, DELTA, "rdp"))
