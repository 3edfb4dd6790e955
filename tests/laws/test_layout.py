"""Law 2: results do not depend on the order of a cohort or of the data, on padding, or on what is in unused places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import members
from laws.members import (
    ALGORITHMS,
    COHORTS,
    LANES,
    NAMES,
    POPULATION,
    TOLERANCE,
    bits_equal,
    comparable,
    largest_error,
    make_data,
    named,
    new_trial,
    one_round,
    oracle,
    trial,
    warm_state,
    with_data,
)

import fedjax_sim as fs

TRAINING = (5, 3, 8)
"""A cohort without empty clients, whose neighbours in the data are not in it."""


@pytest.mark.parametrize("name", NAMES)
def test_a_cohort_has_no_order(name):
    """Who stands first in the cohort, and so in which lane, does not matter."""
    state, _ = one_round(trial(name, LANES), warm_state(name), COHORTS["some"][::-1])
    assert largest_error(comparable(state), comparable(oracle(name, COHORTS["some"])[0])) < TOLERANCE


@pytest.mark.parametrize("name", [member.name for member in ALGORITHMS if not member.keyed])
def test_the_data_has_no_order(name):
    """Clients that are stored, and so numbered, in another order do the same, as far as they draw no numbers."""
    order = np.random.default_rng(0).permutation(POPULATION)
    place = np.argsort(order)
    moved = with_data(trial(name, LANES), make_data().select(order), order)
    start = warm_state(name)
    shuffled = fs.SimState(
        start.server, jax.tree.map(lambda x: x[order], start.clients), start.aggregate, start.round, start.key
    )
    state, _ = one_round(moved, shuffled, tuple(place[list(COHORTS["some"])]))
    expected, _ = oracle(name, COHORTS["some"])
    assert largest_error(state.server, expected.server) < TOLERANCE
    assert largest_error(jax.tree.map(lambda x: x[place], state.clients), expected.clients) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_others_are_inert(name):
    """What lies in the rows of clients that do not take part changes no bit, not even NaN in the next row."""
    data = make_data()
    taking_part = np.isin(np.repeat(np.arange(POPULATION), data.sizes), TRAINING)
    x = np.where(taking_part[:, None], data.columns["x"], np.nan)
    poisoned = fs.ClientData({**data.columns, "x": x}, data.offsets, data.ids)
    clean, _ = one_round(trial(name, LANES), warm_state(name), TRAINING)
    state, _ = one_round(with_data(trial(name, LANES), poisoned), warm_state(name), TRAINING)
    assert bits_equal(state, clean)


@pytest.mark.parametrize("finish", ["compact", "masked"])
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "coordinate_median"])
def test_dead_lanes_are_inert(name, finish):
    """Lanes without a client may hold NaN from the first to the last step."""
    algorithm = named(name).build()

    def poisoned(rule):
        def begin(broadcast, state, ctx):
            work = rule.begin(broadcast, state, ctx)
            return jax.tree.map(lambda x: jnp.where(ctx.num_examples > 0, x, jnp.nan), work)

        return rule._replace(begin=begin)

    stages = tuple(stage._replace(client=poisoned(stage.client)) for stage in algorithm.stages)
    member = named(name)._replace(build=lambda: algorithm._replace(stages=stages))
    state, _ = one_round(new_trial(member, fs.engines.lanes(5, finish=finish)), warm_state(name), TRAINING)
    assert largest_error(comparable(state), comparable(oracle(name, TRAINING)[0])) < TOLERANCE


def _padded_batches(member):
    return [
        new_trial(member._replace(local=fs.LocalWork(epochs=2, batch_size=size)), fs.engines.lanes(3))
        for size in (41, 64)
    ]


def _padded_cohorts(member):
    exact = trial(member.name, LANES).sim
    exact = fs.Simulation(
        exact.algorithm, exact.data, cohort=fs.cohorts.fixed(TRAINING), local=exact.local, engine=exact.engine
    )
    return [members.Trial(exact, members.Script()), trial(member.name, LANES)]


def _padded_data(member):
    data = make_data()
    more = {name: np.concatenate([column, column[:9]]) for name, column in data.columns.items()}
    longer = fs.ClientData(more, [*data.offsets, data.num_examples + 9], ids=[*data.ids, 999])
    return [trial(member.name, LANES), new_trial(member, fs.engines.lanes(3), longer)]


@pytest.mark.parametrize("pad", [_padded_batches, _padded_cohorts, _padded_data])
def test_padding_is_inert(pad):
    """Batches larger than a client, room for more clients than come, rows that nobody uses."""
    tight, padded = (one_round(t, warm_state("fedavg"), TRAINING)[0] for t in pad(named("fedavg")))
    assert largest_error(comparable(padded), comparable(tight)) < TOLERANCE
