"""Law 6, end to end: a client more or less moves the sum that is noised by at most the bound, whatever it sends."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws.transforms import TRANSFORMS

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src import tree

CLIENTS, EXPECTED = 4, 3.0
PRIVATE = {
    name: case
    for name, case in TRANSFORMS.items()
    if any(layer.facts[0].noise is not None for layer in case.layers)
    and all(layer.facts[0].noise is None or layer.facts[0].noise.law == "gaussian" for layer in case.layers)
}
values = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0.0])


def noiseless(name: str):
    """The chain with its noise left out: what the noise is added to."""
    return agg.chain(*(layer for layer in PRIVATE[name].layers if layer.facts[0].noise is None))


def total(name, updates, sizes):
    mean, _, _ = agg.run(
        noiseless(name), updates, key=jax.random.key(0), num_examples=sizes, expected_clients=EXPECTED
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64) * EXPECTED, mean)


def test_every_private_chain_is_here():
    assert {"clip, mean, noise", "top_k, adaptive clip, mean, noise"} <= set(PRIVATE)


@pytest.mark.parametrize("name", PRIVATE)
@settings(max_examples=60, deadline=None)
@given(sent=st.lists(values, min_size=CLIENTS * 6, max_size=CLIENTS * 6), gone=st.integers(0, CLIENTS - 1))
@example(sent=[np.nan] * 24, gone=0)
@example(sent=[3e38] * 24, gone=1)
@example(sent=[1e6, *[0.0] * 23], gone=0)
def test_one_client_moves_the_sum_by_at_most_the_bound(name, sent, gone):
    sent = np.asarray(sent, np.float32).reshape(CLIENTS, 6)
    updates = {"w": sent[:, :4].reshape(CLIENTS, 2, 2), "b": sent[:, 4:]}
    sizes = np.arange(1, CLIENTS + 1)
    chain = noiseless(name)
    spec = tree.spec(jax.tree.map(lambda x: jax.numpy.asarray(x[0]), updates))
    bound = float(chain.bound(chain.init(fs.Message(spec))[0], np.inf))
    assert np.isfinite(bound)
    whole = total(name, updates, sizes)
    without = total(name, updates, np.where(np.arange(CLIENTS) == gone, 0, sizes))
    moved = np.sqrt(
        sum(
            np.sum((a - b) ** 2)
            for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(without), strict=True)
        )
    )
    assert moved <= bound * (1 + 1e-5) + 1e-6
