"""Law 10, first half, for every law of noise: each mutant of it fails the mechanism-level test, and right noise does not.

As in ``test_mutants``, a mutant lies: its facts are those of the right mechanism.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.noises import tree_nodes
from laws.private import CLIP, CLIPPED, FEW, IN_L1, MEAN, MULTIPLIER, PRIVATE, ROTATED
from scipy import special, stats

from fedjax_sim import Transform
from fedjax_sim import aggregation as agg
from fedjax_sim._src import keys
from fedjax_sim.aggregation import _distributed
from fedjax_sim.aggregation._integers import draw
from fedjax_sim.privacy import audits
from fedjax_sim.privacy.audits import _noise_laws
from fedjax_sim.privacy.audits._mechanism import auditor

ROUNDS = 200
BANDS = agg.banded_coefficients(50, 5)


def tree(z=MULTIPLIER, restart=12):
    return agg.tree_noise(z, restart)


def banded(z=MULTIPLIER, coefficients=BANDS):
    return agg.banded_noise(z, len(coefficients), 50, coefficients=coefficients)


def discrete(z=MULTIPLIER):
    return agg.discrete_gaussian_noise(z, **FEW)


def skellam(z=MULTIPLIER):
    return agg.skellam_noise(z, **FEW)


LAWS = {
    "gaussian": (CLIPPED, agg.gaussian_noise),
    "filtered_gaussian": (CLIPPED, lambda z: agg.filtered_gaussian_noise(z, 0.5)),
    "laplace": (IN_L1, agg.laplace_noise),
    "tree_gaussian": (CLIPPED, tree),
    "banded_gaussian": (CLIPPED, banded),
    "local_gaussian": (CLIPPED, agg.local_gaussian_noise),
    "local_laplace": (IN_L1, agg.local_laplace_noise),
    "discrete_gaussian": (CLIPPED, discrete),
    "skellam": (CLIPPED, skellam),
}
"""Law of noise to a clip, and the layer as a function of its multiplier."""


def audited(clip: Transform, layer: Transform, like: Transform, rotated: bool = False):
    """The audit of a layer with the facts of another one."""
    rotation = (ROTATED,) if rotated else ()
    return audits.audit_mechanism(
        agg.chain(clip, MEAN, *rotation, layer._replace(facts=like.facts)), rounds=ROUNDS
    )


# --- mutants that every law has ------------------------------------------------------------------------------


def half(make):
    return make(MULTIPLIER / 2)


def on_the_mean(make):
    """Divided twice: scaled for the mean, and added to the sum."""
    return make(MULTIPLIER / 8)


def other_key(layer: Transform, key_of) -> Transform:
    """Draws from ``key_of(ctx)`` on either side."""
    swap = lambda ctx: ctx._replace(key=key_of(ctx))  # noqa: E731
    return layer._replace(
        encode=lambda message, client, server, ctx: layer.encode(message, client, server, swap(ctx)),
        decode=lambda message, server, ctx: layer.decode(message, server, swap(ctx)),
    )


def same_key_in_each_round(make):
    def key_of(ctx):
        return keys.fold(keys.root_key(7), getattr(ctx, "client", 0))

    return other_key(make(MULTIPLIER), key_of)


def no_noise_on_the_last_leaf(make):
    layer = make(MULTIPLIER)

    def kept(before, after):
        if isinstance(after, dict):
            return {**after, "c": before["c"]}
        if not hasattr(after, "vector"):
            return after
        # Integers: the last leaf's are what they would be of zeros.
        return after.with_vector(after.vector.at[-60:].set(0))

    def encode(message, client, server, ctx):
        sent, client, metrics = layer.encode(message, client, server, ctx)
        return sent._replace(value=kept(message.value, sent.value)), client, metrics

    def decode(message, server, ctx):
        decoded, server, metrics = layer.decode(message, server, ctx)
        if isinstance(message.value, dict):
            decoded = decoded._replace(value=kept(message.value, decoded.value))
        return decoded, server, metrics

    return layer._replace(encode=encode, decode=decode)


EVERYWHERE = {
    "half the noise": half,
    "noise for the mean": on_the_mean,
    "the same key in each round": same_key_in_each_round,
    "no noise on the last leaf": no_noise_on_the_last_leaf,
}


@pytest.mark.parametrize("mutant", EVERYWHERE)
@pytest.mark.parametrize("law", LAWS)
def test_a_mutant_of_every_law_fails(law, mutant):
    clip, make = LAWS[law]
    audit = audited(clip, EVERYWHERE[mutant](make), make(MULTIPLIER))
    assert not audit.passed, str(audit)
    if mutant == "no noise on the last leaf":
        assert "variance in leaf 2" in audit.failures, str(audit)
    if mutant == "the same key in each round":
        seen = {"mean over rounds", "largest correlation of two rounds"}
        assert seen & set(audit.failures), str(audit)


def test_every_law_has_mutants():
    from fedjax_sim.privacy import _laws

    assert LAWS.keys() == _laws.LAWS.keys()
    known = {*_noise_laws.WHITENING, *_noise_laws.INTEGER_LAWS, "laplace", "local_laplace"}
    assert known == _laws.LAWS.keys()


# --- mutants of one law --------------------------------------------------------------------------------------


def one_tree_for_all_rounds():
    return tree(restart=None)


def independent_rounds():
    return agg.gaussian_noise(MULTIPLIER)


def tree_that_begins_a_round_late():
    layer = tree()

    def init(spec):
        state, client = layer.init(spec)
        return state._replace(rounds=state.rounds + 1), client

    return layer._replace(init=init)


def trees_with_one_key():
    """Each tree has the noise of the first one: by the first round's key, of whatever run."""
    layer = tree()
    first = lambda ctx: jnp.where(ctx.round < 12, 0, 12)  # noqa: E731
    return layer._replace(
        decode=lambda message, server, ctx: layer.decode(
            message, server, ctx._replace(key=keys.fold(keys.root_key(3), first(ctx)))
        )
    )


