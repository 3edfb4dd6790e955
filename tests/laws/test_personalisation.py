"""Personalised models depend on the client and the state, not on who is in the same block."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from laws import members

import fedjax_sim as fs
from fedjax_sim import engines

TEST = members.make_data(sizes=(2, 1, 0, 3, 5, 9, 1, 4, 2, 1), seed=1)


def simulation(name: str) -> fs.Simulation:
    return members.new_trial(members.named(name), engines.sequential()).sim


@pytest.mark.parametrize("name", [name for name in members.NAMES if not name.startswith("heterofl")])
def test_company_does_not_matter(name):
    """One compiled program, every client among others and at another place; the state stays as it is."""
    sim = simulation(name)
    state = sim.init(seed=1)
    kept = jax.tree.map(np.asarray, (state.server, state.clients))
    whole = sim.personalised(state, TEST, block_size=4)
    some = sim.personalised(state, TEST, block_size=4, clients=[5, 8, 0, 4])
    for one, other in ((some.before, whole.before), (some.after, whole.after)):
        for metric, values in one.per_client.items():
            np.testing.assert_allclose(values, other.per_client[metric][[5, 8, 0, 4]], rtol=1e-5)
    untrained = sim.data.sizes == 0
    # Clients without training examples have nothing to gain; the two evaluations may be rounded otherwise.
    np.testing.assert_allclose(whole.gain["loss"][untrained], 0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, (state.server, state.clients))


def test_heterofl_says_why_it_cannot():
    sim = simulation("heterofl")
    with pytest.raises(TypeError, match="heterofl: its clients send Delta with 'coverage' beside it"):
        sim.personalised(sim.init(seed=0), TEST)
