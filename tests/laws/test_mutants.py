"""Law 10, first half: private chains pass a mechanism-level test, and mutants of them fail it.

A mutant lies: its facts are those of the right mechanism, so that ``chain`` accepts it and an accountant prices it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.private import ADAPTIVE, CLIP, CLIPPED, MEAN, MULTIPLIER, NOISE, PRIVATE

from fedjax_sim import Facts, Transform
from fedjax_sim import aggregation as agg
from fedjax_sim._src import tree
from fedjax_sim._src.types import Mean, Noise
from fedjax_sim.privacy import audits
from fedjax_sim.privacy.audits._mechanism import auditor

ROUNDS = 200


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_chain_passes(name):
    audit = audits.audit_mechanism(PRIVATE[name](), rounds=ROUNDS)
    assert audit.passed, str(audit)


# --- mutants -------------------------------------------------------------------------------------------------


def lying_noise(draw) -> Transform:
    """Noise ``draw(key, leaves, std, ctx)`` on the sum, with the facts of ``NOISE``."""

    def decode(message, server, ctx):
        leaves, structure = jax.tree.flatten(message.value)
        noise = draw(ctx.key, leaves, MULTIPLIER * ctx.bound, ctx)
        noisy = [x + n for x, n in zip(leaves, noise, strict=True)]
        return message._replace(value=jax.tree.unflatten(structure, noisy)), server, {}

    return NOISE._replace(decode=decode)


def lying_clip(encode) -> Transform:
    """``encode(value)`` in place of the clip, with its facts and its bound."""
    return agg.clip_by_global_norm(CLIP)._replace(
        encode=lambda message, client, server, ctx: (
            message._replace(value=encode(message.value)),
            client,
            {},
        )
    )


def normals(key, leaves):
    return [
        jax.random.normal(k, x.shape) for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]


def scaled(leaves, factor):
    return [x * factor for x in leaves]


def of_each(value, norm):
    """Every leaf to the norm of the whole."""
    clip = agg.clip_by_global_norm(CLIP)
    return jax.tree.map(lambda x: norm(clip, x), value)


def clip_leaf(clip, x):
    actual = jnp.sqrt(jnp.sum(x**2))
    return jnp.where(jnp.isfinite(actual), x * jnp.minimum(1, CLIP / jnp.maximum(actual, 1e-30)), 0)


def clip_without_check(value):
    return tree.scale(value, jnp.minimum(1.0, CLIP / jnp.maximum(tree.global_norm(value), 1e-30)))


def weighted_mean() -> Transform:
    """Weights by examples under the facts of a public mean."""

    def encode(message, client, server, ctx):
        return message._replace(value=tree.scale(message.value, jnp.float32(ctx.num_examples))), client, {}

    return MEAN._replace(encode=encode)


def on_the_mean() -> Transform:
    """Divides first and adds afterwards: the divisor's decode runs before that of the noise."""
    divide = lambda x, ctx: x / ctx.expected_clients  # noqa: E731

    def decode(message, server, ctx):
        leaves, structure = jax.tree.flatten(message.value)
        drawn = scaled(normals(ctx.key, leaves), MULTIPLIER * ctx.bound)
        mean = [divide(x, ctx) + n for x, n in zip(leaves, drawn, strict=True)]
        return message._replace(value=jax.tree.unflatten(structure, mean)), server, {}

    return NOISE._replace(decode=decode)


def fixed_key(key, leaves, std, ctx):
    return scaled(normals(jax.random.key(7), leaves), std)


def same_in_each_leaf(key, leaves, std, ctx):
    return [std * jax.random.normal(key, (x.size,)).reshape(x.shape) for x in leaves]


def one_number(key, leaves, std, ctx):
    return [
        jnp.full(x.shape, std * n)
        for x, n in zip(leaves, jax.random.normal(key, (len(leaves),)), strict=True)
    ]


def every_second_round(key, leaves, std, ctx):
    return scaled(normals(jax.random.fold_in(jax.random.key(7), ctx.round % 37), leaves), std)


def examples(key, leaves, std, ctx):
    """The sum of what clients with many examples would have added."""
    return scaled(normals(key, leaves), std * jnp.float32(ctx.clients))


def first_leaf(key, leaves, std, ctx):
    drawn = scaled(normals(key, leaves), std)
    return [drawn[0], *(jnp.zeros_like(x) for x in leaves[1:])]


def laplace(key, leaves, std, ctx):
    keys = jax.random.split(key, len(leaves))
    return [std / np.sqrt(2) * jax.random.laplace(k, x.shape) for k, x in zip(keys, leaves, strict=True)]


def with_data(key, leaves, std, ctx):
    """More noise for longer sums."""
    return scaled(normals(key, leaves), std + jnp.sqrt(sum(jnp.sum(x**2) for x in leaves)))


