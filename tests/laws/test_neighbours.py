"""Law 6, end to end: a client more or less moves the sum that is noised by at most the bound, whatever it sends.

Of every chain in ``laws.private``, with its noise: with the same key it cancels, or it would depend on the client's data.
A client that is missing stays in the cohort without examples and sends zeros, so that it brings its noise and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from laws.private import MULTIPLIER, PRIVATE

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim import rules
from fedjax_sim._src import tree
from fedjax_sim.privacy.audits import _noise_laws
from fedjax_sim.privacy.audits._releases import _probed

CLIENTS, ROUNDS, SIZE = 4, 3, 9
EXPECTED = 5.0
SHAPES = {"a": (2, 2), "b": (3,), "c": (2,)}
HOSTILE = [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1.9e19, 1e-30, 1e-40, -1e-45, 0.0, -0.0]


def messages(rows) -> dict[str, np.ndarray]:
    """``f32[clients, SIZE]`` as leaves."""
    rows, found, start = np.asarray(rows, np.float32), {}, 0
    for name, shape in SHAPES.items():
        count = int(np.prod(shape))
        found[name] = rows[..., start : start + count].reshape(*rows.shape[:-1], *shape)
        start += count
    return found


class Chain(NamedTuple):
    """A private chain.

    Attributes:
      run: messages, sizes, state and round to the sum that is seen (integers or floats), the noisy counts, and the next state.
      bound: the server's state to the bound on what one client moves that sum by.
      order: of the norm.
      modulus: of integers; ``None`` of floats.
      noise: its scale over the bound.
      budget: of a client in a filter; ``None`` without.
      start: the state before the first round.
    """

    run: Callable[..., tuple[Any, list, Any]]
    bound: Callable[[Any], float]
    order: int
    modulus: int | None
    noise: float
    budget: float | None
    start: Any


@functools.cache
def chain_of(name: str) -> Chain:
    transform = PRIVATE[name]()
    probed = _probed(transform)
    facts = [layer.facts[0] for layer in transform.parts]
    noises = [fact.noise for fact in facts if fact.noise is not None]
    spec = fs.Message({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()})

    @jax.jit
    def run(updates, sizes, state, round_):
        released, state, metrics = agg.run(
            probed,
            updates,
            key=jax.random.key(0),
            num_examples=sizes,
            expected_clients=EXPECTED,
            state=state,
            round_=round_,
        )
        total = jnp.concatenate([jnp.ravel(x) * EXPECTED for x in jax.tree.leaves(released)])
        seen = [value for key, value in metrics.items() if key.endswith("/seen")]
        count = [m.total * EXPECTED for key, m in metrics.items() if key.endswith("/unclipped")]
        return seen[0] if seen else total, count, state

    def bound(server):
        """On what one client moves the sum by, where the noise stands."""
        limit = np.inf
        for layer, part in zip(transform.parts, server, strict=True):
            if layer.facts[0].noise is not None:
                break
            limit = float(layer.bound(part, limit))
        if noises[0].law not in _noise_laws.INTEGER_LAWS:
            return limit
        dimension = 16 if any(fact.name == "hadamard_rotation" for fact in facts) else SIZE
        law = _noise_laws.integer_sum(noises[0], limit, CLIENTS, dimension)
        return law.bound / law.step  # in steps of the grid

    order = 1 if all(fact.norm == "l1" for fact in facts if fact.noise is not None) else 2
    bits = noises[0].details.get("bits")
    server, part = transform.init(spec)
    start = server, jax.tree.map(lambda x: jnp.broadcast_to(x, (CLIENTS, *jnp.shape(x))), part)
    z = noises[0].multiplier
    return Chain(
        run,
        bound,
        order,
        None if bits is None else 2**bits,
        1.0 if callable(z) else float(z),
        noises[0].details.get("client_budget"),
        start,
    )


rows = st.lists(
    st.one_of(
        st.lists(st.floats(width=32) | st.sampled_from(HOSTILE), min_size=SIZE, max_size=SIZE),
        st.sampled_from(HOSTILE).map(lambda x: [x] * SIZE),
        st.lists(st.floats(-2, 2, width=32), min_size=SIZE, max_size=SIZE),
    ),
    min_size=CLIENTS,
    max_size=CLIENTS,
)
SPIKE = [[1e6] + [0.0] * (SIZE - 1), *[[0.1] * SIZE] * 3]


class Moved(NamedTuple):
    """By how much one client moves what is seen of a round; the bound; the counts; the state after the round."""

    norm: float
    bound: float
    counts: list[float]
    state: Any


def moved_by(chain: Chain, sent, gone: int, state, round_: int) -> Moved:
    sent, sizes, there = np.asarray(sent, np.float32), np.arange(1, CLIENTS + 1), np.arange(CLIENTS) != gone
    whole, counts, after = chain.run(messages(sent), sizes, state, round_)
    others = messages(np.where(there[:, None], sent, 0))
    less, counts_without, _ = chain.run(others, sizes * there, state, round_)
    change = np.asarray(whole, np.float64) - np.asarray(less, np.float64)
    if chain.modulus is not None:
        change = (change + chain.modulus // 2) % chain.modulus - chain.modulus // 2
    counted = [abs(float(a) - float(b)) for a, b in zip(counts, counts_without, strict=True)]
    return Moved(float(np.linalg.norm(change, chain.order)), chain.bound(state[0]), counted, after)


@pytest.mark.parametrize("name", PRIVATE)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=rows, gone=st.integers(0, CLIENTS - 1))
@example(sent=[[np.nan] * SIZE] * CLIENTS, gone=0)
@example(sent=[[3.4e38] * SIZE] * CLIENTS, gone=1)
@example(sent=SPIKE, gone=0)
@example(sent=[[0.0] * SIZE] * CLIENTS, gone=2)
@example(sent=[[1e-40] * SIZE] * CLIENTS, gone=2)
@example(sent=[[-0.3] * SIZE, [np.inf] * SIZE, [9.0] * SIZE, [0.0] * SIZE], gone=0)
def test_one_client_moves_the_sum_by_at_most_the_bound(name, sent, gone):
    """Over three rounds, as a filter counts what a client spends, and an adaptive clip moves the bound."""
    chain = chain_of(name)
    state, spent = chain.start, 0.0
    # Integers move exactly; floats by what rounding leaves of a difference of noisy sums.
    slack = 1e-9 if chain.modulus is not None else 1e-5 + 1e-5 * chain.noise
    for round_ in range(ROUNDS):
        norm, bound, counts, state = moved_by(chain, sent, gone, state, round_)
        assert norm <= bound * (1 + slack), (round_, norm, bound)
        assert all(count <= 0.5 + 1e-5 for count in counts), (round_, counts)
        spent += (norm / bound) ** 2 / (2 * chain.noise**2)
    if chain.budget is not None:
        assert spent <= chain.budget * (1 + 1e-3)


TIGHT = [
    "clip",
    "adaptive clip",
    "clip by client",
    "Laplace",
    "tree that restarts",
    "bands",
    "local Laplace",
    "filtered",
    "Skellam",
]


@pytest.mark.parametrize("name", TIGHT)
def test_the_bound_is_reached(name):
    """A law that holds by a wide margin would not notice a bound that is too large by it, or noise too small."""
    chain = chain_of(name)
    norm, bound, *_ = moved_by(chain, SPIKE, 0, chain.start, 0)
    assert norm > 0.995 * bound


# --- examples ------------------------------------------------------------------------------------------------

BATCH, CLIP = 4, 0.5


def loss(params, batch):
    """A product and a quotient, so that gradients can overflow and be NaN."""
    return (batch["x"] @ params["w"] + params["b"]) ** 2 * batch["y"] + batch["x"][:, 0] / batch["y"]


@functools.cache
def step(block_size):
    rule = rules.dp_sgd(
        loss,
        optax.sgd(1.0),
        clip_norm=CLIP,
        noise_multiplier=MULTIPLIER,
        expected_batch_size=3.0,
        block_size=block_size,
    )
    params = {"w": jnp.ones(3), "b": jnp.float32(0.5)}
    return jax.jit(
        lambda batch: rules.run(rule, params, jax.tree.map(lambda x: x[None], batch), jax.random.key(1))
    )


numbers = st.floats(width=32) | st.sampled_from(HOSTILE)


@pytest.mark.parametrize("block_size", [1, 3, BATCH])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(numbers, min_size=4 * BATCH, max_size=4 * BATCH), gone=st.integers(0, BATCH - 1))
@example(sent=[np.nan] * 16, gone=0)
@example(sent=[3.4e38] * 16, gone=3)
@example(sent=[1e-40] * 16, gone=1)
@example(sent=[0.0] * 16, gone=2)
@example(sent=[7.0] * 16, gone=2)
def test_one_example_moves_a_step_by_at_most_the_bound(block_size, sent, gone):
    """DP-SGD: the step's sum with an example and with a blank in its place, with the same noise."""
    values = np.asarray(sent, np.float32).reshape(BATCH, 4)
    batch = {"x": values[:, :3], "y": values[:, 3], "mask": np.ones(BATCH, bool)}
    blank = {**batch, "mask": np.arange(BATCH) != gone}
    moved = jax.tree.map(lambda a, b: 3.0 * (a - b), step(block_size)(batch), step(block_size)(blank))
    assert float(tree.global_norm(moved)) <= CLIP * (1 + 1e-5) + 1e-5