def a_state_that_remembers_the_sum():
    """What a client sent comes back in a later round, without a clip's knowledge."""
    layer = banded()

    def decode(message, server, ctx):
        decoded, after, metrics = layer.decode(message, server, ctx)
        leaked = jax.tree.map(lambda ring, x: ring + x, after.earlier, message.value)
        return decoded, after._replace(earlier=leaked), metrics

    return layer._replace(decode=decode)


def noise_of_those_with_examples(layer: Transform) -> Transform:
    def encode(message, client, server, ctx):
        sent, after, metrics = layer.encode(message, client, server, ctx)
        came = ctx.num_examples > 0
        # A message of zeros, whose shape the noisy one has.
        value = jax.tree.map(lambda x: jnp.where(came, x, jnp.zeros_like(x)), sent.value)
        return sent._replace(value=value), after, metrics

    return layer._replace(encode=encode)


def one_draw_for_all_clients(layer: Transform) -> Transform:
    return other_key(layer, lambda ctx: keys.fold(keys.root_key(5), ctx.round))


def in_l2() -> Transform:
    return CLIPPED._replace(facts=IN_L1.facts)


SPECIAL = {
    "a tree that never restarts": (CLIPPED, one_tree_for_all_rounds, tree, "variance of the strangest round"),
    "a tree that restarts too soon": (CLIPPED, lambda: tree(restart=6), tree, "variance over all"),
    "a tree that begins late": (CLIPPED, tree_that_begins_a_round_late, tree, "variance over all"),
    "trees with one key": (CLIPPED, trees_with_one_key, tree, "largest correlation of two rounds"),
    "independent noise as a tree": (CLIPPED, independent_rounds, tree, "variance over all"),
    "bands shifted by one": (
        CLIPPED,
        lambda: banded(coefficients=np.roll(BANDS, 1)),
        banded,
        "variance over all",
    ),
    "bands in the wrong order": (
        CLIPPED,
        lambda: banded(coefficients=[BANDS[0], *BANDS[:0:-1]]),
        banded,
        "largest correlation at one distance",
    ),
    "one band fewer": (
        CLIPPED,
        lambda: banded(coefficients=BANDS[:-1]),
        banded,
        "largest correlation at one distance",
    ),
    "independent noise as bands": (
        CLIPPED,
        independent_rounds,
        banded,
        "largest correlation at one distance",
    ),
    "a state that remembers the sum": (
        CLIPPED,
        a_state_that_remembers_the_sum,
        banded,
        "canary at the bound",
    ),
    "local noise of those with examples": (
        IN_L1,
        lambda: noise_of_those_with_examples(agg.local_laplace_noise(MULTIPLIER)),
        lambda: agg.local_laplace_noise(MULTIPLIER),
        "variance over all",
    ),
    "one draw for all clients": (
        IN_L1,
        lambda: one_draw_for_all_clients(agg.local_laplace_noise(MULTIPLIER)),
        lambda: agg.local_laplace_noise(MULTIPLIER),
        "variance over all",
    ),
    "local Gaussian as Laplace": (
        IN_L1,
        lambda: agg.local_gaussian_noise(MULTIPLIER * 2**0.5),
        lambda: agg.local_laplace_noise(MULTIPLIER),
        "law of the noise",
    ),
    "one Laplace variable of four clients' variance": (
        IN_L1,
        lambda: agg.laplace_noise(2 * MULTIPLIER),
        lambda: agg.local_laplace_noise(MULTIPLIER),
        "law of the noise",
    ),
    "a clip in L2 for Laplace noise": (
        in_l2(),
        lambda: agg.laplace_noise(MULTIPLIER),
        lambda: agg.laplace_noise(MULTIPLIER),
        "canary a million times beyond",
    ),
    "a clip in L2 for local Laplace noise": (
        in_l2(),
        lambda: agg.local_laplace_noise(MULTIPLIER),
        lambda: agg.local_laplace_noise(MULTIPLIER),
        "canary a million times beyond",
    ),
}
"""Clip, the mutant, what it claims to be, and one test that it must fail."""


