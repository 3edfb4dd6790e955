"""DP-SGD on the client: what its docstring guarantees, on batches given by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import models, tasks

FEATURES, ROWS, RATE, CLIP, Z, EXPECTED = 3, 6, 0.1, 0.8, 1.3, 5.0
KEY = jax.random.key(3)
START = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.25)}


def loss(params, batch):
    """Least squares; its gradient is derived by hand below."""
    return 0.5 * jnp.square(batch["x"] @ params["w"] + params["b"] - batch["y"])


def rule(z=Z, clip=CLIP, **options) -> fs.ClientRule:
    return fs.rules.dp_sgd(
        loss, optax.sgd(RATE), clip_norm=clip, noise_multiplier=z, expected_batch_size=EXPECTED, **options
    )


def make_batches(steps=3, seed=0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.normal(size=(steps, ROWS, FEATURES)).astype(np.float32),
        "y": generator.normal(size=(steps, ROWS)).astype(np.float32),
        "mask": np.arange(ROWS) < np.array([6, 4, 0])[:steps, None],
    }


def flat(update) -> np.ndarray:
    return np.concatenate([np.ravel(update["w"]), np.ravel(update["b"])]).astype(np.float64)


def run(batches, key=KEY, **options) -> np.ndarray:
    return flat(fs.rules.run(rule(**options), START, batches, key))


def summed(batches, **options) -> np.ndarray:
    """The clipped sum of one step: its noise is that of the same step over no rows, and its divisor is public."""
    nothing = {**batches, "mask": np.zeros_like(batches["mask"])}
    return (run(nothing, **options) - run(batches, **options)) * EXPECTED / RATE


def test_it_is_the_papers_loop():
    """Abadi et al. 2016, algorithm 1, in float64 with a gradient derived by hand; the noise too small to see."""
    batches = make_batches()
    w, b = np.array([0.5, -1.0, 2.0]), 0.25
    for x, y, mask in zip(batches["x"], batches["y"], batches["mask"], strict=True):
        total = np.zeros(FEATURES + 1)
        for row, target in zip(x[mask].astype(np.float64), y[mask], strict=True):
            gradient = (row @ w + b - target) * np.append(row, 1.0)
            total += gradient / max(1, np.linalg.norm(gradient) / CLIP)
        w, b = w - RATE * total[:FEATURES] / EXPECTED, b - RATE * total[FEATURES] / EXPECTED
    got = run(batches, z=1e-8)
    np.testing.assert_allclose(got, np.append(w, b) - flat(START), atol=1e-6)


values = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(
    row=st.lists(values, min_size=FEATURES, max_size=FEATURES), target=values, place=st.integers(0, ROWS - 1)
)
@example(row=[np.nan, 0.0, 0.0], target=0.0, place=0)
@example(row=[np.inf, -np.inf, 0.0], target=0.0, place=1)
@example(row=[3e38, 3e38, 3e38], target=-3e38, place=2)
@example(row=[1e15, 0.0, 0.0], target=0.0, place=5)
@example(row=[1e-30, 0.0, 0.0], target=1e-30, place=3)
def test_one_example_moves_the_sum_by_at_most_the_clip_norm(row, target, place):
    """Whatever it holds: with it and without it, the rest and the noise being the same."""
    batches = make_batches(steps=1)
    batches["x"][0, place], batches["y"][0, place] = row, target
    without = {**batches, "mask": batches["mask"].copy()}
    without["mask"][0, place] = False
    # The engine zeroes rows that do not exist.
    without["x"] = np.where(without["mask"][..., None], without["x"], 0)
    without["y"] = np.where(without["mask"], without["y"], 0)
    moved = np.linalg.norm(_jitted(batches) - _jitted(without)) * EXPECTED / RATE
    assert moved <= CLIP * (1 + 1e-4)


_compiled = jax.jit(lambda batches: fs.rules.run(rule(), START, batches, KEY))


def _jitted(batches) -> np.ndarray:
    return flat(_compiled(batches))


def test_padding_adds_nothing_even_when_it_holds_nan():
    batches = make_batches(steps=2)
    spoiled = {name: column.copy() for name, column in batches.items()}
    spoiled["x"][1, 4:], spoiled["y"][1, 4:] = np.nan, np.inf
    assert np.array_equal(run(batches), run(spoiled))


def test_what_is_clipped_or_not_finite_is_counted():
    batches = make_batches(steps=1)
    batches["x"][0, 1] = np.nan
    batches["x"][0, 2] = 1e4
    batches["x"][0, 3:], batches["y"][0, 3:] = 0.0, 0.25  # their loss is zero, and so is their gradient
    batches["x"][0, 0], batches["y"][0, 0] = 0.0, 0.25
    batches["mask"][0, 5] = False
    _, _, metrics = fs.rules.run_with_state(rule(), START, (), batches, KEY)
    assert (float(metrics["dp_sgd/clipped"].total), float(metrics["dp_sgd/clipped"].weight)) == (1, 5)
    assert (float(metrics["dp_sgd/nonfinite"].total), float(metrics["dp_sgd/nonfinite"].weight)) == (1, 5)
    left = summed(batches)
    assert np.linalg.norm(left) == pytest.approx(CLIP, rel=1e-4)


def test_the_divisor_is_the_public_constant():
    """Twice the examples, twice the step: nothing is divided by the size of the batch."""
    one = make_batches(steps=1)
    one["mask"][0, 1:] = False
    two = {name: column.copy() for name, column in one.items()}
    two["x"][0, 1], two["y"][0, 1], two["mask"][0, 1] = one["x"][0, 0], one["y"][0, 0], True
    np.testing.assert_allclose(summed(two), 2 * summed(one), atol=1e-4)


@pytest.mark.parametrize("block_size", [1, 2, 4, 6, 7])
def test_the_block_size_changes_nothing_but_memory(block_size):
    np.testing.assert_allclose(run(make_batches(), block_size=block_size), run(make_batches()), atol=1e-6)


def test_blocks_keep_one_block_of_gradients_in_memory():
    """The compiled program needs less, by about the share of the rows that are in a block."""
    size, rows = 2000, 64
    batches = {"x": jnp.ones((1, rows, size)), "y": jnp.ones((1, rows))}

    def temporary(block_size):
        one = fs.rules.dp_sgd(
            lambda w, batch: jnp.tanh(jnp.tanh(batch["x"] * w) @ w),
            optax.sgd(RATE),
            clip_norm=1.0,
            noise_multiplier=1.0,
            expected_batch_size=rows,
            block_size=block_size,
        )
        program = jax.jit(lambda b: fs.rules.run(one, jnp.ones(size), b, KEY)).lower(batches).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(4) < temporary(rows) / 3
    assert temporary(1) < temporary(4)


def test_several_batches_of_a_step_are_one_batch():
    batches = make_batches(steps=1)
    cut = {name: column.reshape(1, 2, 3, *column.shape[2:]) for name, column in batches.items()}
    client = rule()
    ctx = fs.StepContext(KEY, jnp.int32(0), jnp.int32(0), jnp.float32(0))
    work = client.begin(START, (), None)  # type: ignore[arg-type]  it reads no context
    first, _ = client.step(START, work, {n: jnp.asarray(c[0]) for n, c in batches.items()}, ctx)
    second, _ = client.step(START, work, {n: jnp.asarray(c[0]) for n, c in cut.items()}, ctx)
    np.testing.assert_allclose(flat(first.params), flat(second.params), atol=1e-6)


# --- noise ---

SIZE = 20_000


def noise_of(key, steps=1):
    """The noise on the sum of steps without a single row, ``f64[SIZE]`` for each of two leaves."""
    start = {"a": jnp.zeros(SIZE), "b": jnp.zeros((SIZE // 4, 4))}
    client = fs.rules.dp_sgd(
        lambda w, batch: batch["x"] * (jnp.sum(w["a"]) + jnp.sum(w["b"])),
        optax.sgd(1.0),
        clip_norm=CLIP,
        noise_multiplier=Z,
        expected_batch_size=EXPECTED,
    )
    empty = {"x": jnp.zeros((steps, 2)), "mask": jnp.zeros((steps, 2), bool)}
    update = fs.rules.run(client, start, empty, key)
    return [np.ravel(x).astype(np.float64) * EXPECTED for x in jax.tree.leaves(update)]


def test_noise_has_one_standard_deviation_for_all_leaves_also_on_an_empty_batch():
    for leaf in noise_of(KEY):
        variance = (Z * CLIP) ** 2
        # Five standard errors of a Gaussian's sample mean and variance.
        assert abs(leaf.mean()) < 5 * np.sqrt(variance / SIZE)
        assert abs(leaf.var() / variance - 1) < 5 * np.sqrt(2 / SIZE)


def test_every_step_has_noise_of_its_own():
    for leaf in noise_of(KEY, steps=4):
        assert abs(leaf.var() / (4 * (Z * CLIP) ** 2) - 1) < 5 * np.sqrt(2 / SIZE)


def test_noise_is_independent_over_leaves_and_clients():
    draws = [leaf for seed in (0, 1) for leaf in noise_of(jax.random.key(seed))]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(SIZE)


def test_a_simulation_draws_anew_for_every_client_round_and_step():
    """Clients without gradients: what they send is noise, and no two of them send the same."""
    task = fs.Task(
        lambda key, sample=None: fs.Variables(jnp.zeros(4)),
        lambda variables, batch, key, *, train: (
            0 * batch["x"][:, 0] * jnp.sum(variables.params),
            variables.stats,
        ),
        lambda outputs, batch: outputs,
    )
    algorithm = fs.algorithms.fedavg_dp_sgd(
        task, optax.sgd(1.0), clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=1.0
    )
    data = fs.ClientData({"x": np.zeros((6, 1), np.float32)}, [0, 2, 4, 6], np.arange(3))
    sim = fs.Simulation(
        algorithm, data, cohort=fs.cohorts.fixed([0]), local=fs.LocalWork(epochs=1, batch_size=2)
    )
    state = sim.init(0)
    seen = [np.asarray(sim.run(state, rounds)[0].server.variables.params) for rounds in (1, 2, 3)]
    steps = [seen[0], seen[1] - seen[0], seen[2] - seen[1]]
    for one, client in enumerate((1, 2)):
        other = fs.Simulation(
            algorithm, data, cohort=fs.cohorts.fixed([client]), local=fs.LocalWork(epochs=1, batch_size=2)
        )
        steps.append(np.asarray(other.run(state, 1)[0].server.variables.params))
        assert len(steps) == 4 + one
    assert len({tuple(np.round(step, 5)) for step in steps}) == 5


# --- refusals ---


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize("policy", ["averaged", "local"])
def test_batch_statistics_are_refused(policy):
    task = tasks.from_flax(Normed(), loss="softmax_cross_entropy", batch_stats=policy, classes=2)
    with pytest.raises(ValueError, match=r"batch statistics.*group or layer normalisation"):
        fs.rules.dp_sgd(task, optax.sgd(0.1), clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=4)


@pytest.mark.parametrize("name", ["clip_norm", "noise_multiplier", "expected_batch_size"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_numbers_are_above_zero(name, value):
    options = {"clip_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 4.0, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        fs.rules.dp_sgd(loss, optax.sgd(0.1), **options)


def test_examples_of_a_dropout_model_have_masks_of_their_own():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Dropout(0.5, deterministic=not train)(nn.Dense(32)(x))

    task = tasks.classification(Dropped(), classes=32)
    variables = task.init(jax.random.key(0), {"x": jnp.zeros((1, 4)), "mask": jnp.ones(1, bool)})
    seen = []

    def spy(outputs, batch):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), outputs == 0)
        return jnp.sum(outputs, axis=-1)

    client = fs.rules.dp_sgd(
        task._replace(loss=spy, metrics={}),
        optax.sgd(0.1),
        clip_norm=1.0,
        noise_multiplier=1.0,
        expected_batch_size=4,
    )
    batches = {"x": jnp.ones((1, 4, 4)), "y": jnp.zeros((1, 4), jnp.int32)}
    jax.block_until_ready(fs.rules.run(client, variables, batches, KEY))
    jax.effects_barrier()
    masks = np.concatenate([x.reshape(-1, 32) for x in seen])
    assert len(masks) == 4
    assert len({tuple(mask) for mask in masks}) == 4


def test_the_model_may_be_any_of_the_fields():
    """A convolution under two levels of vmap: clients and examples."""
    task = tasks.classification(models.cnn(classes=3))
    data = fs.ClientData(
        {
            "x": np.random.default_rng(0).normal(size=(12, 8, 8, 1)).astype(np.float32),
            "y": np.arange(12, dtype=np.int32) % 3,
        },
        [0, 5, 12],
        np.arange(2),
    )
    algorithm = fs.algorithms.fedavg_dp_sgd(
        task, optax.sgd(0.1), clip_norm=1.0, noise_multiplier=0.1, expected_batch_size=4
    )
    results = []
    for engine in (fs.engines.sequential(), fs.engines.lanes(2)):
        sim = fs.Simulation(
            algorithm,
            data,
            cohort=fs.cohorts.all_clients(),
            local=fs.LocalWork(poisson_rate=0.5, max_steps=2, batch_size=4),
            engine=engine,
        )
        state, _ = sim.run(sim.init(0), 1)
        results.append(jax.tree.leaves(state.server.variables.params))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
