"""Turns that are left when a queue is empty go on in fewer lanes: nothing but the work that is counted may show it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim import engines

SIZES = np.array([70, 1, 0, 3, 2, 9, 1, 2, 0, 3, 1, 4])
"""One has as much to do as all others; two have nothing."""
LAYOUTS = [(4, "compact"), (40, "compact"), (40, "masked")]


def made_of(sizes: np.ndarray) -> fs.ClientData:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((int(sizes.sum()), 5), np.float32)
    y = generator.integers(0, 3, len(x), dtype=np.int32)
    return fs.ClientData({"x": x, "y": y}, np.concatenate([[0], np.cumsum(sizes)]), np.arange(len(sizes)))


def simulation(engine: engines.Engine, sizes: np.ndarray = SIZES, **options) -> fs.Simulation:
    task = fs.tasks.classification(fs.models.linear(classes=3))
    make = options.pop("make", lambda task: fs.algorithms.fedavg(task, optax.sgd(0.1)))
    return fs.Simulation(
        make(task),
        made_of(sizes),
        cohort=fs.cohorts.all_clients(),
        local=fs.LocalWork(batch_size=2),
        engine=engine,
        **options,
    )


def assert_close(found, expected, about: str) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-4, atol=1e-5, err_msg=about)


MADE = {
    "fedavg": lambda task: fs.algorithms.fedavg(task, optax.sgd(0.1)),
    "client state": lambda task: fs.algorithms.scaffold(task, 0.1),
    "a gather": lambda task: fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=agg.coordinate_median()),
    "noise of the clients": lambda task: fs.algorithms.fedavg(
        task,
        optax.sgd(0.1),
        aggregate=agg.chain(
            agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.local_gaussian_noise(0.1)
        ),
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_results_do_not_depend_on_how_narrow_lanes_become(name):
    reference = simulation(engines.sequential(), make=MADE[name])
    start = reference.init(0)
    expected, expected_history = reference.run(start, rounds=2)
    for lanes, finish in LAYOUTS:
        state, history = simulation(engines.lanes(lanes, finish=finish), make=MADE[name]).run(start, rounds=2)
        assert_close((state.server, state.clients), (expected.server, expected.clients), f"{lanes} lanes")
        for measured, values in expected_history.metrics.items():
            np.testing.assert_allclose(
                history[measured], values, rtol=1e-4, atol=1e-6, err_msg=f"{lanes} {measured}"
            )


def test_a_long_turn_that_is_left_has_a_lane_for_itself():
    """35 steps of one client beside 17 of nine others: with four lanes to the end, three would compute for nothing."""
    _, compact = (sim := simulation(engines.lanes(4, finish="compact"))).run(sim.init(0), rounds=1)
    _, masked = (sim := simulation(engines.lanes(4, finish="masked"))).run(sim.init(0), rounds=1)
    assert masked.costs.lane_steps == 4 * 35
    assert compact.costs.lane_steps < 35 + 3 * 12
    assert compact.costs.step_occupancy > 0.8 > 0.4 > masked.costs.step_occupancy


@pytest.mark.parametrize("sizes", [[5, 5, 5, 5, 5], [9], [0, 0, 0, 0, 8], [1] * 30])
def test_queues_of_any_shape_end(sizes):
    sizes = np.array(sizes)
    wide, one = (simulation(engine, sizes) for engine in (engines.lanes(5), engines.lanes(1)))
    start = one.init(0)
    (a, of_wide), (b, of_one) = wide.run(start, rounds=1), one.run(start, rounds=1)
    assert_close(a.server, b.server, str(sizes))
    assert of_wide.costs.steps == of_one.costs.steps == int(np.sum(-(-sizes // 2)))


def marked(task: fs.Task) -> fs.Algorithm:
    """FedAvg whose clients begin with a hyperbolic cosine, which nothing else in its program is."""
    rule = fs.rules.local_sgd(task, optax.sgd(0.1))

    def begin(broadcast, state, ctx):
        work = rule.begin(broadcast, state, ctx)
        return jax.tree.map(lambda x: x * jnp.cosh(jnp.zeros_like(x)) if x.ndim == 2 else x, work)

    return fs.algorithms.from_rule("marked", task, rule._replace(begin=begin), optax.sgd(1.0), agg.mean())


@pytest.mark.parametrize("finish", ["compact", "masked"])
@pytest.mark.parametrize(("lanes", "places"), [(2, 2), (5, 2), (12, 1), (40, 1)])
def test_turns_begin_at_one_place_where_each_has_a_lane(finish, lanes, places):
    """A refill holds what all lanes have a second time; narrower lanes after the queue's end have none either."""
    sim = simulation(engines.lanes(lanes, finish=finish), make=marked)
    assert sim.lower(sim.init(0)).as_text().count("cosh") == places


def test_replicas_of_a_sweep_share_the_lanes():
    sim = simulation(engines.lanes(8, finish="compact"))
    swept = sim.sweep([0, 1], rounds=2)
    for seed, history in enumerate(swept):
        _, alone = sim.run(sim.init(seed), rounds=2)
        for measured, values in alone.metrics.items():
            np.testing.assert_allclose(history[measured], values, rtol=1e-4, atol=1e-6, err_msg=measured)


@pytest.mark.parametrize("layout", [*LAYOUTS, (1, "compact")], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_traced_once_for_its_shapes_and_its_rounds(layout, dtype):
    """And once as it is written, for what a step costs: the length of a chunk asks first."""
    task, traced = fs.tasks.classification(fs.models.linear(classes=3)), []

    def init(key, sample=None):
        variables = task.init(key, sample)
        return variables._replace(params=jax.tree.map(lambda x: x.astype(dtype), variables.params))

    def apply(*arguments, train):
        traced.append(train)
        return task.apply(*arguments, train=train)

    counted = task._replace(init=init, apply=apply)
    sim = simulation(
        engines.lanes(layout[0], finish=layout[1]), make=lambda _: fs.algorithms.scaffold(counted, 0.1)
    )
    state = sim.init(seed=0)
    assert traced == [True] * 2
    sim.lower(state)
    assert traced == [True] * 2