@pytest.mark.parametrize("name", SPECIAL)
def test_a_mutant_of_one_law_fails(name):
    clip, mutant, claimed, test = SPECIAL[name]
    audit = audited(clip, mutant(), claimed())
    assert test in audit.failures, str(audit)


# --- integers ------------------------------------------------------------------------------------------------


def coarse(make=agg.discrete_gaussian_noise):
    """A grid on which the laws can be told apart."""
    return make(0.25, bits=4, **FEW)


def rounded_gaussian(key, law, std, shape):
    return jnp.round(std * jax.random.normal(key, shape)).astype(jnp.int32)


def of_each(change):
    return lambda key, law, std, shape: change(draw(key, law, std, shape))


DRAWS = {
    "a rounded Gaussian": (coarse, rounded_gaussian, "law of the noise"),
    "Skellam as discrete Gaussian": (
        coarse,
        lambda key, law, std, shape: draw(key, "skellam", std, shape),
        "law of the noise",
    ),
    "discrete Gaussian as Skellam": (
        lambda: coarse(agg.skellam_noise),
        lambda key, law, std, shape: draw(key, "discrete_gaussian", std, shape),
        "law of the noise",
    ),
    "even numbers alone": (
        skellam,
        lambda key, law, std, shape: 2 * draw(key, law, std / 2, shape),
        "remainders of the integers",
    ),
    "noise that is never negative": (discrete, of_each(jnp.abs), "mean over rounds"),
    "one number for all coordinates": (
        discrete,
        of_each(lambda x: jnp.broadcast_to(x[:1], x.shape)),
        "mean over coordinates",
    ),
}


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_integers_of_another_law_fail(name, rotated):
    make, mutant, test = DRAWS[name]
    with mock.patch.object(_distributed, "draw", mutant):
        audit = audited(CLIPPED, make(), make(), rotated)
    assert test in audit.failures, str(audit)


