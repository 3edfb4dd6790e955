"""Law 6: a clip's bound holds for every input, NaN and infinity included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedjax_sim import Message
from fedjax_sim import aggregation as agg
from fedjax_sim._src import tree
from fedjax_sim.aggregation._reduce import example_client_context

CLIPS = {
    "clip_by_global_norm": agg.clip_by_global_norm,
    "adaptive_clip": agg.adaptive_clip,
    "clip_by_leaf_norm": agg.clip_by_leaf_norm,
    "clip_by_group_norm": lambda norm: agg.clip_by_group_norm({".": norm}),
    "clip_by_l1_norm": agg.clip_by_l1_norm,
    "zero_out": agg.zero_out,
}
ROUNDING = 1e-5
"""That of float32, for leaves of bfloat16, too: noise is scaled to the bound itself."""

floats = st.floats(width=32)
values = st.tuples(st.lists(floats, min_size=3, max_size=3), st.lists(floats, min_size=2, max_size=2))
norms = st.floats(2**-10, 2**10, width=32)


def message(value):
    """One leaf of float32 and one of bfloat16."""
    wide, narrow = value
    with np.errstate(over="ignore"):
        return {
            "wide": jnp.asarray(wide, jnp.float32),
            "narrow": jnp.asarray(np.float32(narrow)).astype(jnp.bfloat16),
        }


@functools.partial(jax.jit, static_argnums=0)
def encode(name, value, norm):
    """What is sent, the metrics, and the bound that layers behind the clip see."""
    clip = CLIPS[name](norm)
    server, _ = clip.init(Message(value))
    ctx = example_client_context()._replace(num_examples=jnp.int32(5))
    sent, _, metrics = clip.encode(Message(value), (), server, ctx)
    return sent, metrics, clip.bound(server, jnp.inf)


def norm_of(name, value) -> float:
    """The norm that the clip bounds."""
    if name == "clip_by_l1_norm":
        return float(sum(jnp.sum(jnp.abs(x.astype(jnp.float32))) for x in jax.tree.leaves(value)))
    if name == "clip_by_leaf_norm":
        return float(jnp.max(jnp.stack([tree.global_norm(x) for x in jax.tree.leaves(value)])))
    return float(tree.global_norm(value))


@pytest.mark.parametrize("name", CLIPS)
@settings(max_examples=200, deadline=None)
@given(value=values, norm=norms)
@example(value=([np.nan, 1.0, 1.0], [1.0, 1.0]), norm=1.0)
@example(value=([1.0, 1.0, 1.0], [np.inf, -np.inf]), norm=1.0)
@example(value=([3e38, 3e38, 0.0], [0.0, 0.0]), norm=1.0)
@example(value=([1e-25, 0.0, 0.0], [0.0, 0.0]), norm=0.125)
def test_the_bound_holds(name, value, norm):
    """The norm sent is at most the clip norm; a message that is not finite is zero as a whole, and counted."""
    value = message(value)
    actual = norm_of(name, value)
    sent, metrics, bound = encode(name, value, norm)
    assert norm_of(name, sent.value) <= norm * (1 + ROUNDING)
    assert float(tree.global_norm(sent.value)) <= bound * (1 + ROUNDING)
    assert jax.tree.map(lambda x: x.dtype, sent.value) == jax.tree.map(lambda x: x.dtype, value)
    assert float(metrics["nonfinite"].total) == (not np.isfinite(actual))
    if not np.isfinite(actual):
        assert all(not jnp.any(x) for x in jax.tree.leaves(sent.value))
    elif actual <= norm:
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), sent.value, value))
    if name == "zero_out":
        assert float(metrics["zeroed"].total) == (not actual <= norm)
    if name == "adaptive_clip":
        assert float(sent.stack[-1]) == (actual <= norm) - 0.5  # False for NaN: bit 0, sent as minus a half


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_felt_through_a_chain(name):
    """One client of NaN and one of infinity leave the mean of the others, and are counted."""
    updates = {
        "w": jnp.stack([jnp.full(4, jnp.nan), jnp.full(4, jnp.inf), jnp.full(4, 0.1), jnp.full(4, -100.0)])
    }
    transform = agg.chain(CLIPS[name](1.0), agg.mean(over="expected_cohort"))
    mean, _, metrics = agg.run(transform, updates, key=jax.random.key(0))
    kept = {"clip_by_l1_norm": -0.25, "zero_out": 0.0}.get(name, -0.5)
    np.testing.assert_allclose(mean["w"], (0.1 + kept) / 4, rtol=1e-5)
    assert float(metrics[f"{name}/nonfinite"].total) == 2
    if name == "zero_out":
        assert float(metrics["zero_out/zeroed"].total) == 3
    else:
        assert float(metrics[f"{name}/clipped"].total) == 1