HALF = lambda key, leaves, std, ctx: scaled(normals(key, leaves), 0.5 * std)  # noqa: E731
LESS = lambda key, leaves, std, ctx: scaled(normals(key, leaves), 0.97 * std)  # noqa: E731

MUTANTS = {
    "half the noise": ((CLIPPED, MEAN, lying_noise(HALF)), "variance over all"),
    "three per cent less noise": ((CLIPPED, MEAN, lying_noise(LESS)), "variance over all"),
    "noise on the mean": (
        (CLIPPED, MEAN._replace(decode=lambda message, server, ctx: (message, server, {})), on_the_mean()),
        "variance over all",
    ),
    "no clip": ((lying_clip(lambda value: value), MEAN, NOISE), "canary a million times beyond"),
    "a clip for each leaf": (
        (lying_clip(lambda value: of_each(value, clip_leaf)), MEAN, NOISE),
        "canary a million times beyond",
    ),
    "a clip that NaN passes": ((lying_clip(clip_without_check), MEAN, NOISE), "canary with NaN"),
    "weights by examples": ((CLIPPED, weighted_mean(), NOISE), "canary at the bound"),
    "the same noise in each round": ((CLIPPED, MEAN, lying_noise(fixed_key)), "mean over rounds"),
    "noise that comes again": (
        (CLIPPED, MEAN, lying_noise(every_second_round)),
        "largest correlation of two rounds",
    ),
    "the same noise in each leaf": ((CLIPPED, MEAN, lying_noise(same_in_each_leaf)), "mean over leaves"),
    "one number for a leaf": ((CLIPPED, MEAN, lying_noise(one_number)), "mean over coordinates"),
    "noise times clients": ((CLIPPED, MEAN, lying_noise(examples)), "variance over all"),
    "noise on one leaf alone": ((CLIPPED, MEAN, lying_noise(first_leaf)), "variance in leaf 1"),
    "noise of another law": ((CLIPPED, MEAN, lying_noise(laplace)), "law of the noise"),
    "noise that depends on the data": ((CLIPPED, MEAN, lying_noise(with_data)), "canary at the bound"),
}
"""Layers of each mutant, and one test that it must fail."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails(name):
    layers, test = MUTANTS[name]
    audit = audits.audit_mechanism(agg.chain(*layers), rounds=ROUNDS)
    assert not audit.passed
    assert test in audit.failures, str(audit)
    assert f"{test}" in str(audit) and "FAILED" in str(audit)


# --- mutants of the count that adaptive_clip's norm follows ----------------------------------------------------


def lying_count(std=0.5, encode=None, key=lambda key: key, after=lambda norm, exact: norm) -> Transform:
    """``ADAPTIVE``, written out, with another noise, bits, key or next state."""

    def bits(message, client, server, ctx):
        message, client, metrics = ADAPTIVE.encode(message, client, server, ctx)
        *stack, bit = message.stack
        return message._replace(stack=(*stack, encode(bit, ctx))), client, metrics

    def decode(message, server, ctx):
        *stack, exact = message.stack
        fraction = 0.5 + (exact + std * jax.random.normal(key(ctx.key), ())) / ctx.expected_clients
        norm = server.clip_norm * jnp.exp(-0.2 * (fraction - 0.5))
        metrics = {"unclipped": Mean(fraction, jnp.ones(()))}
        return message._replace(stack=tuple(stack)), server._replace(clip_norm=after(norm, exact)), metrics

    return ADAPTIVE._replace(encode=bits if encode else ADAPTIVE.encode, decode=decode)


MUTANTS_OF_COUNTS = {
    "half the noise": (lying_count(std=0.25), "count: variance"),
    "none": (lying_count(std=0.0), "count: variance"),
    "the same in each round": (lying_count(key=lambda key: jax.random.key(7)), "count: mean over rounds"),
    "clients without examples count": (
        lying_count(encode=lambda bit, ctx: jnp.where(bit == 0, 0.5, bit)),
        "count: variance",
    ),
    "bits of zero and one": (
        lying_count(encode=lambda bit, ctx: jnp.where(bit == 0, 0.0, bit + 0.5)),
        "count: variance",
    ),
    "a client counts as often as it has examples": (
        lying_count(encode=lambda bit, ctx: bit * ctx.num_examples),
        "count: a client moves it by its bit",
    ),
    "the next norm follows the exact count": (
        lying_count(after=lambda norm, exact: CLIP * jnp.exp(-0.2 * exact)),
        "count: the next state follows it",
    ),
}


def test_a_count_that_does_not_lie_passes():
    audit = audits.audit_mechanism(agg.chain(lying_count(), MEAN, NOISE), rounds=ROUNDS)
    assert audit.passed, str(audit)


@pytest.mark.parametrize("name", MUTANTS_OF_COUNTS)
def test_a_mutant_of_the_count_fails(name):
    layer, test = MUTANTS_OF_COUNTS[name]
    audit = audits.audit_mechanism(agg.chain(layer, MEAN, NOISE), rounds=ROUNDS)
    assert test in audit.failures, str(audit)


def test_noise_of_a_count_that_comes_again_in_the_sum_fails():
    """One key for both: either alone is right."""

    def decode(message, server, ctx):
        message, server, metrics = NOISE.decode(message, server, ctx)
        first, *others = jax.tree.leaves(message.value)
        once = (
            MULTIPLIER * ctx.bound * jax.random.normal(jax.random.fold_in(jax.random.key(3), ctx.round), ())
        )
        # Silent clients' sum is noise alone, of which one number is drawn anew.
        leaves = [jnp.ravel(first).at[0].set(once).reshape(first.shape), *others]
        value = jax.tree.unflatten(jax.tree.structure(message.value), leaves)
        return message._replace(value=value), server, metrics

    def counted(message, server, ctx):
        return lying_count(key=lambda _: jax.random.fold_in(jax.random.key(3), ctx.round)).decode(
            message, server, ctx
        )

    layers = (ADAPTIVE._replace(decode=counted), MEAN, NOISE._replace(decode=decode))
    audit = audits.audit_mechanism(agg.chain(*layers), rounds=ROUNDS)
    assert audit.failures == ("count: correlation with the sum's noise",), str(audit)


def test_a_layer_that_counts_says_what_it_counted():
    def decode(message, server, ctx):
        message, server, _ = ADAPTIVE.decode(message, server, ctx)
        return message, server, {}

    with pytest.raises(ValueError, match=r"adaptive_clip has count_noise_std in its facts.*'unclipped'"):
        audits.audit_mechanism(agg.chain(ADAPTIVE._replace(decode=decode), MEAN, NOISE), rounds=ROUNDS)


# --- the test itself -----------------------------------------------------------------------------------------


def test_p_values_are_those_of_the_claim():
    """Right noise fails no more often than the level says: the smallest of ten p-values over many seeds."""
    chain = PRIVATE["clip"]()
    spec = {"a": jax.ShapeDtypeStruct((30,), jnp.float32), "b": jax.ShapeDtypeStruct((10,), jnp.float32)}
    audit = auditor(chain, spec, rounds=60)
    found = [audit(2 * seed) for seed in range(12)]
    p_values = np.array([[test.p_value for test in audit.tests] for audit in found])
    assert ((p_values >= 0) & (p_values <= 1)).all()
    assert p_values.min() > 1e-4  # 132 values
    assert 0.3 < np.median(p_values[:, :5]) < 0.7


def test_another_law_is_tested_by_its_distribution_function():
    """Laplace noise passes as such, and fails as Gaussian noise of the same deviation."""
    noise = lying_noise(laplace)._replace(facts=(Facts("my_noise", noise=Noise("mine", MULTIPLIER)),))
    chain, std = agg.chain(CLIPPED, MEAN, noise), MULTIPLIER * CLIP
    scale = 1 / np.sqrt(2)

    def cdf(x):
        return np.where(x < 0, np.exp(-np.abs(x) / scale) / 2, 1 - np.exp(-np.abs(x) / scale) / 2)

    assert audits.audit_mechanism(chain, rounds=ROUNDS, std=std, cdf=cdf).passed
    assert audits.audit_mechanism(chain, rounds=ROUNDS, std=std).failures == ("law of the noise",)
    with pytest.raises(ValueError, match=r"my_noise adds noise by the law 'mine'.*give std"):
        audits.audit_mechanism(chain)


def test_messages_of_other_dtypes_pass():
    """Leaves of bfloat16 are summed and noised in float32."""
    spec = {"a": jax.ShapeDtypeStruct((50,), jnp.bfloat16), "b": jax.ShapeDtypeStruct((), jnp.float32)}
    audit = audits.audit_mechanism(PRIVATE["clip"](), spec, rounds=ROUNDS, tolerance=1e-2)
    assert audit.passed, str(audit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((agg.chain(CLIPPED, MEAN),), "the chain adds no noise"),
        ((agg.mean(),), "the chain adds no noise"),
        ((agg.chain(CLIPPED, MEAN, NOISE), None, 4), "rounds is 4, expected at least 8"),
    ],
)
def test_what_cannot_be_audited_is_refused(arguments, message):
    transform, spec, rounds = (*arguments, None, 100)[:3] if len(arguments) == 1 else arguments
    with pytest.raises(ValueError, match=message):
        audits.audit_mechanism(transform, spec, rounds=rounds)