def test_noise_of_those_with_examples_fails():
    assert (
        "variance over all" in audited(CLIPPED, noise_of_those_with_examples(skellam()), skellam()).failures
    )


def test_a_round_of_too_few_clients_that_is_kept_fails():
    layer = skellam()

    def decode(message, server, ctx):
        *rest, clients = message.stack
        return layer.decode(message._replace(stack=(*rest, clients + 9)), server, ctx)

    audit = audited(CLIPPED, layer._replace(decode=decode), layer)
    assert audit.failures == ("nothing is released of too few clients",), str(audit)


def test_a_rounding_that_lengthens_fails():
    away = lambda key, x, squared_norm: (  # noqa: E731
        (jnp.sign(x) * jnp.ceil(jnp.abs(x))).astype(jnp.int32),
        jnp.zeros((), bool),
    )
    layer = agg.skellam_noise(MULTIPLIER, bits=6, **FEW)
    with mock.patch.object(_distributed, "stochastic_rounding", away):
        audit = audited(CLIPPED, layer, layer)
    assert "canary at the bound" in audit.failures, str(audit)
    assert audited(CLIPPED, layer, layer).passed


def test_a_message_that_is_not_clipped_is_seen_behind_the_modulus():
    loose = agg.clip_by_global_norm(5.0)._replace(bound=CLIPPED.bound, facts=CLIPPED.facts)
    audit = audited(loose, skellam(), skellam(), rotated=True)
    assert "canary a million times beyond" in audit.failures, str(audit)


# --- the test itself -----------------------------------------------------------------------------------------

SMALL = {
    "a": jax.ShapeDtypeStruct((5,), jnp.float32),
    "b": jax.ShapeDtypeStruct((2, 2), jnp.float32),
    "c": jax.ShapeDtypeStruct((3,), jnp.float32),
}
SEEDS = 200
FALSE_ALARMS = [
    "clip", "Laplace", "tree that restarts", "bands, tree and independent noise", "local Laplace", "discrete Gaussian, coarse",
    "rotation, discrete Gaussian", "Skellam, coarse", "Skellam with little room",
]  # fmt: skip


@pytest.mark.parametrize("name", FALSE_ALARMS)
def test_right_noise_fails_no_more_often_than_the_level_says(name):
    """Of 200 pairs of seeds: at a level of 5 %, where the number can be told from it, and at that of the default."""
    audit = auditor(PRIVATE[name](), SMALL, rounds=48)
    smallest = []
    for seed in range(SEEDS):
        found = audit(2 * seed)
        p_values = [test.p_value for test in found.tests]
        smallest.append(min(p_values) * len(p_values))
        assert not found.signals.keys() & set(found.failures), str(found)
    smallest = np.array(smallest)
    for level in (0.05, 0.001):
        assert stats.binom.sf(np.sum(smallest < level) - 1, SEEDS, level) > 1e-3, level
    # Nor much less often: p-values that are too large would see nothing.
    assert np.sum(smallest < 0.5) > 0.2 * SEEDS


@pytest.mark.parametrize("terms", [1, 2, 4, 7])
def test_the_law_of_a_sum_of_laplace_variables(terms):
    """Against the difference of two Gamma variables, integrated."""
    x = np.array([-3.0, -0.7, 0.0, 0.2, 1.9])
    grid = np.linspace(1e-9, 80, 400_001)
    weights = stats.gamma.pdf(grid, terms) * (grid[1] - grid[0])
    expected = [np.sum(stats.gamma.cdf(v * np.sqrt(2 * terms) + grid, terms) * weights) for v in x]
    np.testing.assert_allclose(_noise_laws.laplace_cdf(x, terms), expected, atol=2e-4)
    assert np.all(np.diff(_noise_laws.laplace_cdf(np.linspace(-5, 5, 99), terms)) > 0)


@pytest.mark.parametrize("law", ["discrete_gaussian", "skellam"])
def test_the_law_of_a_sum_of_integers(law):
    """Against plain convolutions of one client's law, and of it modulo a small power of two."""
    std, clients = 0.8, 3
    k = np.arange(-40, 41)
    one = special.ive(np.abs(k), std**2) if law == "skellam" else np.exp(-(k**2) / (2 * std**2))
    one = one / one.sum()
    expected = np.convolve(np.convolve(one, one), one)
    first, mass = _noise_laws._summed(law, std, clients)
    got = dict(zip(range(first, first + len(mass)), mass, strict=True))
    for value in range(-12, 13):
        assert got[value] == pytest.approx(expected[value + 120], rel=1e-7, abs=1e-15)
    first, folded = _noise_laws._folded(first, mass, 4)
    assert first == -2
    np.testing.assert_allclose(
        folded, [sum(expected[(np.arange(-120, 121) - v) % 4 == 0]) for v in (-2, -1, 0, 1)], atol=1e-12
    )


def test_the_whitening_of_a_tree_gives_its_nodes():
    """Prefix sums by sets of nodes: what the matrix makes of their covariance is the identity, restarts included."""
    for rounds, restart in ((13, None), (13, 5), (16, 8), (9, 1)):
        prefix = [tree_nodes(t, restart or rounds) for t in range(rounds + 1)]
        sums = np.array([[len(a & b) for b in prefix] for a in prefix], float)
        rows = np.diff(np.diff(sums, axis=0), axis=1)
        white = _noise_laws.WHITENING["tree_gaussian"]({"restart_every": restart}, rounds)
        np.testing.assert_array_equal(white @ rows @ white.T, np.eye(rounds))


def test_an_audit_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match=r"tree_noise begins a tree every 12 rounds.*give rounds=48 or more"):
        audits.audit_mechanism(agg.chain(CLIPPED, MEAN, tree()), rounds=46)
    with pytest.raises(ValueError, match=r"banded_noise is correlated over 5 rounds.*give rounds=10 or more"):
        audits.audit_mechanism(agg.chain(CLIPPED, MEAN, banded()), rounds=8)


def test_a_sum_of_several_laws_is_refused():
    chain = agg.chain(IN_L1, MEAN, agg.laplace_noise(1.0), agg.gaussian_noise(1.0))
    with pytest.raises(ValueError, match=r"laws laplace, gaussian, whose law.*a chain of its own"):
        audits.audit_mechanism(chain)


def test_a_rule_is_refused_with_the_test_that_is_right():
    import optax

    from fedjax_sim import rules

    rule = rules.dp_sgd(
        lambda w, batch: batch["x"] @ w,
        optax.sgd(0.1),
        clip_norm=1.0,
        noise_multiplier=1.0,
        expected_batch_size=4,
    )
    with pytest.raises(TypeError, match=r"was given a client rule.*audits\.lira"):
        audits.audit_mechanism(rule)


def test_integers_outside_the_law_fail():
    """A sum that the law gives no chance is no number that a test could miss."""
    law = _noise_laws.integer_sum(skellam().facts[0].noise, CLIP, 4, 180)
    far = law.gaussian(np.array([[law.first - 1, 0]]), np.random.default_rng(0))
    assert np.isinf(far[0, 0]) and np.isfinite(far[0, 1])


def test_a_message_of_one_array_passes():
    spec = jax.ShapeDtypeStruct((7,), jnp.float32)
    chain = agg.chain(CLIPPED, MEAN, skellam())
    assert audits.audit_mechanism(chain, spec, rounds=20).passed
